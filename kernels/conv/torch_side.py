"""The same passes and the same training step in PyTorch, for comparison. Import only where torch is importable."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from snake_jax.kernels.conv.shapes import ConvShape


class Layer(NamedTuple):
    """kernel [Kh,Kw,Cin,Cout] or [Cin,Cout], bias [Cout], and whether 2x2 max pooling follows."""

    kernel: np.ndarray
    bias: np.ndarray
    pooled: bool


def passes(layer: ConvShape) -> dict[str, Callable[[], object]]:
    """Forward, input gradient and weight gradient of one 3x3 SAME convolution, NCHW as PyTorch likes it."""
    batch, height, width, channels = layer.x
    x = torch.randn(batch, channels, height, width)
    w = torch.randn(layer.w[3], channels, *layer.w[:2])
    g = torch.randn(batch, layer.w[3], height, width)

    def backward(which: list[bool]) -> object:
        one, zero = [1, 1], [0, 0]
        return torch.ops.aten.convolution_backward(g, x, w, None, one, one, one, False, zero, 1, which)

    return {
        "forward": lambda: nn.functional.conv2d(x, w, padding=1),
        "input gradient": lambda: backward([True, False, False]),
        "weight gradient": lambda: backward([False, True, False]),
    }


def step(
    layers: Sequence[Layer], images: np.ndarray, labels: np.ndarray, learning_rate: float, momentum: float
) -> Callable[[], float]:
    """One call is one full training step on images [B,H,W,3], labels [B]; it returns the loss before the step."""
    model = _model(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    y = torch.from_numpy(labels.astype(np.int64))

    def run() -> float:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), y)
        value.backward()
        optimizer.step()
        return value.item()

    return run


def _model(layers: Sequence[Layer]) -> nn.Module:
    """ReLU after every layer but the last. Flattens channels first: the last image must be a single pixel."""
    parts: list[nn.Module] = []
    for kernel, bias, pooled in layers:
        if kernel.ndim == 2 and not any(isinstance(part, nn.Flatten) for part in parts):
            parts.append(nn.Flatten())
        parts += [_filled(kernel, bias), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(*parts[:-1])


def _filled(kernel: np.ndarray, bias: np.ndarray) -> nn.Module:
    """A convolution or dense layer of these parameters; PyTorch's kernels are [Cout,Cin,Kh,Kw] and [Cout,Cin]."""
    *window, inputs, outputs = kernel.shape
    layer = nn.Conv2d(inputs, outputs, tuple(window), padding=1) if window else nn.Linear(inputs, outputs)
    turned = np.moveaxis(kernel, (-1, -2), (0, 1))
    layer.load_state_dict({"weight": torch.tensor(turned), "bias": torch.tensor(bias)})
    return layer
