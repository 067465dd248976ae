"""Runs that faults strike, and whether their ends are alike."""

import contextlib
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from snake_jax.config import ImageConfig
from snake_jax.engines.choice import HERE, Choice
from snake_jax.engines.contract import Engine
from snake_jax.runs import loop
from snake_jax.runs.engines import make_engine
from snake_jax.runs.state import Report, State
from snake_jax.runs.workdir import Workdir

SIZES: dict[str, Any] = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}
ACTORS = 2


class Seen(NamedTuple):
    """What came of a fault.

    Attributes:
      name: of the case.
      detect_s: from the strike, or from the order where the node does wrong itself, until the visit
        was lost or the run ended; None: nobody of the run was there to notice, or nothing was lost.
      take_over_s: from then, or from the start of the command that goes on, until the next visit
        was merged.
      cause: as the run says it.
      same_bits: whether the replay ends with the same parameters and transfers; None: it was not
        run, and `cause` says why.
    """

    name: str
    detect_s: float | None
    take_over_s: float | None
    cause: str
    same_bits: bool | None


def skipped(name: str, why: str) -> Seen:
    """A case that this machine does not permit."""
    return Seen(name, None, None, f"skipped: {why}", None)


def write_images(folder: Path) -> str:
    """Images `[4, 4, 3]` of 4 classes in a file; the flag that names it."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    pixels = rng.integers(0, 256, (4, 4, 4, 3))[labels] + rng.normal(0, 40, (120, 4, 4, 3))
    images = np.clip(pixels, 0, 255).astype(np.uint8)
    file = folder / "images.npz"
    np.savez(file, train_x=images[:90], train_y=labels[:90], test_x=images[90:], test_y=labels[90:])
    return f"npz:{file}"


def trained(
    config: loop.RunConfig, choice: Choice, wrap: Callable[[Engine], Engine] = lambda engine: engine
) -> list[Report]:
    """The reports of a whole run."""
    setup = loop.prepare(config)
    engine = make_engine(setup, choice)
    try:
        state = loop.initial_state(setup)
        return list(loop.train(setup, wrap(engine), state, lambda state: None))
    finally:
        engine.close()


def same_bits(ours: Sequence[Report], theirs: Sequence[Report]) -> bool:
    """Whether two runs ended with the same parameters, transfers and failures."""
    if [report.transfers for report in ours] != [report.transfers for report in theirs]:
        return False
    here, there = ours[-1].state, theirs[-1].state
    same = here.failures == there.failures and here.moves == there.moves
    return same and same_params(here, there)


def same_params(ours: State, theirs: State) -> bool:
    """Whether two states have the same parameters, bit for bit."""
    pairs = zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True)
    return all(np.asarray(mine).tobytes() == np.asarray(other).tobytes() for mine, other in pairs)


def replay_of(reports: Sequence[Report]) -> dict[str, Any]:
    """Flags that lose the visits that a run lost; none where it lost none.

    A stand-in that is lost too has no flag.
    """
    struck = []
    for report in reports:
        for lost in report.lost:
            if not lost.visit.event:
                struck.append(f"{lost.visit.turn}@0")
    return {"interrupt": ",".join(struck), "interruption": "lost"} if struck else {}


def ends_as_unbroken(folder: Path, dataset: str) -> bool:
    """Whether the run of a folder ended as the same run in one process, which nothing strikes.

    Args:
      folder: of the run.
      dataset: the flag by which this process finds its data.
    """
    stored = ImageConfig(**json.loads((folder / "config.json").read_text()))
    reports = trained(dataclasses.replace(stored, dataset=dataset), HERE)
    sent = [transfer for report in reports for transfer in report.transfers]
    if lines_of(folder, "ledger.jsonl") != len(sent):
        return False
    workdir = Workdir(folder, stored)
    with contextlib.closing(workdir):
        setup = loop.prepare(dataclasses.replace(stored, dataset=dataset))
        state = workdir.resume(setup, lambda text: None)
    last = reports[-1].state
    return state.rounds == last.rounds and same_params(state, last)


def lines_of(folder: Path, name: str = "metrics.jsonl") -> int:
    """How many lines a file of a run has; 0: there is none yet."""
    file = folder / name
    return file.read_bytes().count(b"\n") if file.exists() else 0


def waited(
    done: Callable[[], object], process: "subprocess.Popen[str]", patience_s: float = 240.0
) -> float:
    """Waits until something is so; gives the time at which it was.

    Args:
      done: whether it is.
      process: that makes it so.
      patience_s: how long it may take.

    Raises:
      RuntimeError: it did not come to be.
    """
    until = time.monotonic() + patience_s
    while not done():
        if process.poll() is not None and not done():
            raise RuntimeError(f"the process ended: {process.communicate()[1]}")
        if time.monotonic() > until:
            raise RuntimeError("what was waited for did not come to be")
        time.sleep(0.02)
    return time.time()
