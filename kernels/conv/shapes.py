"""One convolution's shape, as tests and benchmark say it, and the named list of small ones.

The benchmark takes its large ones from the model: `bench.convolutions`.
"""

import math
from typing import NamedTuple

from jax import lax

from snake_jax.kernels.conv.reference import Padding, Pair


class ConvShape(NamedTuple):
    """One convolution: x [B,H,W,Cin], w [Kh,Kw,Cin,Cout]."""

    name: str
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    strides: Pair = (1, 1)
    padding: str | Padding = "SAME"

    @property
    def y(self) -> tuple[int, int, int, int]:
        """Shape of the result [B,Ho,Wo,Cout]."""
        kernel = self.w[:2]
        if isinstance(self.padding, str):
            pads = lax.padtype_to_pads(self.x[1:3], kernel, self.strides, self.padding)
        else:
            pads = list(self.padding)
        windows = []
        for i in range(2):
            beyond_first = self.x[1 + i] + sum(pads[i]) - kernel[i]
            windows.append(beyond_first // self.strides[i] + 1)
        return self.x[0], windows[0], windows[1], self.w[3]

    @property
    def flops(self) -> int:
        """FLOPs of the forward product, and of either gradient's: 2 a multiply and add.

        Taps on padding count too.
        """
        return 2 * math.prod(self.y[:3]) * math.prod(self.w)


SMALL = (
    ConvShape("plain", (2, 8, 8, 3), (3, 3, 3, 4)),
    ConvShape("odd sizes", (2, 7, 5, 3), (3, 3, 3, 4)),
    ConvShape("batch 1", (1, 6, 9, 2), (3, 3, 2, 5)),
    ConvShape("strides 2", (2, 8, 8, 3), (3, 3, 3, 4), (2, 2)),
    ConvShape("strides 2, odd sizes", (2, 9, 7, 3), (3, 3, 3, 4), (2, 2)),
    ConvShape("unequal strides, valid", (2, 8, 7, 3), (2, 3, 3, 4), (2, 3), "VALID"),
    ConvShape("pixels left over", (2, 8, 8, 2), (2, 2, 2, 3), (3, 3), "VALID"),
    ConvShape("asymmetric padding", (2, 6, 5, 3), (3, 3, 3, 4), (1, 1), ((0, 2), (3, 1))),
    ConvShape("asymmetric padding, strides", (1, 9, 6, 2), (5, 3, 2, 3), (2, 1), ((0, 2), (3, 1))),
    ConvShape(
        "padding wider than the kernel", (1, 5, 5, 2), (2, 3, 2, 3), (3, 2), ((4, 0), (5, 5))
    ),
    ConvShape("valid", (2, 7, 6, 3), (3, 3, 3, 4), (1, 1), "VALID"),
    ConvShape("1x1 kernel", (2, 5, 6, 4), (1, 1, 4, 3)),
    ConvShape("1x1 kernel, strides 2", (2, 5, 6, 4), (1, 1, 4, 3), (2, 2)),
    ConvShape("5x5 kernel", (2, 9, 8, 2), (5, 5, 2, 3)),
    ConvShape("5x5 kernel, in tiles", (2, 12, 12, 3), (5, 5, 3, 6), (1, 1), "VALID"),
    ConvShape("kernel larger than the image", (2, 2, 2, 3), (5, 5, 3, 4)),
    ConvShape("one pixel", (3, 1, 1, 4), (3, 3, 4, 2)),
)
"""Small and odd, for tests."""
