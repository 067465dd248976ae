"""Where a run's schedule stands, and the round that comes next: at the nodes that are there."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax.algorithms import pool, schedule
from snake_jax.algorithms.pool import Move
from snake_jax.algorithms.visits import Ending, Round, Rounds
from snake_jax.runs import rates
from snake_jax.runs.carry import Carried
from snake_jax.runs.rates import Measured, Plans
from snake_jax.runs.setup import Setup
from snake_jax.runs.state import State


class Begun(NamedTuple):
    """The schedule where a state stands.

    Attributes:
      rounds: the generator, after the finished ones.
      visits: the next round; None where all are finished.
      finished: the rounds before it, as they were.
      unfinished: `{turn: node}` of visits of the last of them that did not end as planned.
    """

    rounds: Rounds
    visits: Round | None
    finished: list[Round]
    unfinished: dict[int, int]


def begun(setup: Setup, state: State) -> Begun:
    """The schedule where the state stands.

    It is a generator, so the finished rounds are gone through again, each told how it went.
    """
    course = setup.algorithm.rounds(setup.plan)
    away = pool.gone(setup.plan, state.moves, 0)
    visits: Round | None = pool.manned(setup.plan, away, next(course))
    endings: tuple[Ending, ...] = ()
    finished = []
    for number in range(state.rounds):
        assert visits is not None, "a checkpoint has no more rounds than its schedule"
        finished.append(visits)
        events = state.failures.get(number, ("",) * len(visits))
        endings = tuple(map(Ending, visits, events))
        visits, _ = following(setup, course, endings, state.moves, number + 1, state.plans, {})
    return Begun(course, visits, finished, unfinished(endings))


def following(
    setup: Setup,
    course: Rounds,
    endings: tuple[Ending, ...],
    moves: Sequence[Move],
    rounds: int,
    plans: Plans,
    measured: Mapping[int, Measured],
) -> tuple[Round | None, Plans]:
    """The round after one that went so (None after the last, and where all nodes have left), and
    the plans with that of its cycle.

    Args:
      setup: of the run.
      course: its schedule.
      endings: of the round.
      moves: of nodes so far.
      rounds: that are finished.
      plans: so far, see `rates`.
      measured: so far; not looked at where the cycle has a plan.
    """
    try:
        visits = course.send(endings)
    except StopIteration:
        return None, plans
    cycle = endings[0].visit.cycle
    plans = rates.plans_after(setup, plans, measured, cycle, visits[0].cycle)
    visits = rates.replanned(setup, plans, visits)
    away = pool.gone(setup.plan, moves, rounds)
    plan = rates.plan_of(setup, plans, visits[0].cycle)
    return pool.manned(plan, away, visits) or None, plans


def endings_of(visits: Round, carried: Carried) -> tuple[Ending, ...]:
    """How the visits of a round went, for the method."""
    gone = {lost.visit for lost in carried.lost}
    found = []
    for visit in visits:
        event = visit.event if visit.event in schedule.UNFINISHED else ""
        found.append(Ending(visit, "lost" if visit in gone else event))
    return tuple(found)


def unfinished(endings: tuple[Ending, ...]) -> dict[int, int]:
    """`{turn: node}` of visits that did not end as planned."""
    return {ending.visit.turn: ending.visit.node for ending in endings if ending.event}


def with_failures(state: State, endings: tuple[Ending, ...]) -> Mapping[int, tuple[str, ...]]:
    """The failures of all finished rounds, and of the one after them, which ended so."""
    events = tuple(ending.event for ending in endings)
    return {**state.failures, state.rounds: events} if any(events) else state.failures
