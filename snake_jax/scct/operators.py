"""What Algorithm 2 destroys and repairs: operators of adaptive large neighbourhood search that know
the problem.

To destroy is to take some devices' split points away; to repair is to give these devices new ones.
Every operator makes a new state: the package hands over the current one itself. Until a device is
repaired it stands at what is usual among the samples' own choices (`snake_jax/scct/bound.py`), so
that what is decided before it does not lean on what was taken away.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from snake_jax.scct import latency
from snake_jax.scct.scenario import fits
from snake_jax.scct.valued import Valued

_MOST_AT_ONCE = 4  # devices destroyed
_COPIED = 8  # samples whose own choices are tried


class SplitState(NamedTuple):
    """Split points, whole or destroyed.

    Attributes:
      splits: [N].
      objective_s: of whole ones, seconds a round; computed once, since the package asks for it
        several times an iteration.
      missing: devices that wait for repair.
    """

    splits: np.ndarray
    objective_s: float
    missing: tuple[int, ...] = ()

    def objective(self) -> float:
        """What the package minimises."""
        return self.objective_s


Operator = Callable[[SplitState, np.random.Generator], SplitState]


def destroyers(valued: Valued, own: np.ndarray) -> dict[str, Operator]:
    """Operators by name, from whole states to destroyed ones.

    Args:
      valued: of the scenario.
      own: [Q, N] split points that each sample would choose for itself.
    """
    usual = np.median(own, axis=0).astype(int)
    usual = np.clip(usual, 1, valued.largest)
    undecided = own.std(axis=0)

    def without(state: SplitState, liking: np.ndarray, rng: np.random.Generator) -> SplitState:
        """Some devices less, drawn in proportion to a liking [N]."""
        devices = len(liking)
        count = int(rng.integers(1, min(_MOST_AT_ONCE, devices) + 1))
        # A little for all: whatever is liked, every device can be drawn.
        likely = liking + 0.05 * liking.mean() + 1e-9
        drawn = rng.choice(devices, count, replace=False, p=likely / likely.sum())
        splits = state.splits.copy()
        splits[drawn] = usual[drawn]
        return SplitState(splits, np.inf, tuple(drawn.tolist()))

    def at_random(state: SplitState, rng: np.random.Generator) -> SplitState:
        """Any devices."""
        return without(state, np.ones(len(state.splits)), rng)

    def slowest(state: SplitState, rng: np.random.Generator) -> SplitState:
        """Devices that would be slow with an equal part of everything."""
        return without(state, _equal_s(valued, state.splits) ** 2, rng)

    def unlike_own(state: SplitState, rng: np.random.Generator) -> SplitState:
        """Devices whose split point is far from what the samples would choose for themselves."""
        return without(state, np.abs(own - state.splits).mean(axis=0), rng)

    def disputed(state: SplitState, rng: np.random.Generator) -> SplitState:
        """Devices that the samples want split differently."""
        return without(state, undecided, rng)

    known = (at_random, slowest, unlike_own, disputed)
    return {operator.__name__: operator for operator in known}


def repairers(valued: Valued, own: np.ndarray) -> dict[str, Operator]:
    """Operators by name, from destroyed states to whole ones, which fit.

    Args:
      valued: of the scenario.
      own: [Q, N] split points that each sample would choose for itself.
    """

    def greedy(state: SplitState, rng: np.random.Generator) -> SplitState:
        """Missing devices, in an order by chance, take the best split point there is for them."""
        splits, objective_s = state.splits, state.objective_s
        waiting = rng.permutation(state.missing).tolist()
        while waiting:
            device = waiting.pop()
            candidates = valued.choices(splits, device, later=tuple(waiting))
            objectives_s = valued.of(candidates)
            splits, objective_s = candidates[objectives_s.argmin()], float(objectives_s.min())
        return SplitState(splits, objective_s)

    def as_a_sample(state: SplitState, rng: np.random.Generator) -> SplitState:
        """Missing devices take the choices of one sample, the best of some drawn ones."""
        missing = list(state.missing)
        drawn = rng.choice(len(own), min(_COPIED, len(own)), replace=False)
        candidates = np.repeat(state.splits[None], len(drawn), axis=0)
        candidates[:, missing] = own[drawn][:, missing]
        fitting = candidates[fits(valued.scenario, candidates)]
        if not len(fitting):
            return greedy(state, rng)
        objectives_s = valued.of(fitting)
        return SplitState(fitting[objectives_s.argmin()], float(objectives_s.min()))

    return {operator.__name__: operator for operator in (greedy, as_a_sample)}


def _equal_s(valued: Valued, splits: np.ndarray) -> np.ndarray:
    """[N] mean seconds of an iteration with 1 / N of the edge and K // N subcarriers."""
    problem = latency.problem(valued.scenario, splits)
    shape = problem.device_s.shape
    each = np.full(shape, problem.subcarriers // shape[-1])
    return latency.iteration_s(problem, np.full(shape, 1 / shape[-1]), each).mean(axis=0)
