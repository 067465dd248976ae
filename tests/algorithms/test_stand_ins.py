"""Who takes a visit of another's: idle, there, able, not avoided, and the soonest done."""

import pytest

from snake_jax.algorithms import pool, stand_ins
from snake_jax.algorithms.base import planned_rounds
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Ending, Visit
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.nodes.clock import Faults
from snake_jax.nodes.fleet import EDGE_FIGURES, SERVER_FIGURES, Fleet
from snake_jax.nodes.presence import Moment

LAYERS = ("a", "b", "c", "d")
GROUPS = [(name,) for name in LAYERS]


def plan_of(seconds, visitors=(), **flags):
    """A plan in which a visit takes so long at each node; None: it cannot hold it."""
    flags = {"nodes": len(seconds), "cycles": 1, **flags}
    able = {node: value for node, value in enumerate(seconds) if value is not None}
    assigned = dict(zip(GROUPS, visitors, strict=False))
    config = ImageConfig(**flags)
    return Plan(config, LAYERS, (), assigned, dict.fromkeys(GROUPS, able))


def takes_over(plan, node=0, away=frozenset(), event="lost"):
    """Node and event of the visit that follows one that was not finished."""
    course = ALGORITHMS["snake"].rounds(plan)
    (first,) = next(course)
    visits = course.send((Ending(first._replace(node=node), event),))
    (found,) = pool.manned(plan, away, visits)
    return found.node, found.event


def test_the_fastest_that_is_there_and_can_hold_it_takes_over():
    plan = plan_of([1.0, 9.0, 3.0, None, 2.0])
    assert takes_over(plan) == (4, "takeover")
    assert takes_over(plan, away=frozenset({4})) == (2, "takeover")
    assert takes_over(plan, node=4) == (0, "takeover")
    assert takes_over(plan_of([1.0, 9.0, 3.0, None, 2.0], stand_in="next")) == (1, "takeover")


def test_equals_take_it_in_turn():
    plan = plan_of([5.0] * 4)
    assert [takes_over(plan, node=node)[0] for node in range(4)] == [1, 2, 3, 0]


def test_a_node_that_the_assignment_avoided_takes_nothing_over():
    # Four visits for three nodes, and node 2, here said to be fast, was given none of them.
    plan = plan_of([5.0, 7.0, 1.0], visitors=(0, 1, 0, 1))
    assert stand_ins.avoided(plan) == {2}
    assert takes_over(plan) == (1, "takeover")
    assert takes_over(plan, away=frozenset({1})) == (0, "waited")


def test_where_there_are_fewer_visits_than_nodes_who_has_none_is_the_second_choice():
    plan = plan_of([5.0, 7.0, 1.0, 6.0, 2.0], visitors=(0, 1, 0, 1))
    assert stand_ins.avoided(plan) == frozenset()
    assert takes_over(plan) == (1, "takeover")
    assert takes_over(plan, away=frozenset({1})) == (2, "takeover")


def test_a_visit_that_nobody_else_can_hold_waits_for_its_own_node_and_goes_on():
    plan = plan_of([5.0, None, None])
    assert takes_over(plan) == (0, "waited")
    rounds = planned_rounds(ALGORITHMS["snake"], plan_of([5.0, None, None], interrupt="0@0.25"))
    stopped, waited, *_ = (visit for visits in rounds for visit in visits)
    assert (stopped.event, stopped.share) == ("interrupted", (0.0, 0.25))
    assert (waited.event, waited.share, waited.node) == ("waited", (0.25, 1.0), 0)


def test_a_visit_that_waits_and_is_lost_again_and_again_ends_the_run_in_a_line():
    plan = plan_of([5.0, None])
    course = ALGORITHMS["snake"].rounds(plan)
    visits = next(course)
    for _ in range(4):
        visits = pool.manned(plan, frozenset(), course.send((Ending(visits[0], "lost"),)))
    lost = (Ending(visits[0], "lost"),)
    with pytest.raises(UserError, match="was lost 4 times at a node that no other can stand in"):
        course.send(lost)


def test_the_visits_of_a_node_that_left_go_to_the_assigned_ones_and_to_others_when_all_left():
    plan = plan_of([5.0, 7.0, 1.0], visitors=(0, 1, 0, 1))
    (found,) = pool.manned(plan, frozenset({0}), (Visit(0, 0, 0, ("a",)),))
    assert found.node == 1
    (found,) = pool.manned(plan, frozenset({0, 1}), (Visit(0, 0, 0, ("a",)),))
    assert found.node == 2
    nobody = plan_of([5.0, 7.0, None])
    with pytest.raises(UserError, match=r"none of the nodes that are there \(2\) can hold it"):
        pool.manned(nobody, frozenset({0, 1}), (Visit(0, 0, 0, ("a",)),))


# By the clock


def moment_of(windows, now_s=0.0):
    """Nodes that are free in these stretches of a period of 100 s; empty: always."""
    nodes = tuple(EDGE_FIGURES._replace(windows=each) for each in windows)
    return Moment(Fleet(nodes, SERVER_FIGURES, 100.0), Faults(), now_s)


def manned(plan, visits, moment):
    return [(v.node, v.event, v.share) for v in pool.manned(plan, frozenset(), visits, moment)]


ONE = (Visit(0, 0, 0, ("a",)),)
WHOLE = (0.0, 1.0)


def test_a_node_whose_window_is_closed_is_skipped_for_the_one_that_is_done_the_soonest():
    plan = plan_of([5.0, 9.0, 3.0], follow_clock=True)
    assert manned(plan, ONE, moment_of([(), (), ()])) == [(0, "", WHOLE)]
    away = moment_of([((50.0, 60.0),), (), ()])
    assert manned(plan, ONE, away) == [(2, "", WHOLE)]
    assert pool.absent(ONE, pool.manned(plan, frozenset(), ONE, away), away) == (
        pool.Absent(ONE[0], 50.0, 2),
    )
    # Node 2 is faster but would have to stop at 1 s and to go on a period later.
    closing = moment_of([((50.0, 60.0),), (), ((0.0, 1.0),)])
    assert manned(plan, ONE, closing) == [(1, "", WHOLE)]


def test_where_nobody_is_there_the_visit_waits_for_who_is_done_the_soonest():
    plan = plan_of([5.0, 9.0, 3.0], follow_clock=True)
    night = moment_of([((50.0, 60.0),), ((52.0, 99.0),), ((54.0, 99.0),)])
    assert manned(plan, ONE, night) == [(0, "waited", WHOLE)]
    later = moment_of([((70.0, 80.0),), ((52.0, 99.0),), ((54.0, 99.0),)])
    assert manned(plan, ONE, later) == [(2, "waited", WHOLE)]
    assert pool.absent(ONE, pool.manned(plan, frozenset(), ONE, night), night)[0].by == 0


def test_a_visit_that_its_node_leaves_is_cut_there_and_goes_on_elsewhere():
    windows = [((0.0, 2.0),), (), ()]
    plan = plan_of([5.0, 9.0, 3.0], follow_clock=True)
    (cut,) = pool.manned(plan, frozenset(), ONE, moment_of(windows))
    assert (cut.node, cut.event, cut.share) == (0, "interrupted", (0.0, 0.4))
    lost = plan_of([5.0, 9.0, 3.0], follow_clock=True, interruption="lost")
    assert manned(lost, ONE, moment_of(windows)) == [(0, "lost", (0.0, 0.4))]
    # Who takes over is not cut again: its visit stands still, so the turn ends.
    taken = (cut._replace(share=(0.4, 1.0), event="takeover"),)
    brief = [((0.0, 2.0),), ((2.0, 3.0),), ((70.0, 99.0),)]
    assert manned(plan, taken, moment_of(brief, 2.0)) == [(1, "takeover", (0.4, 1.0))]
    alone = plan_of([5.0, None, None], follow_clock=True)
    assert manned(alone, taken, moment_of(windows, 2.0)) == [(0, "waited", (0.4, 1.0))]


def test_a_round_of_several_is_without_those_whose_windows_are_closed():
    plan = Plan(ImageConfig(nodes=3, follow_clock=True, algorithm="fedavg"), LAYERS, ())
    visits = tuple(Visit(0, 0, node, LAYERS) for node in range(3))
    one_away = moment_of([(), ((50.0, 60.0),), ()])
    assert [node for node, *_ in manned(plan, visits, one_away)] == [0, 2]
    found = pool.absent(visits, pool.manned(plan, frozenset(), visits, one_away), one_away)
    assert [(each.visit.node, each.by) for each in found] == [(1, None)]
    night = moment_of([((50.0, 60.0),), ((40.0, 60.0),), ((70.0, 99.0),)])
    assert manned(plan, visits, night) == [(1, "waited", WHOLE)]
