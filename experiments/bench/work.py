"""The work that every contestant does, as one file of arrays, and how it is asked for round after
round.

Imports numpy alone, so that a peer's interpreter needs nothing of this project's but this folder.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CHECKED_ROUNDS = 2
"""Parameters are compared after this many rounds, of which none is counted as a sample."""

Params = dict[str, tuple[np.ndarray, np.ndarray]]
"""`{layer: (kernel, bias)}` in the network's order; kernels are [Kh,Kw,Cin,Cout] or [Cin,Cout], H
before W before C.
"""


class Work(NamedTuple):
    """A round of FedAvg: every node trains one epoch from the mean, plain SGD with momentum that
    begins at zero.

    Attributes:
      images: `[N, H, W, 3]` uint8, all nodes'.
      labels: `[N]` int32.
      shards: for each node, its indices.
      mean: per channel, subtracted from `images / 255`.
      std: per channel, divided by.
      params: what the first round starts from.
      batch_size: of a step; what is left over makes a smaller last one.
      learning_rate: of every step.
      momentum: heavy ball.
      clip_norm: greatest norm of a step's gradients; 0: no clipping.
      seed: of the order of examples.
      rounds: that will be asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    shards: Sequence[np.ndarray]
    mean: np.ndarray
    std: np.ndarray
    params: Params
    batch_size: int
    learning_rate: float
    momentum: float
    clip_norm: float
    seed: int
    rounds: int

    def order(self, number: int, node: int) -> np.ndarray:
        """The node's examples in the order in which round `number` takes them, as
        `snake_jax.executor` shuffles.
        """
        return np.random.default_rng([self.seed, number, node, 0]).permutation(self.shards[node])

    def normalised(self) -> np.ndarray:
        """All images as float32, `[N, H, W, 3]`."""
        return (self.images.astype(np.float32) / np.float32(255) - self.mean) / self.std

    def shares(self) -> list[float]:
        """Each node's weight in the mean."""
        return [len(shard) / sum(map(len, self.shards)) for shard in self.shards]


class Done(NamedTuple):
    """A round's mean loss over its examples, each before the step that it is in, and how much was
    done.
    """

    loss: float | None
    steps: int
    examples: int


def save(work: Work, path: Path) -> None:
    """Writes one .npz file."""
    arrays: dict[str, Any] = {f"shard/{node}": shard for node, shard in enumerate(work.shards)}
    arrays |= _flat(work.params)
    arrays |= {
        name: getattr(work, name) for name in Work._fields if name not in ("shards", "params")
    }
    np.savez(path, **arrays)


def load(path: Path) -> Work:
    """Reads what `save` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    shards = [arrays[name] for name in arrays if name.startswith("shard/")]
    plain: dict[str, Any] = {
        name: arrays[name] for name in Work._fields if name not in ("shards", "params")
    }
    scalars = {name: value.item() for name, value in plain.items() if value.ndim == 0}
    return Work(**{**plain, **scalars}, shards=shards, params=_layers(arrays))


def save_params(params: Params, path: Path) -> None:
    """Writes one .npz file."""
    np.savez(path, **_flat(params))


def load_params(path: Path) -> Params:
    """Reads what `save_params` wrote."""
    with np.load(path) as file:
        return _layers(dict(file))


def _flat(params: Params) -> dict[str, Any]:
    parts = ("kernel", "bias")
    return {
        f"{p}/{layer}": a
        for layer, pair in params.items()
        for p, a in zip(parts, pair, strict=True)
    }


def _layers(arrays: dict[str, np.ndarray]) -> Params:
    names = [name.removeprefix("kernel/") for name in arrays if name.startswith("kernel/")]
    return {name: (arrays[f"kernel/{name}"], arrays[f"bias/{name}"]) for name in names}


def difference(params: Params, reference: Params, start: Params) -> float:
    """Norm of `params - reference` over that of `reference - start`: 1 is as wrong as not having
    trained.
    """

    def distance(a: Params, b: Params) -> float:
        return (
            sum(
                float(np.square(x - y).sum())
                for name in a
                for x, y in zip(a[name], b[name], strict=True)
            )
            ** 0.5
        )

    return distance(params, reference) / distance(reference, start)


class Line:
    """A contestant's end of the line: it answers on what was its standard output, where nothing
    else may write now.
    """

    def __init__(self, checked: Path) -> None:
        """Everything printed from now on goes to standard error.

        Args:
          checked: where the parameters after `CHECKED_ROUNDS` go.
        """
        self._checked, self._rounds, self._started = checked, 0, 0.0
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, params: Params, **told: Any) -> None:
        """Says that rounds can be asked for."""
        count = sum(a.size for pair in params.values() for a in pair)
        self._say({"parameters": count, "python": sys.version.split()[0], **told})

    def asked(self) -> bool:
        """Waits for the next request; false where there will be none. The clock of the round
        starts.
        """
        wanted = bool(sys.stdin.readline().strip())
        self._started = time.perf_counter()
        return wanted

    def answer(self, done: Done, params: Callable[[], Params], **told: Any) -> None:
        """Stops the clock and tells of the round; `params` gives what it ended with."""
        seconds = time.perf_counter() - self._started
        self._rounds += 1
        if self._rounds == CHECKED_ROUNDS:
            save_params(params(), self._checked)
        self._say({"round_s": seconds, **done._asdict(), **told})

    def _say(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)
