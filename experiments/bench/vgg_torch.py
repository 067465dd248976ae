"""The same step in PyTorch, frozen layers with `requires_grad` off. Import only where torch is
importable.
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
    """One call is one training step of these layers from `vgg.params_of`; it returns the loss
    before the step.

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
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = _sequential(network, layers)
    model.to(memory_format=layout)
    weights = [p for p in model.parameters() if p.requires_grad]
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
    """ReLU after every layer but the last. Flattens channels first: the last image must be a single
    pixel.
    """
    parts: list[nn.Module] = []
    for stage in stages(network, vgg.params_of(network)):
        if stage.kernel.ndim == 2 and not any(isinstance(part, nn.Flatten) for part in parts):
            parts.append(nn.Flatten())
        parts += [layers[stage.name], nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if stage.kernel.ndim == 4 and stage.y[1] < stage.x[1] else []
    return nn.Sequential(*parts[:-1])


def _filled(stage: Stage) -> nn.Module:
    """A convolution or dense layer of a stage's parameters; PyTorch's kernels are [Cout,Cin,Kh,Kw]
    and [Cout,Cin].
    """
    kernel, bias = np.asarray(stage.kernel), np.asarray(stage.bias)
    *window, inputs, outputs = kernel.shape
    layer = (
        nn.Conv2d(inputs, outputs, tuple(window), padding=1)
        if window
        else nn.Linear(inputs, outputs)
    )
    layer.load_state_dict(
        {"weight": torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1))), "bias": torch.tensor(bias)}
    )
    return layer
