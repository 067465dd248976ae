"""What happens to nodes: lines of events.jsonl, with their cause.

`snake_jax.report.events` reads them.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from snake_jax.algorithms import pool, schedule
from snake_jax.algorithms.pool import Absent, Move
from snake_jax.algorithms.schedule import TAKEOVER, UNFINISHED, WAITED, Plan
from snake_jax.algorithms.visits import Lost, Outcome, Round, Visit
from snake_jax.config import RunConfig
from snake_jax.engines.contract import Happened

ADMITTED, REFUSED = "admitted", "refused"
JOINED, LEFT = "joined", "left"
LOST, INTERRUPTED, TAKEN_OVER, WAITS = "lost", "interrupted", "taken over", "waits"
RESTARTED = "restarted"
ENDED = "ended"
AWAY = "away"


_LISTED = 100
"""Of more nodes than that it is said in one event that they are admitted."""


class Event(NamedTuple):
    """Something that happened to a node, or to the run.

    Attributes:
      time_s: when it was noted, in seconds since 1970.
      round: how many rounds were finished before the one that it belongs to.
      visit: the turn that it concerns; None: none.
      node: whom it happened to; None: the run.
      event: what; one of the names above.
      cause: why, in words.
    """

    time_s: float
    round: int
    visit: int | None
    node: int | None
    event: str
    cause: str


def to_row(event: Event) -> dict[str, Any]:
    """A line of events.jsonl."""
    return event._asdict()


def at_start(plan: Plan, about: Sequence[str]) -> list[Event]:
    """Who is admitted to a run, and who is refused.

    Args:
      plan: of the run.
      about: what is said of each node.
    """
    there = pool.present(plan, frozenset(plan.refused), 0)
    if len(there) > _LISTED:
        events = [_now(0, None, None, ADMITTED, f"{len(there)} nodes")]
        for node, why in plan.refused.items():
            events.append(_now(0, None, node, REFUSED, why))
        return events
    events = []
    for node in range(plan.config.nodes):
        if node in plan.refused:
            events.append(_now(0, None, node, REFUSED, plan.refused[node]))
        elif node in there:
            events.append(_now(0, None, node, ADMITTED, about[node] if about else ""))
    return events


def of_absent(number: int, absent: Sequence[Absent]) -> list[Event]:
    """Visits whose nodes are away by the clock.

    Args:
      number: of the round, from 0.
      absent: of it.
    """
    events = []
    for visit, until_s, by in absent:
        what = "its visit is left out"
        if by == visit.node:
            what = "its visit waits, since nobody who is there can take it"
        elif by is not None:
            what = f"node {by} has its visit"
        cause = f"by the clock until {until_s:,.0f} s: {what}"
        events.append(_now(number, visit.turn, visit.node, AWAY, cause))
    return events


def of_round(
    config: RunConfig, number: int, visits: Round, lost: Sequence[Lost], before: Mapping[int, int]
) -> list[Event]:
    """Visits of a round that were lost, interrupted, or taken over from others.

    Args:
      config: of the run.
      number: of the round, from 0.
      visits: of it.
      lost: those that did not come back.
      before: `{turn: node}` of visits that were not finished, whose take-over this may be.
    """
    events = []
    why = {one.visit: one.why for one in lost}
    for visit in visits:
        if visit.event == TAKEOVER:
            cause = _from_whom(visit, before)
            events.append(_now(number, visit.turn, visit.node, TAKEN_OVER, cause))
        if visit.event == WAITED:
            goes_on = "its own goes on"
            if before.get(visit.turn, visit.node) != visit.node:
                goes_on = f"node {visit.node} goes on once it is there"
            cause = f"no other node can take it; {goes_on}, from {_start(visit)}"
            events.append(_now(number, visit.turn, visit.node, WAITS, cause))
        if visit in why:
            events.append(_now(number, visit.turn, visit.node, LOST, why[visit]))
        elif visit.event in UNFINISHED:
            kind = LOST if visit.event == "lost" else INTERRUPTED
            by = "--interrupt or --fault_rate"
            if schedule.share_struck(config, visit.turn) is None:
                by = "its node left by the clock"
            cause = f"{by}, after {visit.share[1]:.2g} of its steps"
            events.append(_now(number, visit.turn, visit.node, kind, cause))
    return events


def _from_whom(visit: Visit, before: Mapping[int, int]) -> str:
    start = _start(visit)
    if visit.turn not in before:
        return f"from {start}"
    return f"from node {before[visit.turn]}, from {start}"


def of_ends(number: int, outcomes: Sequence[Outcome]) -> list[Event]:
    """Visits of a round that ended before their last epoch."""
    events = []
    for outcome in outcomes:
        if outcome.ended:
            visit = outcome.visit
            events.append(_now(number, visit.turn, visit.node, ENDED, outcome.ended))
    return events


def of_run_end(number: int, turn: int, why: str) -> Event:
    """The run is over before its planned rounds."""
    return _now(number, turn, None, ENDED, why)


def _start(visit: Visit) -> str:
    """What a visit that was begun before goes on from."""
    begun = visit.share[0]
    if begun:
        return f"what was handed in after {begun:.2g} of the steps"
    return "the layers as last merged"


def of_moves(moves: Sequence[Move], turn: int) -> list[Event]:
    """Nodes that leave or join after a round.

    Args:
      moves: decided after it.
      turn: of the round.
    """
    events = []
    for move in moves:
        kind = JOINED if move.joins else LEFT
        events.append(_now(move.rounds - 1, turn, move.node, kind, move.why))
    return events


def of_timetable(plan: Plan, number: int, turn: int, following: int) -> list[Event]:
    """Nodes that flags have leave or join between a round and the next.

    Args:
      plan: of the run.
      number: of the round, from 0.
      turn: of its visits.
      following: the turn of the next round.
    """
    before = pool.away_in(plan.config, turn)
    after = pool.away_in(plan.config, following)
    events = []
    for node in sorted(before ^ after):
        if node not in plan.refused:
            kind, flag = (LEFT, "leave") if node in after else (JOINED, "join")
            cause = f"--{flag}={getattr(plan.config, flag)}"
            events.append(_now(number, following, node, kind, cause))
    return events


def of_engine(number: int, turn: int, happened: Sequence[Happened]) -> list[Event]:
    """What an engine says of its nodes.

    Args:
      number: of the round, from 0.
      turn: of its visits.
      happened: since it was last asked.
    """
    events = []
    for one in happened:
        events.append(_now(number, turn, one.node, one.event, one.cause))
    return events


def gone_on(rounds: int) -> Event:
    """The run was started again and goes on."""
    return _now(rounds, None, None, RESTARTED, f"the run goes on after round {rounds}")


def _now(number: int, turn: int | None, node: int | None, event: str, cause: str) -> Event:
    return Event(time.time(), number, turn, node, event, cause)
