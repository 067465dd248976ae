"""The small timescale: the exact solver against everything else that knows the answer."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from snake_jax import streams
from snake_jax.errors import UserError
from snake_jax.scct import exact, latency, paper, reference, small
from snake_jax.scct.drawing import BASE, LAW, TABLE_III, drawn
from snake_jax.scct.latency import LatencyProblem
from snake_jax.scct.scenario import parsed, splits_that_fit

CASES = json.loads((Path(__file__).parent / "scenarios.json").read_text())["scenarios"]
EDGES = (3e14, 1e13, 1e12)  # FLOP/s, from plenty to scarce
SEEDS = range(500)


def sampled(problem: LatencyProblem, sample: int) -> LatencyProblem:
    """The problem of one sample."""
    return LatencyProblem(*(array[sample] for array in problem))


def law_of(flops_per_s: float):
    return dataclasses.replace(LAW, server=dataclasses.replace(TABLE_III, flops_per_s=flops_per_s))


def problem_of(seed: int) -> LatencyProblem:
    """One sample of at most 4 devices and 12 subcarriers; some devices have all layers."""
    nodes = 1 + seed % 4
    subcarriers = (4, 7, 10, 12)[seed // 4 % 4]
    scenario = drawn(seed, nodes, subcarriers, 1, law_of(EDGES[seed % 3]))
    splits = streams.generator(seed, "schedule/layers").integers(1, BASE.layers + 5, nodes)
    return latency.problem(scenario, np.minimum(splits, BASE.layers))


@pytest.fixture(scope="module")
def groups() -> dict[tuple[int, ...], LatencyProblem]:
    """The problems of 500 seeds, those of a size as samples of one."""
    found: dict[tuple[int, ...], list[LatencyProblem]] = {}
    for seed in SEEDS:
        one = problem_of(seed)
        found.setdefault(one.link_s.shape[1:], []).append(one)
    return {
        size: LatencyProblem(*(np.concatenate(arrays) for arrays in zip(*ones, strict=True)))
        for size, ones in found.items()
    }


@pytest.fixture(scope="module")
def solved(groups) -> dict[tuple[int, ...], exact.Exact]:
    """What the compiled solver says of them, a call a size."""
    return {size: solve(problem) for size, problem in groups.items()}


def solve(problem: LatencyProblem) -> exact.Exact:
    """Samples of one candidate."""
    ready = exact.tables(problem.link_s)
    return exact.solve(ready, problem.device_s[None], problem.whole_edge_s[None])


def every_sample(groups, solved):
    """(problem, V, subcarriers) of every seed."""
    for size, problem in groups.items():
        for sample, level_s in enumerate(solved[size].level_s):
            yield sampled(problem, sample), level_s, solved[size].subcarriers[sample]


def test_the_seeds_are_of_all_kinds(groups):
    without_edge = [(problem.whole_edge_s == 0).sum(axis=1) for problem in groups.values()]
    counts = np.concatenate(without_edge)
    assert len(counts) == 500
    assert {0, 1, 2, 3} <= set(counts.tolist())
    assert (counts > 0).sum() > 100
    assert {size[0] for size in groups} == {1, 2, 3, 4}


def test_exact_is_the_best_of_all_allocations(groups, solved):
    for problem, level_s, _ in every_sample(groups, solved):
        assert level_s == pytest.approx(reference.brute(problem).level_s, rel=1e-9)


def test_no_allocation_is_faster_by_a_billionth(groups, solved):
    for problem, level_s, _ in every_sample(groups, solved):
        assert reference.least_sum(problem, level_s * (1 - 1e-9)) > 1
        # And the certificate can say no: V itself is reached.
        assert reference.least_sum(problem, level_s * (1 + 1e-9)) <= 1


def test_the_plain_numpy_search_finds_the_same(groups, solved):
    for problem, level_s, _ in every_sample(groups, solved):
        assert level_s == pytest.approx(reference.exact(problem).level_s, rel=1e-11)


def test_what_is_allocated_is_there_and_takes_so_long(groups, solved):
    for size, problem in groups.items():
        found, (nodes, subcarriers) = solved[size], size
        assert found.subcarriers.min() >= 1
        assert found.subcarriers.sum(axis=1).max() <= subcarriers
        allocation = small.shared(problem, found.subcarriers)
        assert allocation.shares.shape[1] == nodes
        assert allocation.shares.min() >= 0
        assert allocation.shares.sum(axis=1).max() <= 1
        np.testing.assert_allclose(allocation.iteration_s, found.level_s, rtol=1e-12)


def test_exact_is_never_above_algorithm_1_or_equal_shares(groups, solved):
    gaps = []
    for size, problem in groups.items():
        level_s = solved[size].level_s
        by_paper = paper.algorithm1(problem).levels_s[-1]
        assert (level_s <= by_paper * (1 + 1e-12)).all()
        assert (level_s <= small.equal(problem).iteration_s * (1 + 1e-12)).all()
        gaps += (by_paper / level_s - 1).tolist()
    # Algorithm 1 is not optimal: a solver that copied it would be caught.
    assert max(gaps) > 0.05


def test_algorithm_1_does_nothing_after_its_first_pass(groups):
    """Where every device needs the edge; with devices that do not, a later pass may help."""
    helped = 0
    for problem in groups.values():
        for sample in range(len(problem.device_s)):
            one = sampled(problem, sample)
            first = paper.algorithm1(one, passes=1)
            last = paper.algorithm1(one)
            helped += last.passes > 2
            if (one.whole_edge_s > 0).all():
                assert last.passes == 2
                np.testing.assert_array_equal(first.subcarriers, last.subcarriers)
                np.testing.assert_array_equal(first.shares, last.shares)
    assert helped > 0


def test_the_shares_are_those_of_a_convex_solver():
    """min V, a_n / alpha_n + e_n <= V, sum alpha_n <= 1, by sequential quadratic programming."""
    for seed in range(0, 24, 2):
        scenario = drawn(seed, 4, 12, 1, law_of(EDGES[seed % 3]))
        splits = np.minimum(splits_that_fit(scenario), 1 + seed % 5)
        found = small.solve(scenario, splits)
        problem = sampled(latency.problem(scenario, splits), 0)
        rest_s = problem.device_s + latency.linked_s(problem, found.subcarriers[0])
        scale_s = found.iteration_s[0]

        def late(x, whole=problem.whole_edge_s / scale_s, rest=rest_s / scale_s):
            return x[4] - rest - whole / x[:4]

        def slopes(x, whole=problem.whole_edge_s / scale_s):
            return np.column_stack([np.diag(whole / x[:4] ** 2), np.ones(4)])

        constraints = [
            {"type": "ineq", "fun": late, "jac": slopes},
            {"type": "ineq", "fun": lambda x: 1 - x[:4].sum()},
        ]
        start = np.array([0.25] * 4 + [100.0])
        solved = minimize(
            lambda x: x[4],
            start,
            jac=lambda x: np.array([0.0, 0, 0, 0, 1]),
            bounds=[(1e-6, 1)] * 4 + [(0, None)],
            constraints=constraints,
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        assert solved.x[4] == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(found.shares[0], solved.x[:4], atol=1e-6)


def four_alike() -> LatencyProblem:
    """The case of four identical devices, with one layer each."""
    scenario = parsed(CASES[1]["scenario"])
    return sampled(latency.problem(scenario, np.ones(4, int)), 0)


def test_four_equal_devices_get_a_quarter_each():
    scenario = parsed(CASES[1]["scenario"])
    for solver in small.SOLVERS:
        found = small.solve(scenario, np.ones(4, int), solver)
        np.testing.assert_array_equal(found.subcarriers, [[4, 4, 4, 4]])
        np.testing.assert_allclose(found.shares, 0.25, rtol=1e-12)


def test_ties_as_the_paper_writes_them_give_the_first_device_everything():
    found = paper.algorithm1(four_alike(), ties="first", passes=1)
    assert found.subcarriers.tolist() == [13, 1, 1, 1]
    best = paper.algorithm1(four_alike()).levels_s[-1]
    assert found.levels_s[-1] / best > 2


def test_ties_matter_only_where_devices_are_tied():
    scenario = drawn(0, 4, 12, 3)
    problem = latency.problem(scenario, np.ones(4, int))
    one, other = paper.algorithm1(problem), paper.algorithm1(problem, ties="first")
    np.testing.assert_array_equal(one.subcarriers, other.subcarriers)


def test_algorithm_1_tells_its_inner_steps():
    problem = latency.problem(drawn(0, 4, 12, 3), np.ones(4, int))
    found = paper.algorithm1(problem, passes=1)
    assert len(found.levels_s) == 12 - 4 + 1
    levels = np.array(found.levels_s)
    assert (np.diff(levels, axis=0) <= 0).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_four_cases_are_reproduced(case):
    scenario, optimum = parsed(case["scenario"]), case["optimum"]
    splits = np.array(optimum["splits"])
    found = small.solve(scenario, splits)
    np.testing.assert_allclose(found.iteration_s, optimum["iteration_s"], rtol=1e-9)
    np.testing.assert_allclose(found.shares, optimum["shares"], atol=1e-9)
    np.testing.assert_array_equal(found.subcarriers, optimum["subcarriers"])
    np.testing.assert_allclose(latency.transfer_s(scenario, splits), optimum["transfer_s"])
    count = len(scenario.devices)
    d4_s = latency.cloud_link_s(scenario.model, scenario.cloud, count)
    assert d4_s == pytest.approx(optimum["cloud_link_s"])
    assert (small.certificate(scenario, splits, found.iteration_s) > 1).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_trying_all_splits_of_the_cases_finds_their_optima(case):
    scenario = parsed(case["scenario"])
    ranges = [range(1, largest + 1) for largest in splits_that_fit(scenario)]
    splits = np.array(list(itertools.product(*ranges)))
    wanted = {
        "exact": (case["optimum"]["splits"], case["optimum"]["objective_s"]),
        "paper": (case["algorithm1_splits"], case["algorithm1_with_enumeration_s"]),
        "equal": (case["equal_splits"], case["equal_with_enumeration_s"]),
    }
    for solver, (best, objective_s) in wanted.items():
        values = small.values(scenario, splits, solver)
        assert values.min() == pytest.approx(objective_s, rel=1e-9)
        assert splits[values.argmin()].tolist() == best


def test_candidates_together_are_worth_what_they_are_alone():
    scenario = drawn(5, 3, 9, 2)
    splits = np.array(list(itertools.product((1, 4, 12), repeat=3)))
    together = small.values(scenario, splits)
    assert together.shape == (27,)
    for index in (0, 13, 26):
        found = small.solve(scenario, splits[index])
        alone = latency.objective_s(scenario, splits[index], found.iteration_s)
        assert together[index] == pytest.approx(alone, rel=1e-12)
    found = small.solve(scenario, splits)
    assert found.shares.shape == found.subcarriers.shape == (27, 2, 3)
    assert found.iteration_s.shape == (27, 2)


def test_problems_of_nearly_the_same_size_share_a_program(monkeypatch):
    traces = []
    relaxed = exact.relaxed

    def counted(*arguments):
        traces.append(1)
        return relaxed(*arguments)

    exact._search.clear_cache()
    monkeypatch.setattr(exact, "relaxed", counted)
    for nodes, subcarriers, samples in ((5, 20, 5), (6, 25, 7), (8, 32, 8)):
        scenario = drawn(1, nodes, subcarriers, samples)
        values = small.evaluator(scenario)
        values(np.ones((1, nodes), int))
        values(np.full((1, nodes), 3))
        small.solve(scenario, np.ones(nodes, int))
    assert len(traces) == 1
    for candidates in (3, 4, 9, 12, 16):
        values(np.ones((candidates, 8), int))
    assert len(traces) == 2


def test_a_large_problem_is_certified():
    scenario = drawn(2, 30, 200, 3)
    for splits in (np.ones(30, int), splits_that_fit(scenario)):
        found = small.solve(scenario, splits)
        assert (small.certificate(scenario, splits, found.iteration_s) > 1).all()
        assert found.subcarriers.sum(axis=1).tolist() == [200] * 3
        assert (found.shares.sum(axis=1) <= 1).all()
        by_paper = small.solve(scenario, splits, "paper")
        assert (found.iteration_s < by_paper.iteration_s).all()


def test_as_many_subcarriers_as_devices_leave_no_choice():
    scenario = drawn(2, 6, 6, 3)
    found = small.solve(scenario, np.ones(6, int))
    np.testing.assert_array_equal(found.subcarriers, np.ones((3, 6)))


def test_devices_with_all_layers_need_no_edge():
    scenario = drawn(2, 4, 12, 3)
    found = small.solve(scenario, np.full(4, 12))
    tried = small.solve(scenario, np.full(4, 12), "brute")
    np.testing.assert_array_equal(found.shares, 0)
    np.testing.assert_allclose(found.iteration_s, tried.iteration_s, rtol=1e-12)


def test_brute_says_when_it_is_too_much():
    with pytest.raises(UserError, match="use the solver exact"):
        small.solve(drawn(0, 30, 200, 1), np.ones(30, int), "brute")


def test_an_unknown_solver_is_refused():
    with pytest.raises(UserError, match="best: no solver; want one of exact, paper, equal, brute"):
        small.solve(drawn(0, 2, 4, 1), np.ones(2, int), "best")


SCENARIO = st.builds(
    lambda seed, subcarriers, edge: drawn(seed, 3, subcarriers, 2, law_of(edge)),
    st.integers(0, 10**6),
    st.integers(3, 7),
    st.sampled_from(EDGES),
)
SPLITS = st.lists(st.integers(1, 12), min_size=3, max_size=3).map(np.array)


@settings(max_examples=40, deadline=None)
@given(SCENARIO, SPLITS, st.floats(1.0, 4.0))
def test_more_of_anything_is_never_slower(scenario, splits, factor):
    now = small.solve(scenario, splits)
    assert (now.shares.sum(axis=1) <= 1).all()
    assert (now.subcarriers >= 1).all()
    assert (now.subcarriers.sum(axis=1) <= scenario.server.subcarriers).all()

    server, samples = scenario.server, scenario.samples
    richer = [
        dataclasses.replace(server, subcarriers=server.subcarriers + 1),
        dataclasses.replace(server, power_w=server.power_w * factor),
        dataclasses.replace(server, flops_per_s=server.flops_per_s * factor),
        dataclasses.replace(server, subcarrier_hz=server.subcarrier_hz * factor),
    ]
    better = [dataclasses.replace(scenario, server=more) for more in richer]
    faster = dataclasses.replace(samples, flops_per_s=samples.flops_per_s * factor)
    nearer = dataclasses.replace(samples, gain=samples.gain * factor)
    better += [dataclasses.replace(scenario, samples=more) for more in (faster, nearer)]
    for other in better:
        found = small.solve(other, splits)
        assert (found.iteration_s <= now.iteration_s * (1 + 1e-12)).all()


@settings(max_examples=40, deadline=None)
@given(SCENARIO, SPLITS, st.sampled_from([0.125, 2.0, 1024.0]))
def test_a_clock_in_another_unit_changes_no_allocation(scenario, splits, factor):
    """FLOPs and hertz a unit of time, noise a hertz: all rates scale, the ratios stay."""
    server, samples = scenario.server, scenario.samples
    scaled = dataclasses.replace(
        scenario,
        server=dataclasses.replace(
            server,
            flops_per_s=server.flops_per_s * factor,
            subcarrier_hz=server.subcarrier_hz * factor,
            noise_w_per_hz=server.noise_w_per_hz / factor,
        ),
        samples=dataclasses.replace(samples, flops_per_s=samples.flops_per_s * factor),
    )
    now, then = small.solve(scenario, splits), small.solve(scaled, splits)
    np.testing.assert_allclose(then.iteration_s * factor, now.iteration_s, rtol=1e-12)
    np.testing.assert_array_equal(then.subcarriers, now.subcarriers)
    np.testing.assert_allclose(then.shares, now.shares, atol=1e-9)
