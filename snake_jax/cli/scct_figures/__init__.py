"""The figures of SCCT's paper that follow from its mathematics: a module each, with the numbers and
the picture.
"""
