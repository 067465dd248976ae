"""Schedules: orders, cycles, nodes, learning rates, interruptions."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snake_jax.algorithms.base import planned_rounds
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan, interruptions, learning_rate, serpentine
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError

LAYERS = tuple(f"l{i}" for i in range(1, 12))


def _plan(always=(LAYERS[0], LAYERS[-1]), **flags):
    return Plan(ImageConfig(**flags), LAYERS, always)


def _visits(plan, algorithm="snake"):
    rounds = planned_rounds(ALGORITHMS[algorithm], plan)
    return list(itertools.chain.from_iterable(rounds))


def test_the_papers_schedule_nine_middle_layers_over_nine_nodes():
    visits = _visits(_plan(nodes=9, cycles=2))
    assert [v.layers for v in visits[:9]] == [("l1", f"l{i}", "l11") for i in range(2, 11)]
    assert [v.node for v in visits] == list(range(9)) * 2
    assert [v.cycle for v in visits] == [0] * 9 + [1] * 9
    assert [v.turn for v in visits] == list(range(18))


@pytest.mark.parametrize(
    ("order", "expected"), [("sequential", range(2, 11)), ("reverse", range(10, 1, -1))]
)
def test_orders(order, expected):
    assert [a[1] for a in serpentine(_plan(order=order), 0)] == [f"l{i}" for i in expected]


def test_random_order_is_seeded_and_new_in_every_cycle():
    plan = _plan(order="random", seed=3)
    assert serpentine(plan, 0) == serpentine(plan, 0)
    assert serpentine(plan, 0) != serpentine(plan, 1)
    assert serpentine(plan, 0) != serpentine(_plan(order="random", seed=4), 0)


@given(
    nodes=st.integers(1, 13),
    size=st.integers(1, 12),
    order=st.sampled_from(["sequential", "random", "reverse"]),
    always=st.sets(st.sampled_from(LAYERS)),
    seed=st.integers(0, 3),
)
def test_every_layer_outside_always_is_trained_once_a_cycle_and_nodes_take_turns(
    nodes, size, order, always, seed
):
    always = tuple(name for name in LAYERS if name in always)
    plan = _plan(always, nodes=nodes, layers_per_visit=size, order=order, seed=seed, cycles=2)
    visits = _visits(plan)
    for cycle in (0, 1):
        trained = []
        for visit in visits:
            if visit.cycle == cycle:
                trained += [name for name in visit.layers if name not in always]
        assert sorted(trained) == sorted(set(LAYERS) - set(always))
    for visit in visits:
        assert set(always) <= set(visit.layers)
        assert list(visit.layers) == sorted(visit.layers, key=LAYERS.index)
    assert [v.node for v in visits] == [i % nodes for i in range(len(visits))]


def test_the_learning_rate_changes_between_cycles_only():
    halved = ImageConfig(learning_rate=0.1, lr_decay=0.5)
    assert [learning_rate(halved, cycle) for cycle in (0, 1, 2)] == [0.1, 0.05, 0.025]
    constant = ImageConfig(learning_rate=0.1, lr_schedule="constant")
    assert learning_rate(constant, 7) == 0.1
    config = ImageConfig(learning_rate=0.1, lr_schedule="cosine", cycles=4)
    cosine = [learning_rate(config, cycle) for cycle in range(4)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[0] == 0.1
    assert cosine[2] == pytest.approx(0.05)
    visits = ImageConfig(learning_rate=0.1, lr_schedule="cosine_visits", cycles=2)
    assert [learning_rate(visits, 0, done) for done in (0.0, 0.5)] == pytest.approx([0.1, 0.05])


def test_an_interrupted_visit_goes_on_at_the_next_node():
    plan = _plan(nodes=9, cycles=1, interrupt="4@0.25")
    stopped, taken = _visits(plan)[4:6]
    assert (stopped.node, stopped.share, stopped.event) == (4, (0.0, 0.25), "interrupted")
    assert (taken.node, taken.share, taken.event) == (5, (0.25, 1.0), "takeover")
    assert stopped.layers == taken.layers
    assert stopped.turn == taken.turn == 4
    assert [v.turn for v in _visits(plan)] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]


def test_a_lost_visit_starts_again_elsewhere():
    stopped, taken = _visits(_plan(nodes=3, cycles=1, interrupt="2", interruption="lost"))[2:4]
    assert (stopped.share, stopped.event) == ((0.0, 0.5), "lost")
    assert (taken.node, taken.share) == (0, (0.0, 1.0))


def test_random_faults_are_seeded_and_about_as_frequent_as_said():
    visits = _visits(_plan(nodes=9, cycles=50, fault_rate=0.3, seed=1))
    faults = sum(v.event == "interrupted" for v in visits)
    assert visits == _visits(_plan(nodes=9, cycles=50, fault_rate=0.3, seed=1))
    assert 0.22 < faults / 450 < 0.38  # four standard deviations around 0.3
    assert sum(v.event == "takeover" for v in visits) == faults


@pytest.mark.parametrize("text", ["x", "3@1.5", "-1", "1;2", "3@", "3,", "2@nan"])
def test_malformed_interruptions_are_refused(text):
    with pytest.raises(UserError, match="want VISIT or VISIT@SHARE"):
        interruptions(ImageConfig(interrupt=text))


def test_a_visit_is_interrupted_once_or_not():
    with pytest.raises(UserError, match="names a visit twice"):
        interruptions(ImageConfig(interrupt="1,1@0.3"))


def test_a_takeover_needs_a_second_node():
    with pytest.raises(UserError, match="set --nodes to at least 2"):
        interruptions(ImageConfig(nodes=1, fault_rate=0.1))


def test_fedavg_samples_nodes_without_replacement_anew_each_round():
    plan = _plan(nodes=20, cycles=30, nodes_per_round=4)
    rounds = planned_rounds(ALGORITHMS["fedavg"], plan)
    picked = []
    for visits in rounds:
        nodes = tuple(visit.node for visit in visits)
        assert len(set(nodes)) == 4
        picked.append(nodes)
    assert len(set(picked)) > 20
    assert set().union(*picked) == set(range(20))


def test_sequential_visits_every_node_once_a_cycle_with_all_layers():
    visits = _visits(_plan(nodes=4, cycles=2), "sequential")
    assert [v.node for v in visits] == [0, 1, 2, 3] * 2
    assert {v.layers for v in visits} == {LAYERS}
