"""Where a run's schedule stands, and the round that comes next: at the nodes that are there."""

from collections.abc import Mapping
from typing import NamedTuple

from snake_jax.algorithms import pool, schedule
from snake_jax.algorithms.pool import Absent
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Ending, Round, Rounds
from snake_jax.nodes import clock
from snake_jax.nodes.presence import Moment
from snake_jax.runs import rates
from snake_jax.runs.carry import Carried
from snake_jax.runs.rates import MeasuredRate, Plans
from snake_jax.runs.setup import Setup
from snake_jax.runs.state import State


class Coming(NamedTuple):
    """A round that is to be carried out.

    Attributes:
      visits: at the nodes that have them; None: there is no further round.
      plans: those so far, with that of its cycle.
      absent: its visits whose nodes are away by the clock.
    """

    visits: Round | None
    plans: Plans
    absent: tuple[Absent, ...] = ()


class Begun(NamedTuple):
    """The schedule where a state stands.

    Attributes:
      rounds: the generator, after the finished ones.
      coming: the next round.
      finished: the rounds before it, as they were.
      unfinished: `{turn: node}` of visits of the last of them that did not end as planned.
    """

    rounds: Rounds
    coming: Coming
    finished: list[Round]
    unfinished: dict[int, int]


def begun(setup: Setup, state: State) -> Begun:
    """The schedule where the state stands.

    It is a generator, so the finished rounds are gone through again, each told how it went.
    """
    course = setup.algorithm.rounds(setup.plan)
    times_s = (*state.begun_s, state.clock_s)
    away = pool.gone(setup.plan, state.moves, 0)
    coming = _manned(setup, setup.plan, away, next(course), times_s[0], state.plans)
    endings: tuple[Ending, ...] = ()
    finished = []
    for number in range(state.rounds):
        assert coming.visits is not None, "a checkpoint has no more rounds than its schedule"
        finished.append(coming.visits)
        events = state.failures.get(number, ("",) * len(coming.visits))
        endings = tuple(map(Ending, coming.visits, events))
        # Without the clock's times all rounds are as if they began at once.
        now_s = times_s[min(number + 1, len(times_s) - 1)]
        coming = following(setup, course, endings, state, number + 1, {}, now_s)
    return Begun(course, coming, finished, unfinished(endings))


def following(
    setup: Setup,
    course: Rounds,
    endings: tuple[Ending, ...],
    state: State,
    rounds: int,
    measured: Mapping[int, MeasuredRate],
    now_s: float,
) -> Coming:
    """The round after one that went so; none after the last, and where all nodes have left.

    Args:
      setup: of the run.
      course: its schedule.
      endings: of the round.
      state: its moves of nodes and its plans are looked at.
      rounds: that are finished.
      measured: so far; not looked at where the cycle has a plan.
      now_s: simulated seconds when it begins.
    """
    try:
        visits = course.send(endings)
    except StopIteration:
        return Coming(None, state.plans)
    cycle = endings[0].visit.cycle
    plans = rates.plans_after(setup, state.plans, measured, cycle, visits[0].cycle)
    visits = rates.replanned(setup, plans, visits)
    away = pool.gone(setup.plan, state.moves, rounds)
    plan = rates.plan_of(setup, plans, visits[0].cycle)
    return _manned(setup, plan, away, visits, now_s, plans)


def _manned(
    setup: Setup, plan: Plan, away: frozenset[int], planned: Round, now_s: float, plans: Plans
) -> Coming:
    """A planned round at the nodes that are there, by flags and by the clock if it is followed."""
    if not setup.config.follow_clock:
        return Coming(pool.manned(plan, away, planned) or None, plans)
    moment = Moment(setup.fleet, clock.trace_of(setup.config), now_s)
    visits = pool.manned(plan, away, planned, moment)
    return Coming(visits or None, plans, pool.absent(planned, visits, moment))


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
