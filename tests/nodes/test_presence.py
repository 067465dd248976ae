"""Who is there at a moment of the clock, and until when."""

import math

import numpy as np
import pytest

from snake_jax.nodes import clock, presence
from snake_jax.nodes.clock import Faults
from snake_jax.nodes.fleet import EDGE_FIGURES, SERVER_FIGURES, Fleet
from snake_jax.nodes.presence import Leaving, Moment

# Free from 10 to 30 s and from 90 s over the period's end to 5 s; all day long, in two halves;
# without windows.
WINDOWS = (
    ((0.0, 5.0), (10.0, 30.0), (90.0, 100.0)),
    ((0.0, 50.0), (50.0, 100.0)),
    (),
)
FLEET = Fleet(tuple(EDGE_FIGURES._replace(windows=w) for w in WINDOWS), SERVER_FIGURES, 100.0)


def at(now_s, trace=None):
    return Moment(FLEET, trace or Faults(), now_s)


@pytest.mark.parametrize(
    ("now_s", "back_s"),
    [(0.0, 0.0), (5.0, 10.0), (4.9999, 10.0), (10.0, 10.0), (30.0, 90.0), (95.0, 95.0), (205, 210)],
)
def test_a_node_is_there_while_its_window_is_open(now_s, back_s):
    assert presence.back_s(at(now_s), 0) == back_s
    assert presence.is_there(at(now_s), 0) == (now_s == back_s)
    assert presence.is_there(at(now_s), 1)
    assert presence.is_there(at(now_s), 2)


def test_a_window_that_touches_the_next_is_one_and_who_is_always_free_never_leaves():
    assert presence.leaving(at(12.0), 0) == Leaving(30.0, False)
    assert presence.leaving(at(95.0), 0) == Leaving(105.0, False)
    assert presence.leaving(at(12.0), 1) == presence.leaving(at(12.0), 2) == (math.inf, False)


def test_who_has_dropped_is_away_until_it_is_back_and_who_drops_next_leaves_then(monkeypatch):
    absences = np.array([[12.0, 14.0], [20.0, 95.0], [1e6, 1e6 + 1]])
    monkeypatch.setattr(clock, "_absences", lambda trace, node, count: absences)
    trace = Faults(drop_rate_per_hour=1.0)
    assert presence.leaving(at(10.0, trace), 0) == Leaving(12.0, True)
    assert not presence.is_there(at(12.0, trace), 0)
    assert presence.back_s(at(12.0, trace), 0) == 14.0
    assert presence.leaving(at(14.0, trace), 0) == Leaving(20.0, True)
    assert presence.back_s(at(21.0, trace), 0) == 95.0


def test_a_visit_is_done_when_its_window_lets_it_and_drops_to_come_are_not_known(monkeypatch):
    absences = np.array([[12.0, 14.0], [20.0, 95.0], [1e6, 1e6 + 1]])
    monkeypatch.setattr(clock, "_absences", lambda trace, node, count: absences)
    trace = Faults(drop_rate_per_hour=1.0)
    assert presence.done_s(at(10.0), 0, 15.0) == 25.0
    assert presence.done_s(at(10.0), 0, 25.0) == 10 + 25 + 60
    assert presence.done_s(at(10.0, trace), 0, 15.0) == 25.0
    assert presence.done_s(at(12.5, trace), 0, 6.0) == 20.0


def test_the_mean_of_standing_still_is_that_over_all_starts():
    assert presence.mean_away_s(FLEET, 2, 10.0) == 0.0
    assert presence.mean_away_s(FLEET, 1, 10.0) == 0.0
    # A visit of no length waits (b - a)^2 / 2 in the mean over a gap from a to b, over the period.
    exact = (5**2 / 2 + 60**2 / 2) / 100
    assert presence.mean_away_s(FLEET, 0, 0.0) == pytest.approx(exact, rel=0.05)
    assert presence.mean_away_s(FLEET, 0, 30.0) > exact
