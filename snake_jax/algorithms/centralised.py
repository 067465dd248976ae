"""Centralised training: all data in one place. The upper bound that the others are measured
against.
"""

import numpy as np

from snake_jax.algorithms.base import Algorithm, Shards, no_merge_state, replace
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Round, Visit


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    """A cycle is one visit over all data."""
    return ((Visit(cycle, cycle, 0, plan.layer_names),),)


def _pooled(shards: Shards) -> Shards:
    return [np.sort(np.concatenate(list(shards)))]


CENTRALISED = Algorithm(
    name="centralised",
    rounds=_rounds,
    traffic="none",
    init_merge=no_merge_state,
    merge=replace,
    shards=_pooled,
    flags=frozenset({"carry_optimizer_state"}),
)
