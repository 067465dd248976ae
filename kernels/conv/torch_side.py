"""The same passes and the same training step in PyTorch, for comparison. Import only where torch is importable."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from snake_jax.kernels.conv.shapes import ConvShape
from snake_jax.kernels.conv.vgg11 import LEARNING_RATE, MOMENTUM, Sizes, batch_of


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


def step(sizes: Sizes) -> Callable[[], object]:
    """One call is one full training step."""
    model = _model(sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    images, labels = batch_of(sizes)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    y = torch.from_numpy(labels.astype(np.int64))

    def run() -> float:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), y)
        value.backward()
        optimizer.step()
        return value.item()

    return run


def _model(sizes: Sizes) -> nn.Module:
    parts: list[nn.Module] = []
    for number, layer in enumerate(sizes.convolutions, 1):
        parts += [nn.Conv2d(layer.w[2], layer.w[3], 3, padding=1), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if number in sizes.pooled else []
    parts.append(nn.Flatten())
    for inputs, outputs in sizes.dense.values():
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])
