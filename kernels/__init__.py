"""Operations that XLA leaves slow on some machine: one folder each, its definition and its faster
versions.
"""
