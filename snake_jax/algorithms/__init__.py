"""Methods: who trains which layers when, where the layers lie, what travels, and how results are
merged.
"""
