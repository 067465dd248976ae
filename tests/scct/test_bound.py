"""The wait-and-see bound against published figures, against every split point tried, and against
the compiled solver, which finds its optimum another way.
"""

import dataclasses

import numpy as np
import pytest

from snake_jax.scct import bound, drawing, large, latency, scenario, shares, small
from tests.scct.small_scenarios import (
    CASES,
    already_split,
    contested,
    edge_of,
    of_few_layers,
    value_s,
    with_edge_layers,
    with_memory_for_all,
)

EDGES = (3.12e14, 1e13, 1e12)


@pytest.mark.parametrize("name", CASES)
def test_the_bounds_of_the_four_cases_are_the_published_ones_and_what_must_move(name):
    case = CASES[name]
    problem = scenario.parsed(case["scenario"])
    found = bound.wait_and_see(problem)
    # The published ones take moving for nothing, as it is here: each device holds what it may keep.
    assert found.objective_s == pytest.approx(case["wait_and_see_bound_s"], rel=1e-9)
    assert found.objective_s <= case["optimum"]["objective_s"]


def test_the_bound_is_never_above_the_optimum():
    gaps = []
    for seed in range(50):
        problem = drawing.drawn(seed, 3, 9, 4, edge_of(EDGES[seed % 3]))
        problem = of_few_layers(problem, 6)
        if seed % 2:
            problem = already_split(problem, [1, 3, 2])
        if seed % 5 == 0:
            problem = with_edge_layers(problem, 9)
        optimum_s = large.solve(problem, "enumerate").objective_s
        bound_s = bound.wait_and_see(problem).objective_s
        gaps.append((optimum_s - bound_s) / optimum_s)
    assert min(gaps) >= 0
    # And it says something: it is met where samples agree, and near where memory does not bind.
    assert min(gaps) < 1e-11
    assert np.median(gaps) < 0.01


def test_split_points_that_leave_no_choice_have_the_latency_of_the_compiled_solver():
    for seed in range(12):
        problem = drawing.drawn(seed, 4, 16, 4, edge_of(EDGES[seed % 3]))
        largest = scenario.splits_that_fit(problem)
        # With devices that keep all layers among them, where the root alone may stall.
        splits = np.where(np.arange(4) % 2 == seed % 2, largest, 1 + seed % 3)
        alone = np.stack([splits, splits], axis=1)
        reached_s = value_s(problem, splits)
        found_s = bound.wait_and_see(problem, alone).objective_s
        assert found_s == pytest.approx(reached_s, rel=1e-11)
        assert found_s < reached_s


def test_subcarriers_all_go_to_the_one_channel_that_needs_them():
    problem = drawing.drawn(2, 3, 9, 4)
    for weak in range(3):
        # Three channels, two of them far better: seven of nine subcarriers for the third.
        factor = np.where(np.arange(3) == weak, 1e-6, 1e3)
        gain = problem.samples.gain.mean() * factor * np.ones((4, 1))
        samples = scenario.Samples(problem.samples.flops_per_s, gain)
        uneven = dataclasses.replace(problem, samples=samples)
        splits = np.array([1, 2, 3])
        found = bound.wait_and_see(uneven, np.stack([splits, splits], axis=1))
        assert found.objective_s == pytest.approx(value_s(uneven, splits), rel=1e-11)
        subcarriers = small.solve(uneven, np.resize(splits, (32, 3))).subcarriers
        assert (subcarriers[..., weak] == 7).all()


def test_devices_that_keep_all_layers_take_few_targets(monkeypatch):
    targets = []
    plain = bound._plan

    def noted(rows, ranges, target_s):
        targets.append(len(target_s))
        return plain(rows, ranges, target_s)

    monkeypatch.setattr(bound, "_plan", noted)
    problem = with_memory_for_all(drawing.drawn(0, 6, 200, 4))
    ranges = np.array([[12, 12]] * 5 + [[1, 12]])
    found = bound.wait_and_see(problem, ranges)
    # Their latency falls by one subcarrier a step: over a hundred, if nothing halved the rest.
    assert len(targets) < 30
    assert found.objective_s < bound.wait_and_see(problem, np.full((6, 2), 12)).objective_s


def test_one_sample_chooses_the_best_of_all_split_points():
    for seed in range(12):
        problem = of_few_layers(drawing.drawn(seed, 3, 9, 1, edge_of(EDGES[seed % 3])), 6)
        found = bound.wait_and_see(problem)
        least_s = large.solve(problem, "enumerate").objective_s
        assert found.objective_s == pytest.approx(least_s, rel=1e-11)
        assert value_s(problem, found.splits[0]) == pytest.approx(least_s, rel=1e-11)


def test_a_narrower_range_is_never_lower_and_keeps_its_choices():
    problem = contested(3, 4, 12, 4)
    wide = bound.ranges_that_fit(problem)
    narrow = wide.copy()
    narrow[:, 0] = np.minimum(3, narrow[:, 1])
    narrow[:, 1] = np.minimum(7, narrow[:, 1])
    found = bound.wait_and_see(problem, narrow)
    assert found.objective_s > bound.wait_and_see(problem).objective_s
    assert ((found.splits == narrow[:, 0]) | (found.splits == narrow[:, 1])).all()


def test_what_must_move_is_counted_and_what_may_stay_is_not():
    unmoved = contested(3, 4, 12, 4)
    ranges = bound.ranges_that_fit(unmoved)
    largest = ranges[:, 1]
    free_s = bound.wait_and_see(unmoved).objective_s
    staying = already_split(unmoved, largest.tolist())
    assert bound.wait_and_see(staying).objective_s == free_s
    # One layer at most for device 0, which held more: at least the difference goes up.
    ranges[0, 1] = 1
    moved_s = latency.transfer_s(staying, np.concatenate([[1], largest[1:]])).max()
    expected_s = bound.wait_and_see(unmoved, ranges).objective_s + moved_s
    assert moved_s > 0
    assert bound.wait_and_see(staying, ranges).objective_s == pytest.approx(expected_s, rel=1e-12)


def test_rows_with_a_known_lower_latency_come_to_the_same():
    problem = contested(5, 4, 12, 4)
    rows = bound.rows_of(problem)
    ranges = np.broadcast_to(bound.ranges_that_fit(problem), (4, 4, 2))
    plain = bound.least_latency(rows, ranges)
    told = bound.least_latency(rows, ranges, plain.refuted_s)
    np.testing.assert_allclose(told.reached_s, plain.reached_s, rtol=1e-11)
    assert (plain.refuted_s < plain.reached_s).all()
    assert (plain.refuted_s > plain.reached_s * (1 - 1e-11)).all()


def test_as_many_subcarriers_as_devices_leave_one_each():
    problem = contested(1, 4, 4, 4)
    splits = scenario.splits_that_fit(problem)
    found = bound.wait_and_see(problem, np.stack([splits, splits], axis=1))
    only = latency.problem(problem, splits)
    rest_s = only.device_s + only.link_s[..., 0]
    level_s = shares.level_s(only.whole_edge_s, rest_s)
    value_s = latency.objective_s(problem, splits, level_s)
    assert found.objective_s == pytest.approx(value_s, rel=1e-11)
