"""Centralised training: all data in one place. The upper bound that others are measured against."""

import numpy as np

from snake_jax.algorithms.base import REPLACE, Algorithm, Shards, every_cycle
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.traffic import NO_TRAFFIC
from snake_jax.algorithms.visits import Rounds, Visit


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """A cycle is one visit over all data."""
    yield (Visit(cycle, cycle, 0, plan.layer_names),)


def pooled(shards: Shards) -> Shards:
    """One shard with the data of all, in the order of the data set, however it was divided."""
    together = np.concatenate(list(shards))
    return [np.sort(together)]


CENTRALISED = Algorithm(
    name="centralised",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=NO_TRAFFIC,
    merge=REPLACE,
    shards=pooled,
    at_server=True,
    flags=frozenset({"carry_optimizer_state"}),
)
