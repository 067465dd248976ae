"""A plain PyTorch loop over the nodes, and the training in it that Flower's clients do too.

Images are one float tensor, normalised once; a node's weights are copied into the model in place;
FedAvg is the mean of state dicts by examples.

  python -m experiments.bench.torch_side WORK.npz CHECKED.npz '{"cores": 2}'
"""

import functools
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
        self.work = work
        self._channels_last = channels_last
        # Normalised once, not in every batch.
        images = work.normalised()
        if not channels_last:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        self._images = torch.from_numpy(images)
        self._labels = torch.from_numpy(work.labels.astype(np.int64))
        self.model = network(work.params)
        self.params: list[torch.Tensor] = list(self.model.parameters())
        if channels_last:
            for param in self.params:
                if param.ndim == 4:
                    param.data = param.data.contiguous(memory_format=torch.channels_last)
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
        order = torch.from_numpy(self.work.orders[number][node])
        batches = order.split(self.work.batch_size)
        loss_sum = torch.zeros(())
        for index in batches:
            x = self._images[index]
            if self._channels_last:
                x = x.permute(0, 3, 1, 2)  # a view: PyTorch names the axes so, whatever they lie in
            loss = nn.functional.cross_entropy(self.model(x), self._labels[index])
            self._optimizer.zero_grad()
            loss.backward()
            if self.work.clip_norm:
                nn.utils.clip_grad_norm_(self.params, self.work.clip_norm)
            self._optimizer.step()
            loss_sum += loss.detach() * len(index)
        return Done(loss_sum.item() / len(order), len(batches), len(order))

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
    loss_sum = 0.0
    steps = 0
    examples = 0
    for done in every:
        loss_sum += (done.loss or 0.0) * done.examples
        steps += done.steps
        examples += done.examples
    return Done(loss_sum / examples, steps, examples)


def network(params: Params) -> nn.Sequential:
    """Convolutions 3x3 with ReLU and 2x2 max pooling, then dense layers with ReLU between them."""
    parts: list[nn.Module] = []
    flat = False
    for kernel, _ in params.values():
        *window, inputs, outputs = kernel.shape
        if window:
            convolution = nn.Conv2d(inputs, outputs, tuple(window), padding=1)
            parts += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
        else:
            if not flat:
                parts.append(nn.Flatten())
                flat = True
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    parts.pop()  # no ReLU after the last
    model = nn.Sequential(*parts)
    model.load_state_dict(dict(zip(model.state_dict(), to_torch(params), strict=True)))
    return model


def to_torch(params: Params) -> list[torch.Tensor]:
    """Kernels and biases in PyTorch's layout: `[Cout, Cin, Kh, Kw]` and `[Cout, Cin]`.

    The first dense layer's inputs are in the order C, H, W.
    """
    tensors = []
    channels = _flattened_channels(params)
    for name, (kernel, bias) in params.items():
        if channels[name]:
            # Inputs (H,W,C) become (C,H,W), as PyTorch flattens them.
            inputs, outputs = kernel.shape
            by_pixel = kernel.reshape(-1, channels[name], outputs)
            kernel = np.moveaxis(by_pixel, 1, 0).reshape(inputs, outputs)
        turned = np.moveaxis(kernel, (-1, -2), (0, 1))
        for array in (turned, bias):
            tensors.append(torch.from_numpy(np.array(array, np.float32, order="C")))
    return tensors


def from_torch(tensors: Sequence[torch.Tensor], like: Params) -> Params:
    """What `to_torch` was given."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    channels = _flattened_channels(like)
    found: Params = {}
    for name, (kernel, bias) in like.items():
        turned = np.moveaxis(arrays.pop(0), (0, 1), (-1, -2))
        if channels[name]:
            inputs, outputs = kernel.shape
            by_channel = turned.reshape(channels[name], -1, outputs)
            turned = np.moveaxis(by_channel, 0, 1).reshape(inputs, outputs)
        their_bias = arrays.pop(0).reshape(bias.shape)
        found[name] = np.array(turned, order="C"), np.array(their_bias)
    return found


def _flattened_channels(params: Params) -> dict[str, int]:
    """For every layer the channels of the image that it flattens, 0 where it does not."""
    found = {}
    image_channels = 0  # of what the layer before gave; 0: that was a vector
    for name, (kernel, _) in params.items():
        if kernel.ndim == 4:
            found[name] = 0
            image_channels = kernel.shape[-1]
        else:
            found[name] = image_channels
            image_channels = 0
    return found


def fastest(work: Work, cores: int) -> tuple[Trainer, str, dict[str, float]]:
    """The trainer of the fastest of one or all threads and either layout.

    Returns:
      It, its name, and each variant's fastest epoch in seconds.
    """
    variants = {}
    for threads in sorted({1, cores}):
        variants[f"{threads} threads, channels first"] = (threads, False)
        variants[f"{threads} threads, channels last"] = (threads, True)
    weights = to_torch(work.params)
    seconds = {}
    for name, (threads, channels_last) in variants.items():
        trainer = Trainer(work, threads, channels_last)
        _epoch_s(trainer, weights)  # the first is not counted
        seconds[name] = min(_epoch_s(trainer, weights) for _ in range(TRIALS))
    name = min(seconds, key=seconds.__getitem__)
    threads, channels_last = variants[name]
    return Trainer(work, threads, channels_last), name, seconds


def _epoch_s(trainer: Trainer, weights: list[torch.Tensor]) -> float:
    """Seconds of an epoch of node 0 from these weights."""
    trainer.receive(weights)
    started = time.perf_counter()
    trainer.epoch(0, 0)
    return time.perf_counter() - started


def main(work_file: str, checked_file: str, options: str) -> None:
    """Does the rounds that are asked for."""
    line = Line(Path(checked_file))
    work = load(Path(work_file))
    trainer, variant, trials = fastest(work, json.loads(options)["cores"])
    weights = to_torch(work.params)
    made = from_torch(trainer.params, work.params)
    line.ready(made, variant=variant, epoch_s=trials, versions={"torch": torch.__version__})
    number = 0
    while line.asked():
        weights, done = trainer.round(number, weights)
        line.answer(done, functools.partial(from_torch, weights, work.params))
        number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
