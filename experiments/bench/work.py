"""The work that every contestant does, as one file of arrays, and how it is asked for.

Imports numpy alone, so that a peer's interpreter needs nothing of this project's but this folder.
What this library draws at random, the order of a node's examples, is therefore in the file too.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

CHECKED_ROUNDS = 2
"""Parameters are compared after this many rounds, of which none is counted as a sample."""

Params = dict[str, tuple[np.ndarray, np.ndarray]]
"""`{layer: (kernel, bias)}` in the network's order; kernels are [Kh,Kw,Cin,Cout] or [Cin,Cout], H
before W before C.
"""
Message = dict[str, object]
"""What a contestant says, as JSON has it."""

_NUMBERS = ("batch_size", "learning_rate", "momentum", "clip_norm")
_ARRAYS = ("images", "labels", "mean", "std")


class Work(NamedTuple):
    """Rounds of FedAvg: in each every node trains one epoch from the mean.

    Plain SGD with momentum that begins at zero.

    Attributes:
      images: `[N, H, W, 3]` uint8, all nodes'.
      labels: `[N]` int32.
      orders: for each round and node, the node's examples (indices below N) in the order in which
        that round takes them; `snake_jax` shuffled them.
      mean: per channel, subtracted from `images / 255`.
      std: per channel, divided by.
      params: what the first round starts from.
      batch_size: of a step; what is left over makes a smaller last one.
      learning_rate: of every step.
      momentum: heavy ball.
      clip_norm: greatest norm of a step's gradients; 0: no clipping.
    """

    images: np.ndarray
    labels: np.ndarray
    orders: Sequence[Sequence[np.ndarray]]
    mean: np.ndarray
    std: np.ndarray
    params: Params
    batch_size: int
    learning_rate: float
    momentum: float
    clip_norm: float

    @property
    def rounds(self) -> int:
        """How many can be asked for."""
        return len(self.orders)

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.orders[0])

    @property
    def examples(self) -> int:
        """That all nodes hold together."""
        return sum(len(order) for order in self.orders[0])

    def normalised(self) -> np.ndarray:
        """All images as float32, `[N, H, W, 3]`."""
        return (self.images.astype(np.float32) / np.float32(255) - self.mean) / self.std

    def shares(self) -> list[float]:
        """Each node's weight in the mean: its part of all examples."""
        return [len(order) / self.examples for order in self.orders[0]]


class Done(NamedTuple):
    """What a round did.

    Attributes:
      loss: mean over its examples, each before the step that it is in; None: not known.
      steps: of all nodes.
      examples: of all nodes.
    """

    loss: float | None
    steps: int
    examples: int


def save(work: Work, path: Path) -> None:
    """Writes one .npz file."""
    arrays = _flat(work.params)
    for number, nodes in enumerate(work.orders):
        for node, order in enumerate(nodes):
            arrays[f"order/{number}/{node}"] = order
    for name in (*_ARRAYS, *_NUMBERS):
        arrays[name] = np.asarray(getattr(work, name))
    np.savez(path, allow_pickle=False, **arrays)


def load(path: Path) -> Work:
    """Reads what `save` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    orders: list[list[np.ndarray]] = []
    for name, array in arrays.items():  # in the order in which they were written
        if name.startswith("order/"):
            node = int(name.split("/")[2])
            if node == 0:
                orders.append([])
            orders[-1].append(array)
    return Work(
        images=arrays["images"],
        labels=arrays["labels"],
        orders=orders,
        mean=arrays["mean"],
        std=arrays["std"],
        params=_layers(arrays),
        batch_size=int(arrays["batch_size"]),
        learning_rate=float(arrays["learning_rate"]),
        momentum=float(arrays["momentum"]),
        clip_norm=float(arrays["clip_norm"]),
    )


def save_params(params: Params, path: Path) -> None:
    """Writes one .npz file."""
    np.savez(path, allow_pickle=False, **_flat(params))


def load_params(path: Path) -> Params:
    """Reads what `save_params` wrote."""
    with np.load(path) as file:
        return _layers(dict(file))


def _flat(params: Params) -> dict[str, np.ndarray]:
    """`{"kernel/conv1": ..., "bias/conv1": ...}`, the layers in order."""
    arrays = {}
    for layer, (kernel, bias) in params.items():
        arrays[f"kernel/{layer}"] = kernel
        arrays[f"bias/{layer}"] = bias
    return arrays


def _layers(arrays: dict[str, np.ndarray]) -> Params:
    """What `_flat` was given, out of a file's arrays."""
    params: Params = {}
    for name, array in arrays.items():
        if name.startswith("kernel/"):
            layer = name.removeprefix("kernel/")
            params[layer] = (array, arrays[f"bias/{layer}"])
    return params


def difference(params: Params, reference: Params, start: Params) -> float:
    """Norm of `params - reference` over that of `reference - start`.

    1 is as wrong as not having trained.
    """
    return _distance(params, reference) / _distance(reference, start)


def _distance(params: Params, others: Params) -> float:
    """Norm of the difference of all kernels and biases as one vector."""
    squares = 0.0
    for name, arrays in params.items():
        for array, other in zip(arrays, others[name], strict=True):
            squares += float(np.square(array - other).sum())
    return squares**0.5


class Line:
    """A contestant's end of the line.

    It answers on what was its standard output, where nothing else may write now.
    """

    def __init__(self, checked: Path) -> None:
        """Everything printed from now on goes to standard error.

        Args:
          checked: where the parameters after `CHECKED_ROUNDS` go.
        """
        self._checked = checked
        self._rounds = 0
        self._started = 0.0
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, params: Params, **told: object) -> None:
        """Says that rounds can be asked for."""
        count = sum(kernel.size + bias.size for kernel, bias in params.values())
        self._say({"parameters": count, "python": sys.version.split()[0], **told})

    def asked(self) -> bool:
        """Waits for the next request; false where there will be none.

        The clock of the round starts.
        """
        wanted = bool(sys.stdin.readline().strip())
        self._started = time.perf_counter()
        return wanted

    def answer(self, done: Done, params: Callable[[], Params], **told: object) -> None:
        """Stops the clock and tells of the round; `params` gives what it ended with."""
        seconds = time.perf_counter() - self._started
        self._rounds += 1
        if self._rounds == CHECKED_ROUNDS:
            save_params(params(), self._checked)
        self._say({"round_s": seconds, **done._asdict(), **told})

    def _say(self, message: Message) -> None:
        print(json.dumps(message), file=self._out, flush=True)
