"""The large timescale: a round's split points, good on the mean of the samples (equation 29)."""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np

from snake_jax.errors import UserError
from snake_jax.scct import adaptive, bound
from snake_jax.scct.adaptive import AdaptiveSettings
from snake_jax.scct.branch import branch
from snake_jax.scct.descent import descend
from snake_jax.scct.scenario import Scenario, edge_bytes, fits, splits_that_fit
from snake_jax.scct.small import Solver
from snake_jax.scct.valued import MANY, SearchStep, Valued, Watch, first_splits

Method = Literal["alns", "enumerate", "branch", "descent"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Beside these, `fixed:N` gives every device N layers, or as many as fit."""
MOST_ENUMERATED = 50_000
"""Split points that `enumerate` tries at most: four devices of twelve layers are 20,736."""
MOST_NODES = 2_000
"""That `branch` bounds at most before it ends with the gap that is left: twelve devices take some
hundreds.
"""
_FIXED = "fixed:"


class SplitSearch(NamedTuple):
    """Split points of a round, and what is known of them.

    Attributes:
      splits: [N].
      objective_s: equation 29, seconds a round.
      bound_s: no split points with any allocation are below it.
      evaluations: different split points whose objective was computed.
      history: the way, in steps.
    """

    splits: np.ndarray
    objective_s: float
    bound_s: float
    evaluations: int
    history: tuple[SearchStep, ...]


def solve(
    scenario: Scenario,
    method: str,
    seed: int = 0,
    solver: Solver = "exact",
    settings: AdaptiveSettings | None = None,
    start: np.ndarray | None = None,
    watch: Watch | None = None,
) -> SplitSearch:
    """Split points by a method.

    Args:
      scenario: the problem.
      method: of `METHODS`, or `fixed:N`.
      seed: of `alns`; the others draw nothing.
      solver: of the small timescale.
      settings: of `alns`.
      start: [N] where `alns` and `descent` begin, and `branch` descends from; left out: one layer
        at every device.
      watch: is told how a long search gets on.

    Raises:
      UserError: no such method, more devices than it is for, or split points that do not fit.
    """
    if method.startswith(_FIXED):
        return _fixed(scenario, method, solver)
    if method not in METHODS:
        raise UserError(f"{method}: no way to choose splits; want {', '.join(METHODS)} or fixed:N")
    if method == "enumerate":
        return _enumerated(scenario, solver, watch)
    if method == "branch" and solver != "exact":
        raise UserError(
            f"branch: its bound is met by the solver exact alone, not by {solver}: use enumerate, "
            f"descent or alns with {solver}"
        )
    if start is None:
        start = first_splits(scenario)
    elif not fits(scenario, start):
        raise UserError(f"start: {start.tolist()} do not fit the memory; give other split points")
    valued = Valued(scenario, solver, watch)
    if method == "branch":
        first, history = descend(valued, start)
        branched = branch(valued, first, MOST_NODES)
        return _search(valued, branched.splits, branched.bound_s, history + branched.history)
    known = bound.wait_and_see(scenario)
    if method == "descent":
        splits, history = descend(valued, start)
    else:
        settings = AdaptiveSettings() if settings is None else settings
        splits, history = adaptive.search(
            valued, start, known.splits, known.objective_s, seed, settings
        )
    return _search(valued, splits, known.objective_s, history)


def _search(
    valued: Valued, splits: np.ndarray, bound_s: float, history: list[SearchStep]
) -> SplitSearch:
    """What a search found."""
    objective_s = valued.of_one(splits)
    return SplitSearch(splits, objective_s, bound_s, valued.evaluations, tuple(history))


def _fixed(scenario: Scenario, method: str, solver: Solver) -> SplitSearch:
    """The same split point at every device, or the largest that fits."""
    said = method.removeprefix(_FIXED)
    layers = scenario.model.layers
    if not said.isdecimal() or not 1 <= int(said) <= layers:
        raise UserError(f"{method}: want fixed:N with N from 1 to {layers} layers")
    splits = np.minimum(int(said), splits_that_fit(scenario))
    if not fits(scenario, splits):
        raise UserError(
            f"{method}: leaves {edge_bytes(scenario, splits):g} bytes to the edge, more than "
            f"server.memory_bytes: give more layers to the devices"
        )
    known = bound.wait_and_see(scenario)
    valued = Valued(scenario, solver)
    objective_s = valued.of_one(splits)
    return _search(valued, splits, known.objective_s, [SearchStep(1, objective_s, objective_s)])


def _enumerated(scenario: Scenario, solver: Solver, watch: Watch | None) -> SplitSearch:
    """The best of all split points that fit."""
    largest = splits_that_fit(scenario)
    count = math.prod(largest.tolist())
    if count > MOST_ENUMERATED:
        raise UserError(
            f"enumerate: {len(largest)} devices have {count:.3g} split points, more than "
            f"{MOST_ENUMERATED}: use branch, or alns"
        )
    every = np.indices(largest.tolist()).reshape(len(largest), -1).T + 1
    every = every[fits(scenario, every)]
    objectives_s = Valued(scenario, solver, watch, MANY).of(every)
    best = objectives_s.argmin()
    least_s = float(objectives_s[best])
    # The optimum is its own bound, where allocations are optimal too.
    bound_s = least_s if solver == "exact" else bound.wait_and_see(scenario).objective_s
    progress = SearchStep(len(every), least_s, least_s)
    return SplitSearch(every[best], least_s, bound_s, len(every), (progress,))
