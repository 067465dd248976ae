"""The same passes in PyTorch, for comparison. Import only where torch is importable."""

from collections.abc import Callable

import torch
from torch import nn

from snake_jax.kernels.conv.shapes import ConvShape


def passes(layer: ConvShape) -> dict[str, Callable[[], object]]:
    """Forward, input gradient and weight gradient of one 3x3 SAME convolution, NCHW as PyTorch
    likes it.
    """
    batch, height, width, channels = layer.x
    x = torch.randn(batch, channels, height, width)
    w = torch.randn(layer.w[3], channels, *layer.w[:2])
    g = torch.randn(batch, layer.w[3], height, width)

    def backward(which: list[bool]) -> object:
        one, zero = [1, 1], [0, 0]
        return torch.ops.aten.convolution_backward(
            g, x, w, None, one, one, one, False, zero, 1, which
        )

    return {
        "forward": lambda: nn.functional.conv2d(x, w, padding=1),
        "input gradient": lambda: backward([True, False, False]),
        "weight gradient": lambda: backward([False, True, False]),
    }
