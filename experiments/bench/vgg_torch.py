"""The same step in PyTorch, frozen layers with `requires_grad` off.

Import only where torch is importable.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.bench import vgg
from experiments.bench.kernels.conv import Network, Stage, stages


def step(
    network: Network, trained: Sequence[str], threads: int, channels_last: bool
) -> Callable[[], float]:
    """One call is one training step of these layers from `vgg.params_of`.

    It returns the loss before the step.

    Args:
      network: which.
      trained: names of layers; of the others no weight gradient is asked.
      threads: of PyTorch.
      channels_last: whether images and activations lie as [B,H,W,C] rather than [B,C,H,W].
    """
    torch.set_num_threads(threads)
    layers = {stage.name: _filled(stage) for stage in stages(network, vgg.params_of(network))}
    for name, layer in layers.items():
        layer.requires_grad_(name in trained)

    # Fused updates, and everything in one layout: PyTorch at its fastest.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = _sequential(network, layers)
    model.to(memory_format=layout)
    weights = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=vgg.LEARNING_RATE, momentum=vgg.MOMENTUM, fused=True)
    images, labels = vgg.batch(network)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    y = torch.from_numpy(labels.astype(np.int64))

    def run() -> float:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), y)
        value.backward()
        optimizer.step()
        return value.item()

    return run


def _sequential(network: Network, layers: dict[str, nn.Module]) -> nn.Sequential:
    """ReLU after every layer but the last.

    Flattens channels first: the last image must be a single pixel.
    """
    parts: list[nn.Module] = []
    flat = False
    for stage in stages(network, vgg.params_of(network)):
        is_dense = stage.kernel.ndim == 2
        if is_dense and not flat:
            parts.append(nn.Flatten())
            flat = True
        parts += [layers[stage.name], nn.ReLU()]
        shrinks = not is_dense and stage.y[1] < stage.x[1]
        if shrinks:
            parts.append(nn.MaxPool2d(2))
    parts.pop()  # no ReLU after the last
    return nn.Sequential(*parts)


def _filled(stage: Stage) -> nn.Module:
    """A convolution or dense layer of a stage's parameters.

    PyTorch's kernels are `[Cout, Cin, Kh, Kw]` and `[Cout, Cin]`.
    """
    kernel = np.asarray(stage.kernel)
    bias = np.asarray(stage.bias)
    *window, inputs, outputs = kernel.shape
    layer: nn.Module
    if window:
        layer = nn.Conv2d(inputs, outputs, tuple(window), padding=1)
    else:
        layer = nn.Linear(inputs, outputs)
    turned = np.moveaxis(kernel, (-1, -2), (0, 1))
    layer.load_state_dict({"weight": torch.tensor(turned), "bias": torch.tensor(bias)})
    return layer
