"""Split points by every method: against all of them tried, against published optima, against each
other, and against what the package `alns` would do by itself.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from alns.Outcome import Outcome

from snake_jax import streams
from snake_jax.errors import UserError
from snake_jax.scct import adaptive, bound, branch, drawing, large, operators, scenario, small
from snake_jax.scct.adaptive import AdaptiveSettings, WheelByUses
from snake_jax.scct.operators import SplitState
from snake_jax.scct.valued import Valued, first_splits
from tests.scct.small_scenarios import (
    CASES,
    already_split,
    contested,
    edge_of,
    ends,
    of_few_layers,
    value_s,
    with_edge_layers,
)

SHORT = AdaptiveSettings(iterations=40)
# All devices want the edge to have all but one layer.
SLOW_DEVICES = edge_of(3.12e14, flops_per_s=(1e11, 1.2e11), epoch_factor=(0.9, 1.1))


def crowded(seed):
    """Four devices of at most six layers, 11 of which the edge holds: one alone can hardly move."""
    problem = of_few_layers(contested(seed, 4, 12, 4), 6)
    return with_edge_layers(already_split(problem, [2, 3, 1, 3]), 11)


@pytest.mark.parametrize("method", ["branch", "descent", "alns"])
@pytest.mark.parametrize("name", CASES)
def test_the_four_cases_have_their_published_optima(name, method):
    case = CASES[name]
    found = large.solve(scenario.parsed(case["scenario"]), method, settings=SHORT)
    assert found.splits.tolist() == case["optimum"]["splits"]
    assert found.objective_s == pytest.approx(case["optimum"]["objective_s"], rel=1e-9)
    assert found.bound_s <= found.objective_s


@pytest.mark.parametrize(
    ("solver", "objective", "splits"),
    [
        ("paper", "algorithm1_with_enumeration_s", "algorithm1_splits"),
        ("equal", "equal_with_enumeration_s", "equal_splits"),
    ],
)
@pytest.mark.parametrize("name", ["one_device", "device_memory", "interior_split"])
def test_other_solvers_have_their_published_best_splits(name, solver, objective, splits):
    case = CASES[name]
    problem = scenario.parsed(case["scenario"])
    found = large.solve(problem, "enumerate", solver=solver)
    assert found.splits.tolist() == case[splits]
    assert found.objective_s == pytest.approx(case[objective], rel=1e-9)
    # The bound is that of optimal allocations, which these are not.
    assert found.bound_s == pytest.approx(case["wait_and_see_bound_s"], rel=1e-9)


def test_one_sample_is_split_at_the_ends_alone():
    for seed in range(12):
        edge = edge_of((3.12e14, 1e13, 1e12)[seed % 3])
        problem = of_few_layers(drawing.drawn(seed, 3, 9, 1, edge), 6)
        found = large.solve(problem, "enumerate")
        corners = small.values(problem, np.resize(ends(problem), (32, 3)))
        assert found.objective_s == pytest.approx(corners.min(), rel=1e-11)
        assert found.evaluations == np.prod(scenario.splits_that_fit(problem))


def test_branch_and_bound_is_enumeration():
    for seed in range(10):
        problem = of_few_layers(contested(seed, 4, 12, 4), 8)
        if seed % 2:
            problem = already_split(problem, [1, 3, 2, 3])
        if seed % 5 == 4:
            problem = with_edge_layers(problem, 15)
        every = large.solve(problem, "enumerate")
        found = large.solve(problem, "branch")
        assert found.objective_s == pytest.approx(every.objective_s, rel=branch.PROVEN)
        assert every.objective_s * (1 - 2 * branch.PROVEN) <= found.bound_s <= every.objective_s
        assert scenario.fits(problem, found.splits)
        # It bounds and does not try: a few of them only are valued.
        assert found.evaluations < every.evaluations / 4


def test_branch_and_bound_leaves_what_all_samples_want_where_it_does_not_fit():
    # One sample agrees with itself: one layer everywhere, of which the edge cannot hold the rest.
    problem = of_few_layers(drawing.drawn(0, 3, 9, 1, SLOW_DEVICES), 6)
    assert bound.wait_and_see(problem).splits.tolist() == [[1, 1, 1]]
    crowd = with_edge_layers(problem, 10)
    found = large.solve(crowd, "branch")
    assert scenario.fits(crowd, found.splits)
    assert found.objective_s == large.solve(crowd, "enumerate").objective_s


def test_branch_and_bound_finds_what_descent_misses():
    problem = crowded(5)
    descended = large.solve(problem, "descent")
    found = large.solve(problem, "branch")
    assert found.objective_s < descended.objective_s * 0.999
    assert found.objective_s == large.solve(problem, "enumerate").objective_s


def test_branch_and_bound_that_runs_out_of_nodes_tells_the_gap_that_is_left(monkeypatch):
    problem = contested(2, 4, 12, 4)
    known_s = bound.wait_and_see(problem).objective_s
    optimum_s = large.solve(problem, "branch").objective_s
    monkeypatch.setattr(large, "MOST_NODES", 5)
    found = large.solve(problem, "branch")
    assert known_s <= found.bound_s < optimum_s * (1 - 1e-6)
    assert optimum_s <= found.objective_s


def test_adaptive_search_comes_within_a_thousandth_of_enumeration():
    gaps = []
    for seed in range(20):
        problem = contested(seed, 4, 12, 4)
        optimum_s = large.solve(problem, "enumerate").objective_s
        # Without the descents around it, which would do alone.
        alone = large.solve(problem, "alns", seed, settings=AdaptiveSettings(descends=False))
        gaps.append(alone.objective_s / optimum_s - 1)
        found = large.solve(problem, "alns", seed, settings=SHORT)
        gaps.append(found.objective_s / optimum_s - 1)
    assert max(gaps) < 1e-3
    assert min(gaps) >= 0


def test_adaptive_search_is_never_above_descent_from_the_same_start_and_leaves_where_it_is_stuck():
    helped = []
    for seed in range(8):
        problem = crowded(seed)
        largest = scenario.splits_that_fit(problem)
        for start in (first_splits(problem), largest):
            descended = large.solve(problem, "descent", start=start)
            found = large.solve(problem, "alns", seed, settings=SHORT, start=start)
            assert found.objective_s <= descended.objective_s
            helped.append(found.objective_s < descended.objective_s * 0.999)
    assert any(helped)


def test_descent_ends_where_no_change_of_one_device_helps():
    problem = contested(4, 4, 12, 4)
    found = large.solve(problem, "descent")
    largest = scenario.splits_that_fit(problem)
    neighbours = []
    for device, most in enumerate(largest):
        for split in range(1, most + 1):
            neighbours.append(found.splits.copy())
            neighbours[-1][device] = split
    rest = -len(neighbours) % 32
    values = small.values(problem, np.array(neighbours + neighbours[:1] * rest))
    assert values.min() >= found.objective_s * (1 - 1e-11)
    # From one layer everywhere, downwards.
    objectives = [step.current_s for step in found.history]
    assert objectives[0] == pytest.approx(value_s(problem, np.ones(4, int)), rel=1e-12)
    assert objectives == sorted(objectives, reverse=True)
    assert len(objectives) > 3


def test_every_state_of_the_adaptive_search_fits_and_has_its_objective(monkeypatch):
    problem = crowded(3)
    seen = []
    plain = WheelByUses.update

    def noted(self, cand, d_idx, r_idx, outcome):
        seen.append((cand, outcome))
        plain(self, cand, d_idx, r_idx, outcome)

    monkeypatch.setattr(WheelByUses, "update", noted)
    settings = AdaptiveSettings(iterations=150, descends=False)
    found = large.solve(problem, "alns", 1, settings=settings)
    states = np.array([state.splits for state, _ in seen])
    assert len(states) == 150
    assert scenario.fits(problem, states).all()
    # Both kinds of memory bind: a layer less here, or one more there, would not fit.
    assert (scenario.edge_bytes(problem, states) == problem.server.memory_bytes).any()
    assert (states == scenario.splits_that_fit(problem)).any()
    assert {outcome for _, outcome in seen} >= {Outcome.BEST, Outcome.ACCEPT, Outcome.REJECT}
    for state in [state for state, _ in seen[::30]]:
        assert state.objective_s == pytest.approx(value_s(problem, state.splits), rel=1e-11)
        assert state.missing == ()
    assert found.objective_s == min(state.objective_s for state, _ in seen)


def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    problem = contested(7, 4, 12, 4)
    first, again, other = (
        large.solve(problem, "alns", seed, settings=AdaptiveSettings(iterations=40, descends=False))
        for seed in (3, 3, 4)
    )
    assert first.splits.tolist() == again.splits.tolist()
    assert first.history == again.history
    assert first.history != other.history


def test_the_history_goes_on_to_the_answer():
    problem = crowded(3)
    found = large.solve(problem, "alns", settings=SHORT)
    evaluations = [step.evaluations for step in found.history]
    best = [step.best_s for step in found.history]
    assert evaluations == sorted(evaluations)
    assert best == sorted(best, reverse=True)
    assert best[-1] == found.objective_s
    assert evaluations[-1] == found.evaluations
    assert len(found.history) > SHORT.iterations
    assert all(step.current_s >= step.best_s for step in found.history)


def test_a_search_that_meets_its_bound_ends():
    # One device and one sample: descent is optimal, and nothing remains to be searched for.
    problem = contested(0, 4, 12, 1)
    alone = dataclasses.replace(
        problem,
        devices=problem.devices[:1],
        samples=scenario.Samples(problem.samples.flops_per_s[:, :1], problem.samples.gain[:, :1]),
    )
    found = large.solve(alone, "alns", settings=AdaptiveSettings(iterations=10_000))
    assert found.objective_s <= found.bound_s * (1 + 1e-11)
    assert len(found.history) < 10


def test_temperatures_know_no_scale(monkeypatch):
    made = []
    plain = adaptive.SimulatedAnnealing

    def noted(start_temperature, end_temperature, step):
        made.append((start_temperature, end_temperature, step))
        return plain(start_temperature, end_temperature, step)

    monkeypatch.setattr(adaptive, "SimulatedAnnealing", noted)
    problem = contested(7, 4, 12, 4)
    settings = AdaptiveSettings(iterations=40, descends=False)
    searches = []
    for epochs in (60, 1):
        scaled = dataclasses.replace(problem, epochs=epochs, iterations=epochs)
        searches.append(large.solve(scaled, "alns", 3, settings=settings))
    # 3,600 iterations a round or one: an objective of some seconds is searched like one of hours.
    assert searches[1].objective_s < 5
    current = [[step.current_s for step in search.history] for search in searches]
    np.testing.assert_allclose(current[0], np.multiply(current[1], 3600), rtol=1e-9)
    for search, (hot, cold, rate) in zip(searches, made, strict=True):
        first_s = search.history[0].current_s
        assert np.exp(-0.05 * first_s / hot) == pytest.approx(0.5)
        assert cold == pytest.approx(hot * 1e-4)
        assert hot * rate**40 == pytest.approx(cold)


def test_weights_follow_scores_by_uses():
    settings = AdaptiveSettings(scores=(8.0, 4.0, 2.0, 1.0), segment=4, reaction=0.25)
    wheel = WheelByUses(settings, destroyers=3, repairers=2)
    state = SplitState(np.ones(2, int), 1.0)
    for destroyer, repairer, outcome in (
        (0, 1, Outcome.BEST),
        (0, 1, Outcome.REJECT),
        (1, 1, Outcome.BETTER),
    ):
        wheel.update(state, destroyer, repairer, outcome)
        assert wheel.destroy_weights.tolist() == [1, 1, 1]
    wheel.update(state, 0, 1, Outcome.REJECT)
    # Of destroyers, 0 was used three times for 8 + 1 + 1, 1 once for 4, 2 never.
    assert wheel.destroy_weights == pytest.approx([0.75 + 0.25 * 10 / 3, 0.75 + 0.25 * 4, 1])
    assert wheel.repair_weights == pytest.approx([1, 0.75 + 0.25 * 14 / 4])
    # The next segment counts anew.
    for _ in range(4):
        wheel.update(state, 2, 0, Outcome.ACCEPT)
    assert wheel.destroy_weights[2] == pytest.approx(0.75 + 0.25 * 2)
    assert wheel.repair_weights == pytest.approx([0.75 + 0.25 * 2, 0.75 + 0.25 * 14 / 4])


def test_operators_leave_the_state_that_they_are_given_as_it_was():
    problem = crowded(3)
    valued = Valued(problem, "exact")
    own = bound.wait_and_see(problem).splits
    splits = first_splits(problem)
    whole = SplitState(splits, valued.of_one(splits))
    rng = streams.generator(0, "scct/search")
    pairs = itertools.product(
        operators.destroyers(valued, own).values(), operators.repairers(valued, own).values()
    )
    for destroy, repair in pairs:
        destroyed = destroy(whole, rng)
        copy = destroyed.splits.copy()
        repaired = repair(destroyed, rng)
        assert whole.splits.tolist() == splits.tolist()
        assert destroyed.splits.tolist() == copy.tolist()
        assert 1 <= len(destroyed.missing) <= 4
        kept = np.setdiff1d(np.arange(4), destroyed.missing)
        assert repaired.splits[kept].tolist() == splits[kept].tolist()
        assert scenario.fits(problem, repaired.splits)


def test_greedy_repair_counts_on_what_the_others_can_still_take():
    # All samples want one layer at every device, which the edge's memory forbids.
    problem = of_few_layers(drawing.drawn(0, 4, 12, 4, SLOW_DEVICES), 6)
    own = bound.wait_and_see(problem).splits
    assert (np.median(own, axis=0) == 1).all()
    crowd = with_edge_layers(problem, 8)
    valued = Valued(crowd, "exact")
    greedy = operators.repairers(valued, own)["greedy"]
    destroyed = SplitState(np.ones(4, int), np.inf, (0, 1, 2, 3))
    for seed in range(4):
        repaired = greedy(destroyed, streams.generator(seed, "scct/search"))
        assert scenario.fits(crowd, repaired.splits)


def test_an_objective_is_computed_once(monkeypatch):
    problem = contested(7, 4, 12, 4)
    asked = []
    plain = small.evaluator

    def counted(*arguments):
        evaluate = plain(*arguments)

        def quickly(splits):
            asked.append(np.unique(splits, axis=0))
            return evaluate(splits)

        return quickly

    monkeypatch.setattr(small, "evaluator", counted)
    found = large.solve(problem, "alns", settings=SHORT)
    every = np.concatenate(asked)
    assert len(every) == len(np.unique(every, axis=0)) == found.evaluations


def test_a_fixed_split_is_as_many_layers_as_fit():
    problem = contested(1, 4, 12, 4)
    largest = scenario.splits_that_fit(problem)
    found = large.solve(problem, "fixed:6")
    assert found.splits.tolist() == np.minimum(6, largest).tolist()
    assert min(largest) < 6 < max(largest)
    assert found.objective_s == pytest.approx(value_s(problem, found.splits), rel=1e-12)
    assert found.bound_s == bound.wait_and_see(problem).objective_s


def test_first_splits_leave_to_the_edge_what_it_can_hold():
    problem = of_few_layers(contested(0, 4, 12, 4), 6)
    assert first_splits(problem).tolist() == [1, 1, 1, 1]
    crowd = with_edge_layers(problem, 14)
    splits = first_splits(crowd)
    # One at each leaves 20; the fastest device takes five more, which is all, the next the sixth.
    fastest_first = np.argsort(-problem.samples.flops_per_s.mean(axis=0))
    assert scenario.splits_that_fit(problem).tolist() == [6, 6, 6, 6]
    assert splits[fastest_first].tolist() == [6, 2, 1, 1]
    assert scenario.fits(crowd, splits)


@pytest.mark.parametrize(
    ("method", "solver", "said"),
    [
        ("annealing", "exact", "annealing: no way to choose splits; want alns, enumerate"),
        ("fixed:0", "exact", "fixed:0: want fixed:N with N from 1 to 12 layers"),
        ("fixed:13", "exact", "fixed:13: want fixed:N with N from 1 to 12 layers"),
        ("fixed:two", "exact", "fixed:two: want fixed:N"),
        ("fixed:", "exact", "fixed:: want fixed:N"),
        ("branch", "paper", "branch: its bound is met by the solver exact alone"),
        ("branch", "equal", "use enumerate, descent or alns with equal"),
    ],
)
def test_a_wrong_method_is_refused_in_a_line(method, solver, said):
    with pytest.raises(UserError) as error:
        large.solve(contested(0, 4, 12, 4), method, solver=solver)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_too_much_or_does_not_fit_is_refused_in_a_line():
    many = drawing.drawn(0, 8, 12, 1)
    with pytest.raises(UserError, match=r"enumerate: 8 devices have .* more than 50000: use branc"):
        large.solve(many, "enumerate")
    crowd = crowded(0)
    with pytest.raises(UserError, match=r"fixed:1: leaves .* bytes to the edge, more than serv"):
        large.solve(crowd, "fixed:1")
    with pytest.raises(UserError, match=r"start: \[1, 1, 1, 1\] do not fit the memory"):
        large.solve(crowd, "descent", start=np.ones(4, int))


def test_a_watched_search_tells_how_far_it_is():
    problem = contested(7, 4, 12, 4)
    told = []
    found = large.solve(
        problem, "alns", settings=SHORT, watch=lambda tried, least_s: told.append((tried, least_s))
    )
    assert told[-1] == (found.evaluations, found.objective_s)
    assert told == sorted(told, key=lambda step: (step[0], -step[1]))
