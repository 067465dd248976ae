"""What a user sees of a run: progress, pictures, tables, the page, events.

Reads run folders; knows no algorithm.
"""
