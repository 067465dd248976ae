"""Assignments: every group once, no node over its memory, the optimum by brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from snake_jax.algorithms import assignment
from snake_jax.algorithms.assignment import (
    OBJECTIVES,
    AssignmentProblem,
    check_memory,
    greedy,
    make_hops,
    make_problem,
    milp,
    proportional,
)
from snake_jax.algorithms.segments import runs, shared_out
from snake_jax.costs.flops import LayerCost, step_flops
from snake_jax.errors import UserError
from snake_jax.nodes.fleet import Fleet, Node, make_fleet

NODE = Node(1e3, 1000, 50.0, 100.0, 0.5, 2.0, 3.0, 1.0)
SERVER = Node(1e6, 10**9, 200.0, 400.0, 0.25, 0.5, 0.1, 2.0)
COSTS = (
    LayerCost("a", 5, 100, 10, 1),
    LayerCost("b", 5, 200, 20, 2),
    LayerCost("c", 5, 400, 40, 4),
)


def _problem(seconds, joules=None, needed=None, memory=None):
    seconds = np.array(seconds, np.float64)
    groups = tuple(f"fc{i}" for i in range(len(seconds)))
    joules = seconds if joules is None else np.array(joules, np.float64)
    needed = np.ones(seconds.shape) if needed is None else np.array(needed, np.float64)
    return AssignmentProblem(
        groups,
        seconds,
        joules,
        needed,
        np.ones(seconds.shape[1]) if memory is None else np.array(memory),
    )


def _hops(nodes, seconds=0.0):
    return np.full((nodes + 1, nodes), seconds)


def _brute_force(problem, objective):
    """The least value over all assignments that fit, by another way of summing."""
    fits = problem.bytes <= problem.memory_bytes
    values = []
    for nodes in itertools.product(range(fits.shape[1]), repeat=len(fits)):
        if all(fits[g, n] for g, n in enumerate(nodes)):
            costs = problem.joules_cost if objective == "energy" else problem.seconds
            each = [0.0] * fits.shape[1]
            for group, node in enumerate(nodes):
                each[node] += costs[group, node]
            values.append(max(each) if objective == "makespan" else sum(each))
    return min(values, default=None)


@st.composite
def problems(draw, max_groups, max_nodes):
    """Values over ten orders of magnitude, with ties; each group fits some node."""
    groups, nodes = draw(st.integers(1, max_groups)), draw(st.integers(1, max_nodes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale, spread, coarse = (
        draw(st.sampled_from([1e-6, 1.0, 1e6])),
        draw(st.floats(0, 2)),
        draw(st.booleans()),
    )
    seconds, joules = rng.lognormal(0, spread, (2, groups, nodes))
    if coarse:
        seconds, joules = np.ceil(seconds), np.floor(joules)
    needed = np.broadcast_to(rng.uniform(1, 2, groups)[:, None], (groups, nodes))
    memory = rng.uniform(0.5, 3, nodes)
    memory[rng.integers(nodes)] = needed.max()
    return _problem(scale * seconds, joules, needed, memory)


def _every_method(problem):
    nodes = len(problem.memory_bytes)
    rng = np.random.default_rng(0)
    yield proportional(problem)
    yield greedy(problem, *rng.random((2, nodes + 1, nodes)))
    for objective in OBJECTIVES:
        yield milp(problem, objective)


@settings(deadline=None)
@given(problems(max_groups=12, max_nodes=6))
def test_every_group_has_one_node_that_can_hold_it(problem):
    for nodes in _every_method(problem):
        assert len(nodes) == len(problem.groups)
        assert all(
            isinstance(node, int) and 0 <= node < len(problem.memory_bytes) for node in nodes
        )
        assert all(problem.bytes[g, n] <= problem.memory_bytes[n] for g, n in enumerate(nodes))
        check_memory(problem, nodes)


@settings(deadline=None)
@given(problems(max_groups=12, max_nodes=6), st.sampled_from(sorted(OBJECTIVES)))
def test_milp_is_never_worse_than_the_others_and_the_same_again(problem, objective):
    value = OBJECTIVES[objective]
    best = milp(problem, objective)
    assert all(
        value(problem, best) <= value(problem, nodes) * (1 + 1e-9)
        for nodes in _every_method(problem)
    )
    assert milp(problem, objective) == best


@settings(deadline=None)
@given(problems(max_groups=5, max_nodes=3), st.sampled_from(sorted(OBJECTIVES)))
def test_milp_equals_brute_force(problem, objective):
    value = OBJECTIVES[objective](problem, milp(problem, objective))
    assert value == pytest.approx(_brute_force(problem, objective), rel=1e-9)


@given(problems(max_groups=6, max_nodes=4), st.data())
def test_where_a_group_fits_nowhere_all_methods_name_it(problem, data):
    group = data.draw(st.integers(0, len(problem.groups) - 1))
    needed = problem.bytes.copy()
    needed[group] = 5e9
    problem = problem._replace(
        bytes=needed, memory_bytes=problem.memory_bytes * 1e9
    )  # of at most 3 GB
    nodes = len(problem.memory_bytes)
    attempts = [lambda: proportional(problem), lambda: greedy(problem, _hops(nodes), _hops(nodes))]
    for attempt in [*attempts, *(lambda o=o: milp(problem, o) for o in OBJECTIVES)]:
        with pytest.raises(
            UserError, match=rf"^fc{group} with its optimizer needs 5 GB; none of the {nodes} nodes"
        ):
            attempt()


def test_the_refusal_says_the_largest_node_and_the_way_out():
    problem = _problem([[1, 1]], needed=[[3.1e9, 3.1e9]], memory=[1e9, 2e9])
    with pytest.raises(
        UserError, match=r"the largest \(node1\) has 2 GB: raise memory_bytes in --node_file"
    ):
        proportional(problem)


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 20))
def test_serpentine_takes_turns(groups, nodes, first):
    chosen = assignment.in_turns(groups, nodes, first)
    assert chosen == tuple((group + first) % nodes for group in range(groups))


def test_serpentine_is_checked_against_memory():
    problem = _problem(np.ones((3, 2)), needed=[[5e5] * 2, [2e3] * 2, [5e5] * 2], memory=[1e6, 1e5])
    check_memory(problem, assignment.in_turns(3, 2))
    with pytest.raises(
        UserError, match=r"^fc0 with its optimizer needs 500 kB; node1 has 100 kB: --assign=prop"
    ):
        check_memory(problem, assignment.in_turns(3, 2, first=1))


def test_values_by_hand():
    problem = _problem([[1, 10], [2, 20], [4, 40]], joules=[[7, 1], [7, 2], [7, 3]])
    assert assignment.makespan(problem, (0, 1, 0)) == 20
    assert assignment.duration(problem, (0, 1, 0)) == 25
    assert assignment.energy(problem, (0, 1, 0)) == 16
    assert milp(problem, "makespan") == (0, 0, 0)  # 7; (1, 0, 0) takes 10
    assert milp(problem, "energy") == (1, 1, 1)


@given(st.lists(st.floats(1, 100), min_size=2, max_size=6), st.integers(0, 100))
def test_proportional_shares_the_work_as_the_rates_are_shared(rates, seed):
    rates = np.array(rates)
    work = np.random.default_rng(seed).uniform(1, 2, 2000)
    nodes = proportional(_problem(work[:, None] / rates))
    shares = np.bincount(nodes, weights=work, minlength=len(rates)) / work.sum()
    # A node's last group starts before all are done: busy seconds differ by less than one group's
    # on any node.
    assert shares == pytest.approx(rates / rates.sum(), abs=2 * len(rates) / len(work) * 2)


def test_proportional_by_hand_largest_first_to_the_node_done_first():
    # Rates 2 and 1. Works 6, 4, 2: 6 at node 0 (3 s), 4 at node 1 (4 s, against 5 s), 2 at node 0
    # (4 s).
    assert proportional(_problem([[1, 2], [3, 6], [2, 4]])) == (0, 0, 1)


def test_alike_nodes_share_alike_whatever_the_objective():
    problem = _problem(np.ones((9, 9)))
    for objective in OBJECTIVES:
        assert sorted(milp(problem, objective)) == list(range(9))


def test_a_search_that_ends_early_is_still_no_worse_than_proportional(monkeypatch):
    rng = np.random.default_rng(0)
    problem = _problem(rng.uniform(1, 3, 24)[:, None] / rng.lognormal(0, 0.7, 9))
    monkeypatch.setattr(assignment, "_BRANCHES", 1)
    short = assignment.makespan(problem, milp(problem, "makespan"))
    monkeypatch.setattr(assignment, "_BRANCHES", 200)
    assert assignment.makespan(problem, milp(problem, "makespan")) <= short
    assert short <= assignment.makespan(problem, proportional(problem))


def test_a_failure_of_the_solver_is_said(monkeypatch):
    failed = optimize.OptimizeResult(
        status=4, message="numerical trouble", x=None, mip_node_count=None
    )
    monkeypatch.setattr(optimize, "milp", lambda **_: failed)
    with pytest.raises(
        UserError,
        match=r"^--assign=milp: the solver failed \(numerical trouble\): use --assign=prop",
    ):
        milp(_problem([[1, 2], [3, 4]]), "makespan")


@given(problems(max_groups=12, max_nodes=5), st.integers(-1, 0))
def test_greedy_visits_the_nodes_in_rounds_where_memory_allows(problem, holder):
    problem = problem._replace(memory_bytes=np.full_like(problem.memory_bytes, 10))
    nodes = len(problem.memory_bytes)
    chosen = greedy(problem, _hops(nodes), _hops(nodes), holder=holder)
    counts = np.bincount(chosen, minlength=nodes)
    assert counts.max() - counts.min() <= 1


def test_greedy_hops_by_hand():
    hop_s = np.array([[0, 5, 1], [5, 0, 1], [1, 1, 0], [9, 2, 9]], np.float64)
    problem = _problem([[1, 1, 1]] * 4, joules=[[0, 0, 0.5]] * 4)
    free = np.zeros_like(hop_s)
    # From the server to node 1 (2 s), from there to node 2 (1 s), to node 0, then anew: node 0
    # again costs no hop.
    assert greedy(problem, hop_s, free, energy_weight=0.0) == (1, 2, 0, 0)
    assert greedy(problem, hop_s, free, energy_weight=100.0) == (1, 0, 2, 0)
    assert greedy(problem, hop_s, free, energy_weight=0.0, holder=0) == (0, 2, 1, 1)
    assert greedy(
        problem._replace(bytes=np.array([[1, 2, 1]] * 4)), hop_s, free, energy_weight=0.0
    ) == (0, 2, 2, 0)


def flops_of(assignments, **options):
    return [[step_flops(COSTS, layers, **options)] for layers in assignments]


def test_the_problem_by_hand():
    fleet = Fleet(
        (NODE, NODE._replace(flops_per_s=2e3, down_bytes_per_s=400.0, energy_price=10.0)), SERVER
    )
    problem = make_problem(
        [("a",), ("b", "c")],
        flops_of([("a",), ("b", "c")]),
        [[70], [80]],
        [1, 3],
        fleet,
        [(1000, 100), (0, 0)],
    )
    # Steps: forward 700; inputs 60, 40 above the lowest trained; weights 1, 6. So 761 and 746
    # FLOPs.
    assert problem.groups == ("a", "b+c")
    down_s, up_s = (1000 / 100 + 0.75, 1000 / 200 + 0.75), 100 / 50 + 0.75
    assert problem.seconds == pytest.approx(
        np.array(
            [[0.761 + down_s[0] + up_s, 1.1415 + down_s[1] + up_s], [0.746 + 1.5, 1.119 + 1.5]]
        )
    )
    server = 1100 * 0.1 * 2
    assert problem.joules_cost == pytest.approx(
        np.array(
            [
                [761 * 2 + 1100 * 3 + server, (3 * 761 * 2 + 1100 * 3) * 10 + server],
                [1492, 3 * 1492 * 10],
            ]
        )
    )
    assert problem.bytes.tolist() == [[70, 70], [80, 80]]
    assert problem.memory_bytes.tolist() == [1000, 1000]


def test_without_transfers_only_compute_is_counted():
    problem = make_problem(
        [("a",)],
        flops_of([("a",)], teacher=True, stochastic=True),
        [[70]],
        [1],
        Fleet((NODE,), SERVER),
    )
    assert problem.seconds == pytest.approx(np.array([[1.461]]))
    assert problem.joules_cost == pytest.approx(np.array([[2922.0]]))


def test_hops_by_hand():
    other = NODE._replace(
        up_bytes_per_s=20.0, down_bytes_per_s=1000.0, latency_s=0.125, energy_price=10.0
    )
    seconds, cost = make_hops(Fleet((NODE, other), SERVER), 100)
    assert seconds == pytest.approx(np.array([[0, 2.625], [5.625, 0], [1.75, 0.875]]))
    assert cost == pytest.approx(np.array([[0, 3300], [3300, 0], [320, 3020]]))


def test_a_generated_fleet_goes_through_all_methods():
    fleet = make_fleet(6, 1.0, seed=0)
    groups = [("a",), ("b",), ("c",)]
    problem = make_problem(groups, flops_of(groups), [[100]] * 3, [5] * 6, fleet, [(100, 100)] * 3)
    best = assignment.makespan(problem, milp(problem, "makespan"))
    assert best <= assignment.makespan(problem, proportional(problem))
    assert best <= assignment.makespan(problem, greedy(problem, *make_hops(fleet, 100)))


@pytest.mark.parametrize(
    ("seconds", "most", "units", "counts"),
    [
        ([1.0, 1.0, 1.0], [9, 9, 9], 9, [3, 3, 3]),
        ([1.0, 2.0], [9, 9], 9, [6, 3]),
        ([1.0, 1e9], [9, 9], 9, [8, 1]),  # the slow one's data is learnt from too
        ([1.0, 2.0], [4, 9], 9, [4, 5]),
        ([1.0, 1.0, 0.1], [9, 0, 9], 3, [1, 0, 2]),
        ([2.0, 1.0, 3.0], [9, 9, 9], 2, [1, 1, 0]),
    ],
)
def test_segments_are_as_long_as_nodes_are_capable(seconds, most, units, counts):
    assert shared_out(seconds, most, units) == counts
    found = runs(counts)
    borders = [start for start, _ in found.values()]
    assert borders == sorted(borders)
    assert [stop - start for start, stop in found.values()] == [one for one in counts if one]
    assert sum(counts) == units == list(found.values())[-1][1]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_no_unit_of_a_segment_would_be_done_earlier_elsewhere(seconds, units):
    counts = shared_out(seconds, [units] * len(seconds), units)
    several = [count * one for one, count in zip(seconds, counts, strict=True) if count > 1]
    busy_s = max(several, default=0.0)
    for node, count in enumerate(counts):
        assert (count + 1) * seconds[node] >= busy_s
