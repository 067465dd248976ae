"""The small timescale: each epoch's shares of the edge and subcarriers, for given split points.

Four solvers: `exact` is optimal and proves it, `paper` is Algorithm 1, `equal` gives all devices
the same, `brute` tries everything.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np

from snake_jax.errors import UserError
from snake_jax.scct import exact, latency, paper, reference
from snake_jax.scct import shares as edge
from snake_jax.scct.latency import LatencyProblem
from snake_jax.scct.scenario import Scenario

Solver = Literal["exact", "paper", "equal", "brute"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
CERTIFIED = 1e-9
"""Relative: `certificate` says that no allocation is faster by so much."""
_MOST_TOGETHER = 32  # candidates in one compiled call

Values = Callable[[np.ndarray], np.ndarray]
"""From split points [S, N] to the objective [S], in seconds a round."""


class Allocation(NamedTuple):
    """What the epochs of the samples get; [..., Q, N] for split points [..., N].

    Attributes:
      shares: alpha [..., Q, N], of the edge; at most 1 in sum.
      subcarriers: beta [..., Q, N] ints from 1; at most K in sum.
      iteration_s: V [..., Q], of the slowest device, without the cloud.
    """

    shares: np.ndarray
    subcarriers: np.ndarray
    iteration_s: np.ndarray


def solve(scenario: Scenario, splits: np.ndarray, solver: Solver = "exact") -> Allocation:
    """The allocation of every sample, for split points [N] or candidates [S, N].

    Raises:
      UserError: no such solver, or `brute` would have too much to try.
    """
    splits = np.asarray(splits)
    candidates = splits.reshape(-1, splits.shape[-1])
    problem = latency.problem(scenario, candidates)
    if solver == "exact":
        found = _exact(problem)
    elif solver == "paper":
        steps = paper.algorithm1(problem)
        found = _allocation(problem, steps.shares, steps.subcarriers)
    elif solver == "equal":
        found = equal(problem)
    elif solver == "brute":
        found = _brute(problem)
    else:
        raise UserError(f"{solver}: no solver; want one of {', '.join(SOLVERS)}")
    leading = splits.shape[:-1]
    return Allocation(*(array.reshape(*leading, *array.shape[1:]) for array in found))


def values(scenario: Scenario, splits: np.ndarray, solver: Solver = "exact") -> np.ndarray:
    """The objective [S], equation 29, of split points [S, N], whether they fit or not."""
    return evaluator(scenario, solver)(splits)


def evaluator(scenario: Scenario, solver: Solver = "exact") -> Values:
    """`values` of one scenario, with what all split points have in common made once."""
    if solver != "exact":

        def slowly(splits: np.ndarray) -> np.ndarray:
            found = solve(scenario, splits, solver)
            return latency.objective_s(scenario, splits, found.iteration_s)

        return slowly
    ready = exact.tables(latency.link_table_s(scenario))

    def quickly(splits: np.ndarray) -> np.ndarray:
        splits = np.asarray(splits)
        levels = []
        for start in range(0, len(splits), _MOST_TOGETHER):
            part = splits[start : start + _MOST_TOGETHER]
            # A power of two of candidates, so that a handful of programs does for all.
            size = 1 << (len(part) - 1).bit_length()
            filled = np.resize(part, (size, part.shape[1]))
            terms = latency.terms(scenario, filled)
            device_s = terms.device_s
            whole_edge_s = np.broadcast_to(terms.whole_edge_s[:, None], device_s.shape)
            solved = exact.solve(ready, device_s, whole_edge_s)
            levels.append(solved.level_s.reshape(size, -1)[: len(part)])
        return latency.objective_s(scenario, splits, np.concatenate(levels))

    return quickly


def certificate(scenario: Scenario, splits: np.ndarray, iteration_s: np.ndarray) -> np.ndarray:
    """Shares [Q] that V (1 - 1e-9) would take at least: over 1, no allocation reaches it.

    By dynamic programming over all whole subcarriers (`reference.least_sum`): not the way that
    `exact` came to its V.

    Args:
      scenario: of which.
      splits: [N].
      iteration_s: V [Q] that a solver found.
    """
    problem = latency.problem(scenario, splits)
    least = []
    for sample, level_s in enumerate(iteration_s):
        one = LatencyProblem(*(array[sample] for array in problem))
        least.append(reference.least_sum(one, level_s * (1 - CERTIFIED)))
    return np.array(least)


def _exact(problem: LatencyProblem) -> Allocation:
    """Of S candidates, in one compiled call; shares and seconds are then those of its beta."""
    ready = exact.tables(problem.link_s)
    found = exact.solve(ready, problem.device_s, problem.whole_edge_s)
    subcarriers = found.subcarriers.reshape(problem.device_s.shape).astype(int)
    return shared(problem, subcarriers)


def equal(problem: LatencyProblem) -> Allocation:
    """1 / N of the edge and K // N subcarriers each, the remainder to the first devices."""
    shape = problem.device_s.shape
    each = exact.equal_subcarriers(shape[-1], problem.subcarriers)
    return _allocation(problem, np.full(shape, 1 / shape[-1]), np.broadcast_to(each, shape))


def _brute(problem: LatencyProblem) -> Allocation:
    """Row after row."""
    subcarriers = np.ones(problem.device_s.shape, int)
    for candidate, sample in np.ndindex(subcarriers.shape[:2]):
        one = LatencyProblem(
            problem.device_s[candidate, sample],
            problem.whole_edge_s[candidate, sample],
            problem.link_s[sample],
        )
        subcarriers[candidate, sample] = reference.brute(one).subcarriers
    return shared(problem, subcarriers)


def shared(problem: LatencyProblem, subcarriers: np.ndarray) -> Allocation:
    """The least shares for V of these subcarriers."""
    rest_s = problem.device_s + latency.linked_s(problem, subcarriers)
    level_s = edge.level_s(problem.whole_edge_s, rest_s)
    return _allocation(problem, edge.shares(problem.whole_edge_s, rest_s, level_s), subcarriers)


def _allocation(problem: LatencyProblem, shares: np.ndarray, subcarriers: np.ndarray) -> Allocation:
    """With the seconds that it takes."""
    seconds = latency.iteration_s(problem, shares, subcarriers)
    return Allocation(shares, subcarriers, seconds.max(axis=-1))
