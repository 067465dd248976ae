"""What a search over split points knows: the objectives of those it has tried, and its way."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from snake_jax.scct import small
from snake_jax.scct.scenario import Scenario, fits, splits_that_fit
from snake_jax.scct.small import Solver

BETTER = 1e-12
"""Relative: a smaller difference is the solver's rounding, no improvement."""
FEW, MANY = 8, 32
"""Split points valued in one compiled call: of a search that asks for a device's, of all."""


class SearchStep(NamedTuple):
    """A step of a search.

    Attributes:
      evaluations: different split points tried until then.
      current_s: objective that the search stands at, seconds a round.
      best_s: the least until then.
    """

    evaluations: int
    current_s: float
    best_s: float


Watch = Callable[[int, float], None]
"""Is told how many split points were tried and the least objective until then, now and then."""


class Valued:
    """Objectives of a scenario's split points; each is computed once.

    Always as many in one call, so that one compiled program does for all.

    Attributes:
      scenario: of which.
      largest: [N] the largest split points that fit the devices.
    """

    def __init__(
        self,
        scenario: Scenario,
        solver: Solver,
        watch: Watch | None = None,
        together: int = FEW,
    ) -> None:
        self.scenario = scenario
        self.largest = splits_that_fit(scenario)
        self._evaluate = small.evaluator(scenario, solver)
        self._known: dict[tuple[int, ...], float] = {}
        self._together = together
        self._watch = watch
        self._least_s = np.inf

    @property
    def evaluations(self) -> int:
        """How many different split points were tried."""
        return len(self._known)

    def of_one(self, splits: np.ndarray) -> float:
        """The objective of split points [N], seconds a round."""
        return float(self.of(splits[None])[0])

    def of(self, splits: np.ndarray) -> np.ndarray:
        """Objectives [S] of split points [S, N]."""
        names = [tuple(candidate) for candidate in splits.tolist()]
        unknown = list(dict.fromkeys(name for name in names if name not in self._known))
        for start in range(0, len(unknown), self._together):
            part = unknown[start : start + self._together]
            filled = np.resize(np.array(part), (self._together, splits.shape[1]))
            found = self._evaluate(filled)[: len(part)]
            self._known.update(zip(part, found.tolist(), strict=True))
            if self._watch is not None:
                # Destroyed split points are tried too, and may not fit.
                valid = found[fits(self.scenario, np.array(part))].tolist()
                self._least_s = min(self._least_s, *valid, np.inf)
                self._watch(self.evaluations, self._least_s)
        return np.array([self._known[name] for name in names])

    def choices(self, splits: np.ndarray, device: int, later: tuple[int, ...] = ()) -> np.ndarray:
        """[S, N] split points that differ in one device at most, and fit.

        Args:
          splits: [N].
          device: which takes each split point that its memory allows.
          later: devices that may still take more layers, so the edge's memory need not hold what
            they leave to it now.
        """
        found = np.repeat(splits[None], self.largest[device], axis=0)
        found[:, device] = np.arange(1, self.largest[device] + 1)
        relieved = found.copy()
        relieved[:, list(later)] = self.largest[list(later)]
        return found[fits(self.scenario, relieved)]


def first_splits(scenario: Scenario) -> np.ndarray:
    """[N] one layer at every device, or what comes nearest where the edge's memory is scarce.

    Then the devices that are fastest on the mean of the samples take more, as much as is needed.
    """
    largest = splits_that_fit(scenario)
    splits = np.ones_like(largest)
    fastest_first = np.argsort(-scenario.samples.flops_per_s.mean(axis=0), kind="stable")
    for device in fastest_first:
        while splits[device] < largest[device] and not fits(scenario, splits):
            splits[device] += 1
    return splits
