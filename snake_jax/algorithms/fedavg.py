"""Federated averaging: sampled nodes train the full model side by side, the server averages by
examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017, Algorithm 1; server momentum: Hsu et al., "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", arXiv 1909.06335, section 4.3 (FedAvgM); proximal
term: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2
(FedProx).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snake_jax.algorithms.base import NETWORK_FLAGS, Algorithm, average, side_by_side
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.config import RunConfig
from snake_jax.params import Params


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    return side_by_side(plan, cycle, plan.layer_names)


def _init_velocity(config: RunConfig, params: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, params) if config.server_momentum else {}


def _merge(
    plan: Plan, visits: Round, params: Params, velocity: Any, results: Sequence[Outcome]
) -> tuple[Params, Any]:
    """Mean of the nodes' weights by the examples they hold; with momentum a step along the mean
    update's average.
    """
    del visits
    if not results:
        return params, velocity
    mean, momentum = average(results), plan.config.server_momentum
    if not momentum:
        return mean, velocity
    velocity = jax.tree.map(lambda v, m, p: momentum * v + (m - p), velocity, mean, params)
    return jax.tree.map(jnp.add, params, velocity), velocity


FEDAVG = Algorithm(
    name="fedavg",
    rounds=_rounds,
    traffic="star",
    init_merge=_init_velocity,
    merge=_merge,
    flags=NETWORK_FLAGS | {"nodes_per_round", "server_momentum", "proximal"},
)
