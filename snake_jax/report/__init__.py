"""What a user sees of a run: progress, pictures, tables, events. Reads run folders; knows no
algorithm.
"""
