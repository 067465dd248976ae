"""SplitFed Learning: split training of all nodes in a round, their parts averaged by a federated
server.

Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, Algorithms 1 and
2. v1: the main server has a copy of its part for each node, trained side by side and averaged. v2:
it has one, trained on node after node in random order; only the nodes' parts are averaged.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snake_jax import streams
from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    Algorithm,
    average,
    node_and_server,
    of_images,
    sampled_nodes,
    side_by_side,
)
from snake_jax.algorithms.chain import ON_NODE, held
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome, Round, Visit
from snake_jax.config import RunConfig
from snake_jax.params import Params, select


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    config, names = of_images(plan.config), plan.layer_names
    if of_images(config).splitfed_version == "v1":
        return side_by_side(plan, cycle, names)
    nodes = sampled_nodes(config, cycle)
    order = (
        streams.generator(config.seed, "schedule/server_order", cycle).permutation(nodes).tolist()
    )
    return tuple(
        (Visit(cycle * len(nodes) + i, cycle, node, names),) for i, node in enumerate(order)
    )


def _init_sums(config: RunConfig, params: Params) -> dict[str, Any]:
    """v2: the weighted sum of the nodes' parts so far in the cycle, and of the weights."""
    if of_images(config).splitfed_version == "v1":
        return {}
    return {"sum": jax.tree.map(jnp.zeros_like, params), "examples": jnp.zeros(())}


def _merge(
    plan: Plan, visits: Round, params: Params, state: Any, results: Sequence[Outcome]
) -> tuple[Params, Any]:
    if of_images(plan.config).splitfed_version == "v1":
        return {**params, **average(results)}, state
    nodes_part = held(node_and_server(plan), plan.layer_names, ON_NODE)
    for result in results:
        weight = float(result.examples_held)
        total = jax.tree.map(
            lambda s, w, weight=weight: s + weight * w,
            select(state["sum"], nodes_part),
            select(result.layers, nodes_part),
        )
        state = {"sum": {**state["sum"], **total}, "examples": state["examples"] + weight}
        params = {**params, **{n: w for n, w in result.layers.items() if n not in nodes_part}}
    if visits == _rounds(plan, visits[0].cycle)[-1] and state["examples"] > 0:
        mean = jax.tree.map(lambda s: s / state["examples"], select(state["sum"], nodes_part))
        return {**params, **mean}, jax.tree.map(jnp.zeros_like, state)
    return params, state


SPLITFED = Algorithm(
    name="splitfed",
    rounds=_rounds,
    traffic="star",
    init_merge=_init_sums,
    merge=_merge,
    chain=node_and_server,
    flags=NETWORK_FLAGS | {"nodes_per_round", "cut", "tail", "splitfed_version"},
)
