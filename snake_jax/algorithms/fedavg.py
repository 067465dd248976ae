"""Federated averaging: sampled nodes train the full model side by side, the server averages by examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1;
server momentum: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv 1909.06335, section 4.3 (FedAvgM).
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.algorithms.base import NETWORK_FLAGS, Algorithm
from snake_jax.config import Config
from snake_jax.executor import VisitResult
from snake_jax.layers import Params
from snake_jax.schedule import SAMPLE_TAG, Plan, Round, Visit


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    """A cycle is one round: all nodes, or `nodes_per_round` of them drawn without replacement."""
    config = plan.config
    nodes = list(range(config.nodes))
    if config.nodes_per_round:
        rng = np.random.default_rng([config.seed, SAMPLE_TAG, cycle])
        nodes = sorted(rng.choice(config.nodes, config.nodes_per_round, replace=False).tolist())
    return (tuple(Visit(cycle, cycle, node, plan.layer_names) for node in nodes),)


def _init_velocity(config: Config, params: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, params) if config.server_momentum else {}


def _merge(config: Config, params: Params, velocity: Any, results: Sequence[VisitResult]) -> tuple[Params, Any]:
    """Mean of the nodes' weights by the examples they hold; with momentum a step along the mean update's average."""
    if not results:
        return params, velocity
    trees = [result.layers for result in results]
    held = np.array([result.examples_held for result in results], np.float64)
    shares = (held / held.sum()).astype(np.float32)
    mean = jax.tree.map(lambda *w: functools.reduce(operator.add, map(operator.mul, shares, w)), *trees)
    if not config.server_momentum:
        return mean, velocity
    velocity = jax.tree.map(lambda v, m, p: config.server_momentum * v + (m - p), velocity, mean, params)
    return jax.tree.map(jnp.add, params, velocity), velocity


FEDAVG = Algorithm(
    name="fedavg",
    rounds=_rounds,
    traffic="star",
    init_merge=_init_velocity,
    merge=_merge,
    flags=NETWORK_FLAGS | {"nodes_per_round", "server_momentum"},
)
