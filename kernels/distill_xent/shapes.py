"""The named shapes that tests and benchmark share."""

from typing import NamedTuple


class XentShape(NamedTuple):
    """hidden [tokens, width] against a table [vocabulary, width]."""

    name: str
    tokens: int
    width: int
    vocabulary: int


SMALL = (
    XentShape("plain", 8, 64, 32),
    XentShape("odd sizes", 7, 24, 37),
    XentShape("prime vocabulary", 5, 128, 101),
    XentShape("one token", 1, 16, 9),
    XentShape("one word", 3, 8, 1),
)
"""For tests."""

MIDDLE = XentShape("middle", 512, 256, 16384)
"""For timings on a CPU."""

LARGE = (
    XentShape("opt-1.3b, 6 x 512", 6 * 512, 2048, 50272),
    XentShape("llama-3-8b, 2 x 2048", 2 * 2048, 4096, 128256),
)
"""Of the models that are fine-tuned."""
