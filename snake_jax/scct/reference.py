"""The small timescale in plain NumPy, sample after sample: the algorithm of `exact` as it is told,
every allocation tried, and a proof that none is better. Slow, and short enough to be believed.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from snake_jax.errors import UserError
from snake_jax.scct.latency import LatencyProblem, linked_s
from snake_jax.scct.shares import level_s

JUST_BELOW = 1e-12
MOST_TRIED = 2_000_000
"""Allocations of a sample that `brute` tries at most."""
_BATCH = 50_000
_HALVINGS = 70


class BestAllocation(NamedTuple):
    """One sample's V and the subcarriers [N] that reach it."""

    level_s: float
    subcarriers: np.ndarray


def exact(problem: LatencyProblem) -> BestAllocation:
    """The optimum of one sample, by the search of `snake_jax/scct/exact.py`.

    Args:
      problem: with arrays [N] and [N, K].
    """
    nodes = len(problem.device_s)
    each, left = divmod(problem.subcarriers, nodes)
    best = each + (np.arange(nodes) < left)
    level = _level(problem, best)
    refuted = 0.0
    while True:
        # Is anything better? If not, that is the proof.
        found = greedy(problem, level * (1 - JUST_BELOW))
        if found is None:
            return BestAllocation(level, best)
        best, level = found, _level(problem, found)
        # Devices with all layers let V fall by one subcarrier a turn: halve what is left.
        target = (level + refuted) / 2
        found = greedy(problem, target)
        if found is None:
            refuted = target
        else:
            best, level = found, _level(problem, found)


def greedy(problem: LatencyProblem, target_s: float) -> np.ndarray | None:
    """Subcarriers [N] with the least sum of shares for a target; None where that is over one.

    From the fewest that leave time for the edge, one after the other goes where it saves most.
    """
    share = least_shares(problem, target_s)
    possible = np.isfinite(share)
    if not possible[:, -1].all():
        return None
    subcarriers = possible.argmax(axis=1) + 1
    spare = problem.subcarriers - subcarriers.sum()
    if spare < 0:
        return None
    nodes = np.arange(len(share))
    # Index b - 1: what subcarrier b + 1 saves.
    finite = np.where(possible, share, 0.0)
    saved = np.zeros_like(share)
    saved[:, :-1] = finite[:, :-1] - finite[:, 1:]
    offers = saved[nodes, subcarriers - 1]
    for _ in range(spare):
        chosen = offers.argmax()
        subcarriers[chosen] += 1
        offers[chosen] = saved[chosen, subcarriers[chosen] - 1]
    return subcarriers if share[nodes, subcarriers - 1].sum() <= 1 else None


def least_shares(problem: LatencyProblem, target_s: float) -> np.ndarray:
    """g [..., N, K]: the share of the edge needed with 1 to K subcarriers; infinite: too late."""
    bracket_s = target_s - problem.device_s[..., None] - problem.link_s
    whole_edge_s = np.broadcast_to(problem.whole_edge_s[..., None], bracket_s.shape)
    share = np.full(bracket_s.shape, np.inf)
    in_time = bracket_s > 0
    share[in_time] = whole_edge_s[in_time] / bracket_s[in_time]
    share[(bracket_s == 0) & (whole_edge_s == 0)] = 0.0
    return share


def least_sum(problem: LatencyProblem, target_s: float) -> float:
    """phi: the least sum of shares for one sample and target, over ALL whole subcarriers.

    By dynamic programming over the devices, which asks nothing of the shares: neither that they are
    convex in the subcarriers nor that a greedy choice is right. O(N K^2).
    """
    share = least_shares(problem, target_s)
    total = problem.subcarriers
    least = share[0]  # index k - 1: of the first devices, with k subcarriers in all
    for mine in share[1:]:
        # Row k of the view ends with k subcarriers: those before this device have 1 to k - 1.
        padded = np.concatenate([np.full(total, np.inf), least[:-1]])
        before = np.lib.stride_tricks.sliding_window_view(padded, total)
        least = (before + mine[::-1]).min(axis=1)
    return float(least[-1])


def brute(problem: LatencyProblem) -> BestAllocation:
    """The best of all allocations of all subcarriers of one sample; V by halving an interval.

    Raises:
      UserError: there are more than `MOST_TRIED`.
    """
    nodes, total = problem.link_s.shape
    count = math.comb(total - 1, nodes - 1)
    if count > MOST_TRIED:
        raise UserError(
            f"brute: {total} subcarriers for {nodes} devices are {count:.2g} allocations, more "
            f"than {MOST_TRIED}: use the solver exact"
        )
    best = BestAllocation(math.inf, np.ones(nodes, int))
    left = _compositions(total, nodes)
    while batch := list(itertools.islice(left, _BATCH)):
        tried = np.array(batch)
        levels = _halved(problem, tried)
        least = int(levels.argmin())
        if levels[least] < best.level_s:
            best = BestAllocation(float(levels[least]), tried[least])
    return best


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a total as so many parts of at least 1, in order."""
    for cuts in itertools.combinations(range(1, total), parts - 1):
        ends = (0, *cuts, total)
        yield tuple(after - before for before, after in itertools.pairwise(ends))


def _halved(problem: LatencyProblem, subcarriers: np.ndarray) -> np.ndarray:
    """V [A] of allocations [A, N]: the least with sum of shares at most one, by bisection."""
    rest_s = problem.device_s + problem.link_s[np.arange(subcarriers.shape[1]), subcarriers - 1]
    used = problem.whole_edge_s > 0
    low = rest_s.max(axis=1)
    high = low + problem.whole_edge_s.sum()
    if not used.any():
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        bracket_s = middle[:, None] - rest_s[:, used]
        with np.errstate(divide="ignore"):
            total = (problem.whole_edge_s[used] / np.maximum(bracket_s, 0.0)).sum(axis=1)
        low = np.where(total > 1, middle, low)
        high = np.where(total > 1, high, middle)
    return high


def _level(problem: LatencyProblem, subcarriers: np.ndarray) -> float:
    """V with these subcarriers [N]."""
    rest_s = problem.device_s + linked_s(problem, subcarriers)
    return float(level_s(problem.whole_edge_s, rest_s))
