"""What many nodes and many cycles cost: a round of a few of them, what a process holds, its start.

Each number of nodes is a process of its own. 50 nodes a round are sampled of 100, 1,000 and 10,000
virtual ones of FEMNIST's sizes, which draw their examples when they are visited: seconds a round
and bytes should not grow with the nodes. Nor should the seconds until the first visit grow with the
cycles. A round is kept as a run with a folder keeps it, so what is written is in its time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.bench.contestants import ROOT
from experiments.bench.memory import resident_bytes, trim
from experiments.bench.rows import LOWER, Measured, Request, Row, measured
from snake_jax.config import ImageConfig
from snake_jax.runs import front, loop
from snake_jax.runs.workdir import Workdir

REPEATS = 9
NODES, CYCLES = "A round of many nodes", "Start by cycles"
FLAT = 1.1
"""Of the most nodes over the fewest, at most."""
NOTE = (
    "{sampled} nodes a round, one epoch, batches of 20, {least} to {most} examples a node of {side}"
    " x {side} noise, {classes} classes, a cnn of half width; with metrics, ledger and checkpoint. "
    "CPU: seconds of all threads. Held: the process's resident memory after the last round. Start: "
    "from the configuration to the first report, compiling included."
)


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      nodes: numbers of nodes, ascending.
      sampled: of them a round.
      least: examples a node holds at least.
      most: and at most.
      images: to draw them from.
      side: of an image.
      classes: of them.
      cycles: numbers of cycles of Snake whose starts are compared, ascending.
    """

    nodes: tuple[int, ...]
    sampled: int
    least: int
    most: int
    images: int
    side: int
    classes: int
    cycles: tuple[int, ...]


SIZES = Sizes((100, 1_000, 10_000), 50, 20, 400, 20_000, 28, 62, (10, 10_000))
QUICK = Sizes((4, 40), 2, 2, 6, 24, 8, 3, (2, 20))


Settings = dict[str, str | int | float]


class Asked(NamedTuple):
    """What one process is asked for: settings of a run, and how many rounds are measured."""

    settings: Settings
    rounds: int


class Told(NamedTuple):
    """What it answers.

    Attributes:
      start_s: until the first round's report.
      wall_s: of each round after it.
      cpu_s: likewise, of all threads.
      held_bytes: resident in the end.
    """

    start_s: float
    wall_s: list[float]
    cpu_s: list[float]
    held_bytes: int


def run(request: Request) -> Measured:
    """All numbers of nodes, then all numbers of cycles."""
    sizes = QUICK if request.quick else SIZES
    rounds = request.repeats or REPEATS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "images.npz"
        write_noise(file, sizes)
        common: Settings = {"model": "cnn", "width": 0.5, "batch_size": 20}
        common["dataset"] = f"npz:{file}"
        fewest: Told | None = None
        for nodes in sizes.nodes:
            request.say(f"many: {nodes} nodes")
            of_nodes: Settings = {
                **common,
                "algorithm": "fedavg",
                "nodes": nodes,
                "nodes_per_round": sizes.sampled,
                "partition": f"drawn:{sizes.least}-{sizes.most}",
                "cycles": rounds + 2,
                "eval_every": rounds + 2,
            }
            told = in_own_process(Asked(of_nodes, rounds))
            fewest = fewest or told
            rows += _rows(nodes, told, fewest)
        for cycles in sizes.cycles:
            request.say(f"many: {cycles} cycles")
            of_cycles: Settings = {**common, "algorithm": "snake", "nodes": 8, "cycles": cycles}
            told = in_own_process(Asked(of_cycles, 1))
            rows.append(Row(CYCLES, f"{cycles:,} cycles", "start", told.start_s, "s"))
    about = sizes._asdict()
    return Measured(rows, {}, [NOTE.format(**about)])


def _rows(nodes: int, told: Told, fewest: Told) -> list[Row]:
    """A number of nodes, and what it is over the fewest."""
    subject = f"{nodes:,} nodes"
    held_mb = told.held_bytes / 1e6
    rows = [
        measured(NODES, subject, "a round", told.wall_s, "s"),
        measured(NODES, subject, "CPU", told.cpu_s, "s"),
        Row(NODES, subject, "held", held_mb, "MB"),
        Row(NODES, subject, "start", told.start_s, "s"),
    ]
    if told is not fewest:
        for name, ours, theirs in (
            ("CPU over the fewest", np.median(told.cpu_s), np.median(fewest.cpu_s)),
            ("held over the fewest", told.held_bytes, fewest.held_bytes),
        ):
            ratio = float(ours / theirs)
            rows.append(Row(NODES, subject, name, ratio, better=LOWER, limit=FLAT))
    return rows


def write_noise(file: Path, sizes: Sizes) -> None:
    """Images of noise to draw from, and a few to evaluate on."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", sizes.images), ("test", sizes.classes)):
        shape = (count, sizes.side, sizes.side, 1)
        arrays[f"{part}_x"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_y"] = np.arange(count, dtype=np.int32) % sizes.classes
    np.savez(file, allow_pickle=False, **arrays)


def in_own_process(asked: Asked) -> Told:
    """Measures in a process that nothing else has used memory of.

    Raises:
      RuntimeError: the process failed; the message is its last line.
    """
    command = [sys.executable, "-m", "experiments.bench.many", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{asked.settings}: {lines[-1]}")
    return Told(**json.loads(done.stdout.splitlines()[-1]))


def measure(asked: Asked) -> Told:
    """One run's start and some of its rounds, in a folder of its own."""
    begun_s = time.perf_counter()
    setup = loop.prepare(ImageConfig(**asked.settings))  # type: ignore[arg-type]
    wall_s, cpu_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(Path(folder) / "run", setup.config)
        reports = front.kept_rounds(setup, workdir, workdir.resume(setup, print))
        next(reports)
        start_s = time.perf_counter() - begun_s
        for _ in range(asked.rounds):
            before_s, cpu_before_s = time.perf_counter(), _cpu_s()
            next(reports)
            wall_s.append(time.perf_counter() - before_s)
            cpu_s.append(_cpu_s() - cpu_before_s)
        trim()
        held_bytes = resident_bytes("VmRSS")
        workdir.close()
    return Told(start_s, wall_s, cpu_s, held_bytes)


def _cpu_s() -> float:
    """Seconds of CPU of all this process's threads so far."""
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    print(json.dumps(measure(Asked(*json.loads(sys.argv[1])))._asdict()))
