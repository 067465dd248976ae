"""The same passes in PyTorch, for comparison. Import only where torch is importable."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from snake_jax.kernels.conv.shapes import ConvShape


def passes(layer: ConvShape) -> dict[str, Callable[[], object]]:
    """Forward, input gradient and weight gradient of one 3x3 SAME convolution.

    Images are `[B, C, H, W]`, as PyTorch likes them.
    """
    batch, height, width, channels = layer.x
    kernel_height, kernel_width, _, outputs = layer.w
    x = torch.randn(batch, channels, height, width)
    w = torch.randn(outputs, channels, kernel_height, kernel_width)
    g = torch.randn(batch, outputs, height, width)

    def backward(input_gradient: bool, weight_gradient: bool) -> object:
        return torch.ops.aten.convolution_backward(
            g,
            x,
            w,
            None,  # no bias
            [1, 1],  # stride
            [1, 1],  # padding
            [1, 1],  # dilation
            False,  # not transposed
            [0, 0],  # output padding
            1,  # groups
            [input_gradient, weight_gradient, False],
        )

    return {
        "forward": functools.partial(nn.functional.conv2d, x, w, padding=1),
        "input gradient": functools.partial(backward, True, False),
        "weight gradient": functools.partial(backward, False, True),
    }
