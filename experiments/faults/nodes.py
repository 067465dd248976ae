"""What nodes that are processes can do wrong: a case of each, and schedules that are drawn.

Every fault strikes a run on a Ray cluster of this machine; then flags replay it in one process, and
both must end with the same bits.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.faults.runs import ACTORS, Seen, replay_of, same_bits, trained
from snake_jax.algorithms.visits import Order
from snake_jax.config import ImageConfig
from snake_jax.engines import ray_faults
from snake_jax.engines.choice import HERE, Choice
from snake_jax.engines.contract import Engine
from snake_jax.runs import loop

TURN = 1
"""The visit that a fault strikes."""
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
_LONG = {"local_epochs": 4000}
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


@contextmanager
def _asked(fault: str) -> Iterator[None]:
    """Has nodes do this, as `ray_faults` reads it."""
    os.environ[ray_faults.VARIABLE] = fault
    try:
        yield
    finally:
        del os.environ[ray_faults.VARIABLE]


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
    replay = {**case.replay, **replay_of(reports)}
    replayed = trained(dataclasses.replace(config, **replay), HERE)

    # Times are those of the run's own events.
    events = [event for report in reports for event in report.events]
    mine = [event for event in events if event.visit == TURN]
    lost = [event for event in mine if event.event == "lost"]
    taken = [event for event in mine if event.event == "taken over"]
    equal = same_bits(reports, replayed)
    if not lost and (case.fault or case.strike):
        # The visit was over before: a case that did not happen shows nothing.
        return Seen(case.name, None, None, "it struck too late: nothing was lost", False)
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
