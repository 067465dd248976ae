"""How much memory a round of FedAvg takes by the number of its nodes, with and without momentum.

A mean needs one running sum, and a node's weights only until they are added to it: so what a round
takes should not grow with the nodes. Each number of nodes is a process of its own, which does a
round so that all is compiled, and then measures: by how much its resident memory grows at most
during a round.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.bench.contestants import ROOT
from experiments.bench.memory import grown_bytes
from experiments.bench.rows import LOWER, Measured, Request, Row, measured
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.params import num_bytes
from snake_jax.runs import loop

REPEATS = 3
TABLE = "Memory that a round of FedAvg takes"
MOMENTUM = {"plain SGD": 0.0, "momentum": 0.9}
SIDE, CLASSES = 8, 10  # of the images of noise
NOTE = (
    "An mlp of {model:.1f} MB, nodes of {examples} examples, one epoch, carried out one after the "
    "other. Grown: the process's greatest resident memory during a round over that before it; in "
    "models: over the bytes of the weights. Over the fewest nodes: 1 is flat."
)
FLAT = 1.25
"""What a round takes over what it takes of the fewest nodes, at most."""


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      nodes: numbers of nodes, ascending.
      width: of the mlp: 25 are 21 MB of weights in float32.
      examples: on each node, a batch.
    """

    nodes: tuple[int, ...]
    width: float
    examples: int


SIZES = Sizes(nodes=(16, 48, 200), width=25.0, examples=32)
QUICK = Sizes(nodes=(2, 4), width=1.0, examples=8)


class Asked(NamedTuple):
    """What one process is asked for.

    Attributes:
      dataset: the file of examples.
      nodes: that train in a round.
      width: see `Sizes`.
      batch_size: as many as a node holds.
      momentum: of the nodes' SGD.
      rounds: that are measured.
    """

    dataset: str
    nodes: int
    width: float
    batch_size: int
    momentum: float
    rounds: int


class Told(NamedTuple):
    """What it answers: the bytes of the weights, and by how much each round grew, in bytes."""

    model_bytes: int
    grown_bytes: list[int]


def run(request: Request) -> Measured:
    """All numbers of nodes, both kinds of SGD."""
    sizes = QUICK if request.quick else SIZES
    rounds = request.repeats or REPEATS
    rows: list[Row] = []
    fewest: dict[str, float] = {}
    model_bytes = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for nodes in sizes.nodes:
            dataset = Path(folder) / f"{nodes}.npz"
            write_noise(dataset, nodes * sizes.examples)
            for kind, momentum in MOMENTUM.items():
                request.say(f"rounds_memory: {nodes} nodes, {kind}")
                asked = Asked(str(dataset), nodes, sizes.width, sizes.examples, momentum, rounds)
                told = in_own_process(asked)
                model_bytes = told.model_bytes
                rows += _rows(kind, nodes, told, fewest)
    note = NOTE.format(model=model_bytes / 1e6, examples=sizes.examples)
    return Measured(rows, {}, [note])


def _rows(kind: str, nodes: int, told: Told, fewest: dict[str, float]) -> list[Row]:
    """A number of nodes; the first of a kind is what the others are compared with, and is put into
    `fewest`.
    """
    subject = f"{nodes} nodes"
    grown_mb = [size / 1e6 for size in told.grown_bytes]
    grown = measured(TABLE, subject, kind, grown_mb, "MB")
    in_models = [size / told.model_bytes for size in told.grown_bytes]
    rows = [grown, measured(TABLE, subject, f"{kind}, in models", in_models, better=LOWER)]
    if kind not in fewest:
        fewest[kind] = grown.value
    elif fewest[kind] > 0:
        ratio = grown.value / fewest[kind]
        name = f"{kind}, over the fewest nodes"
        rows.append(Row(TABLE, subject, name, ratio, better=LOWER, limit=FLAT))
    return rows


def write_noise(file: Path, count: int) -> None:
    """So many images of noise to train on, and as many as there are classes to evaluate on."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, size in (("train", count), ("test", CLASSES)):
        shape = (size, SIDE, SIDE, 1)
        arrays[f"{part}_x"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_y"] = np.arange(size, dtype=np.int32) % CLASSES
    np.savez(file, allow_pickle=False, **arrays)


def in_own_process(asked: Asked) -> Told:
    """Measures in a process that nothing else has used memory of.

    Raises:
      UserError: this system does not tell what a process takes.
      RuntimeError: the process failed; the message is its last line.
    """
    command = [sys.executable, "-m", "experiments.bench.rounds_memory", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{asked.nodes} nodes: {lines[-1]}")
    told = Told(**json.loads(done.stdout))
    if None in told.grown_bytes:
        raise UserError(
            "rounds_memory: this system does not tell how much memory a process takes; Linux does"
        )
    return told


def measure(asked: Asked) -> dict[str, object]:
    """`Told` as JSON has it; None in the place of bytes that the system does not tell."""
    config = ImageConfig(
        algorithm="fedavg",
        model="mlp",
        width=asked.width,
        dataset=f"npz:{asked.dataset}",
        nodes=asked.nodes,
        batch_size=asked.batch_size,
        momentum=asked.momentum,
        distill="off",
        # One round to compile in, and the last, which evaluates, is not asked for.
        cycles=asked.rounds + 2,
        eval_every=asked.rounds + 2,
    )
    setup = loop.prepare(config)
    state = loop.initial_state(setup)
    model_bytes = num_bytes(state.params)
    reports = loop.train(setup, loop.make_engine(setup), state, keep=lambda _: None)
    del state  # the loop has it

    def one_round() -> object:
        return next(reports).state.params

    jax.block_until_ready(one_round())
    grown = [grown_bytes(one_round) for _ in range(asked.rounds)]
    return {"model_bytes": model_bytes, "grown_bytes": grown}


if __name__ == "__main__":
    print(json.dumps(measure(Asked(*json.loads(sys.argv[1])))))
