"""The fault matrix: what nodes that are processes can do wrong, and what becomes of the run.

    python -m experiments.faults --output=faults.json
    python -m experiments.faults --schedules=100

Every fault strikes a run on a Ray cluster of this machine; then flags replay it in one process, and
both must end with the same bits. Printed are seconds until the fault was noticed, from then until
the visit was taken over and merged, and whether the bits are the same. `--schedules=N` draws N
schedules of faults by their seeds instead.
"""

import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from snake_jax.algorithms.visits import Order
from snake_jax.config import ImageConfig
from snake_jax.engines import ray_faults
from snake_jax.engines.choice import HERE, Choice, around
from snake_jax.engines.contract import Engine
from snake_jax.runs import loop
from snake_jax.runs.engines import make_engine
from snake_jax.runs.state import Report

SIZES: dict[str, Any] = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}
TURN = 1
"""The visit that a fault strikes."""
ACTORS = 2
_NONE: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """A fault, and the flags that replay it.

    Attributes:
      name: in the table.
      fault: what `ray_faults` is asked for; empty: nothing.
      strike: the signal that its process is sent; 0: none.
      idle: whether it is sent while the node waits for its turn.
      config: flags of the run.
      limits: of the engine, by the names of `Choice`.
      replay: flags, beside those of what was lost, of the run that must end with the same bits.
    """

    name: str
    fault: str = ""
    strike: int = 0
    idle: bool = False
    config: Mapping[str, Any] = _NONE
    limits: Mapping[str, float] = _NONE
    replay: Mapping[str, Any] = _NONE


# An epoch is one call of a program, so many short ones are long enough to strike.
_LONG = {"local_epochs": 400}
_POOL = {"leave": "2@2", "join": "2@3"}
_LATE = {"join": "1@2"}
CASES = (
    Case("SIGKILL while training", strike=signal.SIGKILL, config=_LONG),
    Case("SIGKILL while sending", "die"),
    Case("SIGKILL while idle", strike=signal.SIGKILL, idle=True),
    Case("SIGSTOP while training", "", signal.SIGSTOP, False, _LONG, {"deadline_s": 3.0}),
    Case("stalls and beats", "stall", limits={"stall_s": 3.0}),
    Case("over its deadline", "stall", limits={"visit_deadline_s": 8.0}),
    Case("numbers that are none", "nan"),
    Case("wrong shape", "shape"),
    Case("wrong checksum", "checksum"),
    Case("stale version", "stale"),
    Case("leaves and rejoins", config=_POOL, replay=_POOL),
    Case("joins late", config=_LATE, replay=_LATE),
)


class Seen(NamedTuple):
    """What came of a fault.

    Attributes:
      name: of the case.
      detect_s: from the strike, or from the order where the node does wrong itself, until the visit
        was lost; None: nothing was lost.
      take_over_s: from then until another node's visit was merged.
      cause: as the run says it.
      same_bits: whether the replay ends with the same parameters and transfers.
    """

    name: str
    detect_s: float | None
    take_over_s: float | None
    cause: str
    same_bits: bool


class _Struck:
    """An engine that sends a signal to the process of a turn's node."""

    def __init__(self, engine: Engine, case: Case) -> None:
        self._engine, self._case = engine, case
        self.at_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, order: Order) -> None:
        """Passes the order on, and strikes before or while its turn's is carried out."""
        mine = order.visit.turn == TURN and not order.visit.event
        if mine:
            self.at_s = time.time()
        if mine and self._case.strike and self._case.idle:
            self._strike(order.visit.node, 0.0)
        self._engine.submit(order)
        if mine and self._case.strike and not self._case.idle:
            late = threading.Thread(target=self._strike, args=(order.visit.node, 0.3))
            late.start()

    def _strike(self, node: int, after_s: float) -> None:
        pids = self._engine.processes()  # type: ignore[attr-defined]
        time.sleep(after_s)
        self.at_s = time.time()
        os.kill(pids[node % ACTORS], self._case.strike)


def write_images(folder: Path) -> str:
    """Images `[4, 4, 3]` of 4 classes in a file; the flag that names it."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    pixels = rng.integers(0, 256, (4, 4, 4, 3))[labels] + rng.normal(0, 40, (120, 4, 4, 3))
    images = np.clip(pixels, 0, 255).astype(np.uint8)
    file = folder / "images.npz"
    np.savez(file, train_x=images[:90], train_y=labels[:90], test_x=images[90:], test_y=labels[90:])
    return f"npz:{file}"


@contextmanager
def _asked(fault: str) -> Iterator[None]:
    """Has nodes do this, as `ray_faults` reads it."""
    os.environ[ray_faults.VARIABLE] = fault
    try:
        yield
    finally:
        del os.environ[ray_faults.VARIABLE]


def trained(
    config: ImageConfig, choice: Choice, wrap: Callable[[Engine], Engine] = lambda engine: engine
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
    pairs = zip(jax.tree.leaves(here.params), jax.tree.leaves(there.params), strict=True)
    for mine, other in pairs:
        if np.asarray(mine).tobytes() != np.asarray(other).tobytes():
            return False
    return here.failures == there.failures and here.moves == there.moves


def _replay_of(reports: Sequence[Report]) -> dict[str, Any]:
    """Flags that lose the visits that a run lost; none where it lost none.

    A stand-in that is lost too has no flag.
    """
    struck = []
    for report in reports:
        for lost in report.lost:
            if not lost.visit.event:
                struck.append(f"{lost.visit.turn}@0")
    return {"interrupt": ",".join(struck), "interruption": "lost"} if struck else {}


def carried_out(case: Case, base: ImageConfig, choice: Choice) -> Seen:
    """One case: the run with the fault, and its replay."""
    config = dataclasses.replace(base, **case.config)
    limits = choice._replace(
        deadline_s=case.limits.get("deadline_s", 60.0),
        stall_s=case.limits.get("stall_s", 0.0),
        visit_deadline_s=case.limits.get("visit_deadline_s", 0.0),
    )
    struck: list[_Struck] = []

    def wrap(engine: Engine) -> Engine:
        struck.append(_Struck(engine, case))
        return struck[0]

    with _asked(f"{case.fault}@{TURN}" if case.fault else ""):
        reports = trained(config, limits, wrap)

    # On a busy machine more may be lost than was struck: what is replayed is what happened.
    replay = {**case.replay, **_replay_of(reports)}
    replayed = trained(dataclasses.replace(config, **replay), HERE)

    # Times are those of the run's own events.
    events = [event for report in reports for event in report.events]
    mine = [event for event in events if event.visit == TURN]
    lost = [event for event in mine if event.event == "lost"]
    taken = [event for event in mine if event.event == "taken over"]
    equal = same_bits(reports, replayed)
    if not lost:
        moved = [f"node {e.node} {e.event}" for e in events if e.event in ("left", "joined")]
        return Seen(case.name, None, None, ", ".join(moved), equal)
    detect_s = lost[0].time_s - struck[0].at_s
    take_over_s = taken[0].time_s - lost[0].time_s if taken else None
    return Seen(case.name, detect_s, take_over_s, lost[0].cause, equal)


def drawn(seed: int, turns: int) -> str:
    """A schedule of faults, as `ray_faults` takes it: one to three visits, each with a kind."""
    rng = np.random.default_rng(seed)
    kinds = ("nan", "shape", "checksum", "stale", "die")
    struck = rng.permutation(turns)[: int(rng.integers(1, 4))]
    words = [f"{kinds[int(rng.integers(len(kinds)))]}@{turn}" for turn in sorted(struck)]
    return ",".join(words)


def schedule_replays(seed: int, base: ImageConfig, choice: Choice) -> tuple[str, bool]:
    """A drawn schedule, and whether its run and the replay by flags end with the same bits."""
    turns = loop.planned(loop.prepare(base))[-1][-1].turn + 1
    faults = drawn(seed, turns)
    mode = ("client_server", "peer_to_peer")[seed % 2]
    config = dataclasses.replace(base, seed=seed, mode=mode)
    with _asked(faults):
        reports = trained(config, choice)
    struck = ",".join(word.partition("@")[2] + "@0" for word in faults.split(","))
    flagged = dataclasses.replace(config, interrupt=struck, interruption="lost")
    return faults, same_bits(reports, trained(flagged, HERE))


FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "", "JSON file of what was seen", flag_values=FLAGS)
flags.DEFINE_integer("schedules", 0, "drawn schedules instead of the matrix", flag_values=FLAGS)


def main(arguments: Sequence[str]) -> int:
    """Prints a line a fault; the exit code is 1 where bits differ."""
    FLAGS(arguments)
    choice = Choice("ray", actors=ACTORS, deadline_s=60.0)
    rows: list[dict[str, Any]] = []
    with around(choice), tempfile.TemporaryDirectory() as folder:
        base = ImageConfig(dataset=write_images(Path(folder)), **SIZES)
        for seed in range(FLAGS.schedules):
            faults, equal = schedule_replays(seed, base, choice)
            rows.append({"seed": seed, "faults": faults, "same_bits": equal})
            print(f"seed {seed}: {faults}: {_said(equal)}", flush=True)
        for case in CASES if not FLAGS.schedules else ():
            seen = carried_out(case, base, choice)
            rows.append(seen._asdict())
            times = f"{_seconds(seen.detect_s)} noticed, {_seconds(seen.take_over_s)} taken over"
            print(f"{seen.name}: {times}, {_said(seen.same_bits)}: {seen.cause}", flush=True)
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["same_bits"] for row in rows) else 1


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _said(equal: bool) -> str:
    return "same bits" if equal else "OTHER BITS"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
