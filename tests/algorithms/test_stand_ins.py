"""Who takes a visit of another's: idle, there, able, not avoided, and the soonest done."""

import pytest

from snake_jax.algorithms import pool, stand_ins
from snake_jax.algorithms.base import planned_rounds
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Ending, Visit
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError

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
