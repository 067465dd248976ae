"""Algorithm 2: adaptive large neighbourhood search for split points, by the package `alns`.

Ropke and Pisinger, "An adaptive large neighborhood search heuristic for the pickup and delivery
problem with time windows", Transportation Science 2006. Where Algorithm 2 has slips or gaps, this
follows them; docs/scct.md lists each.
"""

import math
from typing import NamedTuple

import numpy as np
from alns import ALNS
from alns.accept import SimulatedAnnealing
from alns.Outcome import Outcome
from alns.select import RouletteWheel

from snake_jax import streams
from snake_jax.scct import operators
from snake_jax.scct.descent import descend
from snake_jax.scct.operators import SplitState
from snake_jax.scct.valued import BETTER, SearchStep, Valued


class AdaptiveSettings(NamedTuple):
    """What Algorithm 2 leaves open.

    Attributes:
      iterations: of the search; the cooling rate rho follows from them.
      worse: what is taken by a half at the start, relative to the first objective.
      cooling: delta_e / delta_s, the last temperature over the first.
      scores: sigma_1 to sigma_4, of an operator that led to a new best, a better, an accepted and a
        rejected state.
      segment: tau, iterations between changes of the weights.
      reaction: r, what a segment counts against all before.
      descends: whether descent goes before the search and after it, which Algorithm 2 has not.
    """

    iterations: int = 200
    worse: float = 0.05
    cooling: float = 1e-4
    scores: tuple[float, float, float, float] = (33.0, 13.0, 9.0, 1.0)
    segment: int = 20
    reaction: float = 0.2
    descends: bool = True


class WheelByUses(RouletteWheel):
    """Weights that follow scores by uses: theta = (1 - r) theta + r xi / phi where phi > 0, once a
    segment (Algorithm 2, lines 31 to 38, with the line that it leaves out).

    The package's `SegmentedRouletteWheel` adds scores up and does not divide: what was drawn often
    would be drawn more often for that alone.
    """

    def __init__(self, settings: AdaptiveSettings, destroyers: int, repairers: int) -> None:
        super().__init__(list(settings.scores), 1 - settings.reaction, destroyers, repairers)
        self._segment = settings.segment
        self._updates = 0
        self._earned = [np.zeros(destroyers), np.zeros(repairers)]
        self._uses = [np.zeros(destroyers), np.zeros(repairers)]

    def update(self, cand: SplitState, d_idx: int, r_idx: int, outcome: Outcome) -> None:
        """Count a use of a destroyer and a repairer; at a segment's end change the weights."""
        for side, index in enumerate((d_idx, r_idx)):
            self._earned[side][index] += self.scores[outcome]
            self._uses[side][index] += 1
        self._updates += 1
        if self._updates % self._segment:
            return
        for side, weights in enumerate((self.destroy_weights, self.repair_weights)):
            used = self._uses[side] > 0
            mean = self._earned[side][used] / self._uses[side][used]
            weights[used] = self.decay * weights[used] + (1 - self.decay) * mean
            self._earned[side][:] = 0
            self._uses[side][:] = 0


def search(
    valued: Valued,
    start: np.ndarray,
    own: np.ndarray,
    bound_s: float,
    seed: int,
    settings: AdaptiveSettings,
) -> tuple[np.ndarray, list[SearchStep]]:
    """The best split points found, and the way there.

    By default it begins where descent from `start` ends, so it never ends above that.

    Args:
      valued: of the scenario.
      start: [N] split points that fit.
      own: [Q, N] split points that each sample would choose for itself.
      bound_s: an objective that none is below; the search ends where it is met.
      seed: of the stream `scct/search`.
      settings: of the search.
    """
    if not settings.descends:
        start_s = valued.of_one(start)
        history = [SearchStep(valued.evaluations, start_s, start_s)]
        best, adapted = _adapted(valued, start, own, bound_s, seed, settings)
        return best, history + adapted
    first, history = descend(valued, start)
    best, adapted = _adapted(valued, first, own, bound_s, seed, settings)
    # What the last iterations found may still have a better neighbour.
    best, last = descend(valued, best)
    return best, history + adapted + last[1:]


def _adapted(
    valued: Valued,
    start: np.ndarray,
    own: np.ndarray,
    bound_s: float,
    seed: int,
    settings: AdaptiveSettings,
) -> tuple[np.ndarray, list[SearchStep]]:
    """Algorithm 2 itself, of `search`'s arguments: the best split points, a step an iteration."""
    history: list[SearchStep] = []
    if not settings.iterations:
        return start, history
    destroyers = operators.destroyers(valued, own)
    repairers = operators.repairers(valued, own)
    package = ALNS(streams.generator(seed, "scct/search"))
    for name, operator in destroyers.items():
        package.add_destroy_operator(operator, name)
    for name, operator in repairers.items():
        package.add_repair_operator(operator, name)
    # exp(-worse start_s / temperature) is a half at the start. The package's own way to choose
    # temperatures ends at 1 s whatever the objective is.
    start_s = valued.of_one(start)
    hot = settings.worse * start_s / math.log(2)
    rate = settings.cooling ** (1 / settings.iterations)
    asked = 0

    def over(rng: np.random.Generator, best: SplitState, current: SplitState) -> bool:
        """Whether to end, asked before every iteration; what the last one came to is noted."""
        nonlocal asked
        if asked:
            history.append(SearchStep(valued.evaluations, current.objective_s, best.objective_s))
        asked += 1
        return asked > settings.iterations or best.objective_s <= bound_s * (1 + BETTER)

    found = package.iterate(
        SplitState(start, start_s),
        WheelByUses(settings, len(destroyers), len(repairers)),
        SimulatedAnnealing(hot, hot * settings.cooling, rate),
        over,
    )
    return found.best_state.splits, history
