"""What training a model takes of a node.

Counted from shapes, compiled for chips that need not be here, measured.
"""
