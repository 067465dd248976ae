"""Branch and bound: the best split points, by the wait-and-see bound (`snake_jax/scct/bound.py`).

A node allows each device a range of split points. By its bound's proof every sample chooses an end
of the range, so where all samples agree there is nothing to gain by dividing it; the range that
they dispute most is halved. A sample whose choice lies in the half keeps its latency there: the
half allows less than the whole, and what it chose is still allowed. So only those that chose the
other half are solved again.
"""

import heapq
from typing import NamedTuple

import numpy as np

from snake_jax.scct import bound, latency
from snake_jax.scct.bound import SampleRows
from snake_jax.scct.scenario import Scenario, edge_bytes, fits
from snake_jax.scct.valued import SearchStep, Valued

PROVEN = 1e-9
"""Relative: nothing is better by so much than what branch and bound ends with."""


class _Node(NamedTuple):
    """Split points allowed, and the samples' own optima among them.

    Attributes:
      bound_s: no split points in the ranges are below it.
      number: of the node, in the order of making; decides among equal bounds.
      ranges: [N, 2].
      refuted_s: [Q] seconds of an iteration that no sample reaches.
      reached_s: [Q] that they reach with `splits`.
      splits: [Q, N] their own choices.
    """

    bound_s: float
    number: int
    ranges: np.ndarray
    refuted_s: np.ndarray
    reached_s: np.ndarray
    splits: np.ndarray


class Branched(NamedTuple):
    """What branch and bound found.

    Attributes:
      splits: [N].
      bound_s: no split points are below it, seconds a round; `PROVEN` below the objective, unless
        `most_nodes` ended the search.
      nodes: that were bounded.
      history: the way.
    """

    splits: np.ndarray
    bound_s: float
    nodes: int
    history: list[SearchStep]


def branch(valued: Valued, start: np.ndarray, most_nodes: int) -> Branched:
    """The best split points, or the best after so many nodes.

    Args:
      valued: of the scenario, by the solver `exact`.
      start: [N] split points that fit; good ones leave less to look at.
      most_nodes: after which the search ends.
    """
    scenario = valued.scenario
    rows = bound.rows_of(scenario)
    best, best_s = start, valued.of_one(start)
    history = [SearchStep(valued.evaluations, best_s, best_s)]
    nodes = 1
    waiting = [_root(scenario, rows)]
    while waiting and nodes < most_nodes:
        # The least bound first: what is left then is no better.
        node = heapq.heappop(waiting)
        if node.bound_s >= best_s * (1 - PROVEN):
            waiting = []
            break
        # Where the samples agree, the node's bound is reached but for what moving takes.
        agreed = node.splits[0]
        if (node.splits == agreed).all() and fits(scenario, agreed):
            agreed_s = valued.of_one(agreed)
            if agreed_s < best_s:
                best, best_s = agreed, agreed_s
            history.append(SearchStep(valued.evaluations, agreed_s, best_s))
        for ranges in _halves(scenario, node):
            child = _child(scenario, rows, node, ranges, nodes)
            nodes += 1
            if child.bound_s < best_s * (1 - PROVEN):
                heapq.heappush(waiting, child)
    least_s = best_s * (1 - PROVEN)
    if waiting:
        least_s = min(least_s, waiting[0].bound_s)
    return Branched(best, least_s, nodes, history)


def _root(scenario: Scenario, rows: SampleRows) -> _Node:
    """All split points that fit the devices."""
    ranges = bound.ranges_that_fit(scenario)
    every = np.broadcast_to(ranges, (len(rows.link_s), *ranges.shape))
    least = bound.least_latency(rows, every)
    bound_s = bound.bounded_s(scenario, ranges, least.refuted_s)
    return _Node(bound_s, 0, ranges, *least)


def _halves(scenario: Scenario, node: _Node) -> list[np.ndarray]:
    """Two halves of the range that is worth most to decide, each where something in it fits."""
    low, high = node.ranges.T
    width = high - low
    if not width.any():
        return []
    # The samples' dispute, weighed by the seconds that are at stake; where they agree, what
    # moving takes, and else the widest range.
    wants_high = (node.splits == high).mean(axis=0)
    disputed = np.minimum(wants_high, 1 - wants_high) * width
    disputed = disputed / scenario.samples.flops_per_s.mean(axis=0)
    moving = np.where(width > 0, latency.transfer_s(scenario, node.splits[0]), 0.0)
    worth = width
    for found in (disputed, moving):
        if found.any():
            worth = found
            break
    device = worth.argmax()
    middle = (low[device] + high[device]) // 2
    lower, upper = node.ranges.copy(), node.ranges.copy()
    lower[device, 1] = middle
    upper[device, 0] = middle + 1
    memory = scenario.server.memory_bytes
    return [half for half in (lower, upper) if edge_bytes(scenario, half[:, 1]) <= memory]


def _child(
    scenario: Scenario, rows: SampleRows, node: _Node, ranges: np.ndarray, number: int
) -> _Node:
    """The node with narrower ranges."""
    inside = (node.splits >= ranges[:, 0]) & (node.splits <= ranges[:, 1])
    anew = np.flatnonzero(~inside.all(axis=1))
    solved = (node.refuted_s.copy(), node.reached_s.copy(), node.splits.copy())
    if anew.size:
        every = np.broadcast_to(ranges, (len(anew), *ranges.shape))
        least = bound.least_latency(rows.at(anew), every, node.refuted_s[anew])
        for array, found in zip(solved, least, strict=True):
            array[anew] = found
    bound_s = bound.bounded_s(scenario, ranges, solved[0])
    return _Node(bound_s, number, ranges, *solved)
