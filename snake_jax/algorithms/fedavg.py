"""Federated averaging: sampled nodes train the full model side by side, the server averages.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017, Algorithm 1: the mean is weighted by the examples that the nodes hold. Server momentum: Hsu et
al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv 1909.06335, section 4.3 (FedAvgM).
"""

import jax
import jax.numpy as jnp

from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    Algorithm,
    Mean,
    Merge,
    add_to_mean,
    every_cycle,
    no_mean,
)
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, whole_side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Round
from snake_jax.config import RunConfig
from snake_jax.params import Params, PyTree


def _no_velocity(config: RunConfig, params: Params) -> Params:
    """The server's memory: as large as the model, and nothing without momentum."""
    if not config.server_momentum:
        return {}
    return jax.tree.map(jnp.zeros_like, params)


def _finish(
    plan: Plan, visits: Round, params: Params, velocity: PyTree, mean: Mean
) -> tuple[Params, PyTree]:
    """The mean; with momentum a step along the average of the mean updates.

    With the model x, the mean m of what the nodes trained and the momentum b: v <- b v + (m - x)
    and x <- x + v. Without momentum x + (m - x) would be m but for rounding: it is m.
    """
    del visits
    # No outcome: nobody came back, and the model stays as it is.
    if not mean.layers:
        return params, velocity
    momentum = plan.config.server_momentum
    if not momentum:
        return mean.layers, velocity

    def moved(v: jax.Array, m: jax.Array, x: jax.Array) -> jax.Array:
        return momentum * v + (m - x)

    velocity = jax.tree.map(moved, velocity, mean.layers, params)
    return jax.tree.map(jnp.add, params, velocity), velocity


FEDAVG = Algorithm(
    name="fedavg",
    rounds=every_cycle(whole_side_by_side),
    traffic=STAR,
    merge=Merge(no_mean, add_to_mean, _finish),
    memory=_no_velocity,
    client=proximal_client,
    unit="round",
    flags=NETWORK_FLAGS | {"nodes_per_round", "server_momentum", "proximal"},
)
