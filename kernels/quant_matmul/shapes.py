"""The named shapes that tests and benchmark share."""

from typing import NamedTuple


class QuantShape(NamedTuple):
    """x [rows, inputs] times a weight [inputs, outputs], beside an adapter of `rank`; 0: none."""

    name: str
    rows: int
    inputs: int
    outputs: int
    rank: int = 0

    @property
    def flops(self) -> int:
        """Of the product with the weight, in either direction; 2 a multiply and add."""
        return 2 * self.rows * self.inputs * self.outputs


SMALL = (
    QuantShape("plain", 16, 128, 256),
    QuantShape("adapter", 16, 128, 256, 4),
    QuantShape("one row, adapter", 1, 256, 128, 3),
    QuantShape("odd rows", 19, 384, 128),
    QuantShape("parts of both sides", 8, 1536, 1152, 8),
    QuantShape("parts of the rows", 1030, 128, 128, 2),
)
"""For tests: whole tiles of every kernel."""

ODD = (QuantShape("odd sizes", 7, 24, 37), QuantShape("odd sizes, adapter", 5, 96, 50, 3))
"""For tests: no kernel has tiles for them."""

MIDDLE = QuantShape("middle", 512, 1024, 2048, 16)
"""For timings on a CPU."""


def _model(name: str, rows: int, *matrices: tuple[int, int]) -> tuple[QuantShape, ...]:
    return tuple(QuantShape(f"{name}, {k} x {n}, {rows} rows", rows, k, n) for k, n in matrices)


LARGE = (
    *_model("opt-1.3b", 6 * 512, (2048, 8192)),
    *_model("llama-3-8b", 2 * 2048, (14336, 4096)),
    *_model("opt-1.3b", 1, (2048, 8192)),
    *_model("llama-3-8b", 8, (14336, 4096)),
)
"""MLPs of models that are fine-tuned: in training, and generating one token for each row."""
