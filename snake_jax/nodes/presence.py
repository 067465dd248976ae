"""Who is there at a moment of the simulated time, and until when: windows of the day and drops.

What is known ahead and what is not are kept apart. Windows are: whoever gives out a visit can weigh
them. Drops are not: a visit finds out when its node is gone. How long a node that has dropped stays
away is drawn by the trace, and taken to be told by the node.
"""

import math
from typing import NamedTuple

from snake_jax.nodes import clock
from snake_jax.nodes.clock import Faults
from snake_jax.nodes.fleet import Fleet

# Times are sums of spans, which differ in the last bits from the times that they should be: who is
# there for less than this is away.
_INSTANT_S = 1e-3
_STARTS = 48  # of a visit in the fleet's period, for the mean over them: every half hour of a day


class Moment(NamedTuple):
    """A moment of a run's simulated time.

    Attributes:
      fleet: what nodes can do, and their windows.
      trace: of drops.
      now_s: seconds since the start of the run.
    """

    fleet: Fleet
    trace: Faults
    now_s: float


def back_s(moment: Moment, node: int) -> float:
    """When a node is there, from this moment on: `now_s` where it is there already."""
    # From an end of absence to the next, until no other absence is on.
    time_s = moment.now_s
    while True:
        soon_s = time_s + _INSTANT_S
        opens_s, _ = clock.window(moment.fleet.nodes[node], moment.fleet.period_s, soon_s)
        drop_s, rejoin_s = clock.absence(moment.trace, node, soon_s)
        there_s = max(opens_s, rejoin_s if drop_s <= soon_s else soon_s)
        if there_s <= soon_s:
            return time_s
        time_s = there_s


def is_there(moment: Moment, node: int) -> bool:
    """Whether a node is there at this moment."""
    return back_s(moment, node) <= moment.now_s


class Leaving(NamedTuple):
    """When a node that is there will be gone, and whether it drops or its window closes."""

    at_s: float
    drops: bool


def leaving(moment: Moment, node: int) -> Leaving:
    """The end of the stretch in which a node is there; infinite where it always is."""
    now_s = moment.now_s + _INSTANT_S
    drop_s, _ = clock.absence(moment.trace, node, now_s)
    _, closes_s = clock.window(moment.fleet.nodes[node], moment.fleet.period_s, now_s)
    # A window that touches the next one, as over midnight, is one; all day long, it never closes.
    while closes_s < moment.now_s + moment.fleet.period_s:
        opens_s, next_closes_s = clock.window(
            moment.fleet.nodes[node], moment.fleet.period_s, closes_s
        )
        if opens_s > closes_s:
            break
        closes_s = next_closes_s
    else:
        closes_s = math.inf
    return Leaving(min(drop_s, closes_s), drop_s < closes_s)


def done_s(moment: Moment, node: int, active_s: float) -> float:
    """When a visit of so much activity would be done at a node, as far as it is known now.

    It starts when the node is back, and stands still while its window is closed.
    """
    start_s = back_s(moment, node)
    away_s, _ = clock.away(moment.fleet, Faults(), node, start_s, active_s)
    return start_s + away_s + active_s


def mean_away_s(fleet: Fleet, node: int, active_s: float) -> float:
    """Seconds that a visit of so much activity stands still, whenever in the period it begins.

    The mean over starts at even distances: for plans that are made before it is known when.
    """
    if not fleet.nodes[node].windows:
        return 0.0
    total_s = 0.0
    for number in range(_STARTS):
        start_s = fleet.period_s * number / _STARTS
        away_s, _ = clock.away(fleet, Faults(), node, start_s, active_s)
        total_s += away_s
    return total_s / _STARTS
