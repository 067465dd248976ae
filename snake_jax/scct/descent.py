"""Descent: device after device takes its best split point, until none has a better one."""

import numpy as np

from snake_jax.scct.valued import BETTER, SearchStep, Valued


def descend(valued: Valued, start: np.ndarray) -> tuple[np.ndarray, list[SearchStep]]:
    """Split points [N] that no change of one device makes better, and the way from `start` there.

    Args:
      valued: of the scenario.
      start: [N] split points that fit.
    """
    splits, least_s = start, valued.of_one(start)
    history = [SearchStep(valued.evaluations, least_s, least_s)]
    devices = len(start)
    device, unmoved = 0, 0
    while unmoved < devices:
        candidates = valued.choices(splits, device)
        objectives_s = valued.of(candidates)
        unmoved += 1
        if objectives_s.min() < least_s * (1 - BETTER):
            splits, least_s = candidates[objectives_s.argmin()], float(objectives_s.min())
            unmoved = 1
            history.append(SearchStep(valued.evaluations, least_s, least_s))
        device = (device + 1) % devices
    return splits, history
