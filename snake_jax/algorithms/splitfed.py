"""SplitFed Learning: split training of all nodes in a round, their parts averaged by a server.

Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, Algorithms 1 and
2. v1: the main server has a copy of its part for each node, trained side by side and averaged. v2:
it has one, trained on node after node in random order; only the nodes' parts are averaged, once a
cycle.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax import streams
from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    Algorithm,
    Mean,
    Merge,
    add_to_mean,
    every_cycle,
    no_mean,
    node_and_server,
    put_mean,
)
from snake_jax.algorithms.chain import ON_NODE, owned
from snake_jax.algorithms.schedule import Plan, sampled_nodes, whole_side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Outcome, Round, Rounds, Visit
from snake_jax.config import RunConfig
from snake_jax.params import Params, PyTree, select, without


class MergedRound(NamedTuple):
    """A round of SplitFed: of v1 the mean of its outcomes, of v2 its one outcome.

    Attributes:
      mean: of the outcomes.
      outcome: the last one; None before there is one.
    """

    mean: Mean
    outcome: Outcome | None


def _is_v1(config: RunConfig) -> bool:
    """Whether the main server has a copy of its part for each node."""
    return config.splitfed_version == "v1"


def _server_order(plan: Plan, cycle: int) -> list[int]:
    """v2: the nodes of a cycle, in the order in which the server's part trains on them."""
    rng = streams.generator(plan.config.seed, "schedule/server_order", cycle)
    nodes = sampled_nodes(plan.config, cycle)
    return rng.permutation(nodes).tolist()


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """v1: one round of all nodes. v2: as many rounds of one."""
    if _is_v1(plan.config):
        yield from whole_side_by_side(plan, cycle)
        return

    # The server's one copy trains on node after node, so each is a round of its own.
    order = _server_order(plan, cycle)
    first = cycle * len(order)
    for index, node in enumerate(order):
        yield (Visit(first + index, cycle, node, plan.layer_names),)


def _no_sums(config: RunConfig, params: Params) -> dict[str, PyTree]:
    """v2: the weighted sum of the nodes' parts so far in the cycle, and of the weights."""
    # v1 has all outcomes of a cycle in one round: nothing is to be remembered.
    if _is_v1(config):
        return {}
    return {"sum": jax.tree.map(jnp.zeros_like, params), "examples": jnp.zeros(())}


def _init(plan: Plan, visits: Round, params: Params, memory: PyTree) -> MergedRound:
    return MergedRound(no_mean(plan, visits, params, memory), None)


def _add(part: MergedRound, outcome: Outcome) -> MergedRound:
    return MergedRound(add_to_mean(part.mean, outcome), outcome)


def _finish(
    plan: Plan, visits: Round, params: Params, memory: PyTree, part: MergedRound
) -> tuple[Params, PyTree]:
    """v1: the mean of all. v2: the server's part as trained, the nodes' parts summed or averaged.

    With w_i the part of node i and e_i the examples that it holds, the sum is of e_i w_i over the
    nodes so far; after the last the mean is that over the sum of e_i.
    """
    if _is_v1(plan.config):
        return put_mean(plan, visits, params, memory, part.mean)
    chain = node_and_server(plan)
    node_layers = owned(chain, plan.model_layers, plan.layer_names, ON_NODE)

    # The server's part goes on from visit to visit; the node's is added up.
    if part.outcome is not None:
        trained = part.outcome.layers
        weight = float(part.outcome.examples_held)

        def weighed(total: jax.Array, weights: jax.Array) -> jax.Array:
            return total + weight * weights

        before = select(memory["sum"], node_layers)
        totals = jax.tree.map(weighed, before, select(trained, node_layers))
        examples = memory["examples"] + weight
        memory = {"sum": {**memory["sum"], **totals}, "examples": examples}
        params = {**params, **without(trained, node_layers)}

    # The last visit of a cycle: every node goes on from the mean of the nodes' parts.
    (visit,) = visits
    is_last = visit.node == _server_order(plan, visit.cycle)[-1]
    if is_last and memory["examples"] > 0:
        examples = memory["examples"]

        def averaged(total: jax.Array) -> jax.Array:
            return total / examples

        mean = jax.tree.map(averaged, select(memory["sum"], node_layers))
        return {**params, **mean}, jax.tree.map(jnp.zeros_like, memory)
    return params, memory


SPLITFED = Algorithm(
    name="splitfed",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=STAR,
    merge=Merge(_init, _add, _finish),
    memory=_no_sums,
    chain=node_and_server,
    unit="round",
    flags=NETWORK_FLAGS | {"nodes_per_round", "cut", "cloud_cut", "tail", "splitfed_version"},
)
