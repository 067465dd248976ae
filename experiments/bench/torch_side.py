"""A plain PyTorch loop over the nodes, and the training in it that Flower's clients do too.

Images are one float tensor, normalised once; a node's weights are copied into the model in place;
FedAvg is the mean of state dicts by examples.

  python -m experiments.bench.torch_side WORK.npz CHECKED.npz '{"cores": 2}'
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from experiments.bench.work import Done, Line, Params, Work, load

TRIALS = 3


class Trainer:
    """The network of `work.params` and a node's epoch."""

    def __init__(self, work: Work, threads: int, channels_last: bool) -> None:
        """Puts the images where batches are taken from.

        Args:
          work: what is done.
          threads: of PyTorch.
          channels_last: whether images and activations lie as [B,H,W,C] rather than [B,C,H,W].
        """
        torch.set_num_threads(threads)
        self.work, self._last = work, channels_last
        images = work.normalised()
        self._images = torch.from_numpy(
            images if channels_last else np.ascontiguousarray(_first(images))
        )
        self._labels = torch.from_numpy(work.labels.astype(np.int64))
        self.model = network(work.params)
        self.params: list[torch.Tensor] = list(self.model.parameters())
        for p in self.params if channels_last else ():
            p.data = p.data.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p.data
        self._optimizer = torch.optim.SGD(
            self.params, work.learning_rate, work.momentum, fused=True
        )

    @torch.no_grad()
    def receive(self, weights: list[torch.Tensor]) -> None:
        """Starts a node from these weights, the momentum at zero."""
        torch._foreach_copy_(self.params, weights)
        self._optimizer.state.clear()

    def epoch(self, number: int, node: int) -> Done:
        """The node's batches of round `number`."""
        order = torch.from_numpy(self.work.order(number, node))
        total, batches = torch.zeros(()), order.split(self.work.batch_size)
        for index in batches:
            x = self._images[index]
            x = x.permute(0, 3, 1, 2) if self._last else x
            loss = nn.functional.cross_entropy(self.model(x), self._labels[index])
            self._optimizer.zero_grad()
            loss.backward()
            if self.work.clip_norm:
                nn.utils.clip_grad_norm_(self.params, self.work.clip_norm)
            self._optimizer.step()
            total += loss.detach() * len(index)
        return Done(total.item() / len(order), len(batches), len(order))

    @torch.no_grad()
    def round(self, number: int, weights: list[torch.Tensor]) -> tuple[list[torch.Tensor], Done]:
        """All nodes one after the other from `weights`, and their mean."""
        mean = [torch.zeros_like(p) for p in self.params]
        every = []
        for node, share in enumerate(self.work.shares()):
            self.receive(weights)
            with torch.enable_grad():
                every.append(self.epoch(number, node))
            torch._foreach_add_(mean, self.params, alpha=share)
        return mean, together(every)


def together(every: Sequence[Done]) -> Done:
    """All nodes' work of a round as one."""
    examples = sum(done.examples for done in every)
    loss = sum((done.loss or 0.0) * done.examples for done in every) / examples
    return Done(loss, sum(done.steps for done in every), examples)


def network(params: Params) -> nn.Sequential:
    """Convolutions 3x3 with ReLU and 2x2 max pooling, then dense layers with ReLU between them."""
    parts: list[nn.Module] = []
    for kernel, _ in params.values():
        *window, inputs, outputs = kernel.shape
        if window:
            parts += [
                nn.Conv2d(inputs, outputs, tuple(window), padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        else:
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
            if not any(isinstance(part, nn.Flatten) for part in parts):
                parts.insert(-2, nn.Flatten())
    model = nn.Sequential(*parts[:-1])
    model.load_state_dict(dict(zip(model.state_dict(), to_torch(params), strict=True)))
    return model


def to_torch(params: Params) -> list[torch.Tensor]:
    """Kernels and biases in PyTorch's layout: [Cout,Cin,Kh,Kw], [Cout,Cin], the first dense layer's
    inputs C,H,W.
    """
    tensors = []
    for kernel, bias, channels in _with_channels(params):
        if channels:
            kernel = np.moveaxis(kernel.reshape(-1, channels, kernel.shape[1]), 1, 0).reshape(
                kernel.shape
            )
        turned = np.moveaxis(kernel, (-1, -2), (0, 1))
        tensors += [torch.from_numpy(np.array(a, np.float32, order="C")) for a in (turned, bias)]
    return tensors


def from_torch(tensors: Sequence[torch.Tensor], like: Params) -> Params:
    """What `to_torch` was given."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    found: Params = {}
    for name, (kernel, bias, channels) in zip(like, _with_channels(like), strict=True):
        turned = np.moveaxis(arrays.pop(0), (0, 1), (-1, -2))
        if channels:
            turned = np.moveaxis(turned.reshape(channels, -1, kernel.shape[1]), 0, 1).reshape(
                kernel.shape
            )
        found[name] = np.array(turned, order="C"), np.array(arrays.pop(0).reshape(bias.shape))
    return found


def _with_channels(params: Params) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """With each layer the channels of the image that it flattens, 0 where it does not."""
    every = list(params.values())
    before = [0] + [kernel.shape[-1] if kernel.ndim == 4 else 0 for kernel, _ in every]
    return [(k, b, at if k.ndim == 2 else 0) for (k, b), at in zip(every, before, strict=False)]


def _first(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2)


def fastest(work: Work, cores: int) -> tuple[Trainer, str, dict[str, float]]:
    """The trainer of the fastest of one or all threads and either layout, its name, and each one's
    fastest epoch.
    """
    variants = {
        f"{threads} threads, channels {'last' if last else 'first'}": (threads, last)
        for threads in sorted({1, cores})
        for last in (False, True)
    }
    weights, seconds = to_torch(work.params), dict.fromkeys(variants, float("inf"))
    for name, variant in variants.items():
        trainer = Trainer(work, *variant)
        for trial in range(TRIALS + 1):  # the first is not counted
            trainer.receive(weights)
            started = time.perf_counter()
            trainer.epoch(0, 0)
            if trial:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    name = min(seconds, key=seconds.__getitem__)
    return Trainer(work, *variants[name]), name, seconds


def main(work_file: str, checked_file: str, options: str) -> None:
    """Does the rounds that are asked for."""
    line, work = Line(Path(checked_file)), load(Path(work_file))
    trainer, variant, trials = fastest(work, json.loads(options)["cores"])
    weights = to_torch(work.params)
    made = from_torch(trainer.params, work.params)
    line.ready(made, variant=variant, epoch_s=trials, versions={"torch": torch.__version__})
    number = 0
    while line.asked():
        weights, done = trainer.round(number, weights)
        line.answer(done, lambda: from_torch(weights, work.params))  # noqa: B023
        number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
