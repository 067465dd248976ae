"""SCCT's latency and its optimizer: a small language model split between devices and edge, in
series with a large one in the cloud.
"""
