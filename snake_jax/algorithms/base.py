"""What a method is: a plan of visits, where the layers lie, a way its weights travel, and a
merge.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snake_jax import streams
from snake_jax.algorithms.chain import ON_NODE, ON_SERVER, Chain, Segment
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome, Round, Visit
from snake_jax.config import ImageConfig, RunConfig
from snake_jax.errors import UserError
from snake_jax.params import Params

Shards = Sequence[np.ndarray]
Merge = Callable[[Plan, Round, Params, Any, Sequence[Outcome]], tuple[Params, Any]]

NETWORK_FLAGS = frozenset({"cached"})
INTERRUPTION_FLAGS = frozenset({"interrupt", "fault_rate", "interruption"})
RELAY_FLAGS = (
    NETWORK_FLAGS | INTERRUPTION_FLAGS | {"mode", "distill", "carry_optimizer_state", "proximal"}
)


def whole_model(plan: Plan) -> Chain:
    """All layers on the visiting node."""
    return (Segment(ON_NODE, 0, len(plan.layer_names)),)


class Algorithm(NamedTuple):
    """A method as pure functions.

    Attributes:
      name: the value of `--algorithm`.
      rounds: `(plan, cycle) -> rounds` of the cycle; a round's visits run side by side from the
        same parameters.
      traffic: none (data and model in one place), relay (visit after visit, through the server or
        node to node), star (every visit through the server, which merges) or walk (segments go from
        node to node).
      init_merge: `(config, params) -> state` of the merge, a tree of arrays.
      merge: `(plan, visits, params, state, results) -> (params, state)` after a round; there may be
        fewer results than visits.
      chain: `plan -> chain`, where the layers of a visit lie.
      local_losses: both sides of the chain's cut have a loss of their own: an auxiliary head below,
        no gradient back.
      shards: `shards -> shards`, where the data is not trained on as it lies on the nodes.
      flags: those of the flags not meant for every method that it has a use for (`RELAY_FLAGS`,
        ...).
    """

    name: str
    rounds: Callable[[Plan, int], tuple[Round, ...]]
    traffic: str
    init_merge: Callable[[RunConfig, Params], Any]
    merge: Merge
    chain: Callable[[Plan], Chain] = whole_model
    local_losses: bool = False
    shards: Callable[[Shards], Shards] = lambda shards: shards
    flags: frozenset[str] = frozenset()


def no_merge_state(config: RunConfig, params: Params) -> dict[str, Any]:
    """For merges that remember nothing."""
    del config, params
    return {}


def replace(
    plan: Plan, visits: Round, params: Params, state: Any, results: Sequence[Outcome]
) -> tuple[Params, Any]:
    """The trained layers take the place of the old ones; their mean, where several nodes trained
    them side by side.
    """
    del plan, visits
    return {**params, **average(results)}, state


def average(results: Sequence[Outcome]) -> Params:
    """The mean of the trained layers, weighted by the examples the nodes hold; `{}` of no
    results.
    """
    if len(results) < 2:
        return results[0].layers if results else {}
    held = np.array([result.examples_held for result in results], np.float64)
    shares = (held / held.sum()).astype(np.float32)
    return _weighted_sum(shares, [result.layers for result in results])


@jax.jit
def _weighted_sum(shares: jax.Array, trees: list[Params]) -> Params:
    return jax.tree.map(
        lambda *w: functools.reduce(operator.add, map(operator.mul, shares, w)), *trees
    )


def sampled_nodes(config: RunConfig, cycle: int) -> list[int]:
    """The nodes of a round: all, or `nodes_per_round` of them drawn without replacement."""
    if not config.nodes_per_round:
        return list(range(config.nodes))
    rng = streams.generator(config.seed, "schedule/sampled", cycle)
    return sorted(rng.choice(config.nodes, config.nodes_per_round, replace=False).tolist())


def side_by_side(plan: Plan, cycle: int, layers: tuple[str, ...]) -> tuple[Round, ...]:
    """A cycle is one round of all or the sampled nodes."""
    return (tuple(Visit(cycle, cycle, node, layers) for node in sampled_nodes(plan.config, cycle)),)


def of_images(config: RunConfig) -> ImageConfig:
    """The configuration of a method that cuts models: those are networks for images."""
    assert isinstance(config, ImageConfig), "methods that cut a model are offered for images only"
    return config


def node_and_server(plan: Plan) -> Chain:
    """The first layers, up to `--cut`, on the node, the rest on the server; the last `--tail` on
    the node again.

    Raises:
      UserError: the flags leave the server no layer, or name none of the model's.
    """
    names, config = plan.layer_names, of_images(plan.config)
    cut, end = _cut_index(config.cut, names), len(names) - config.tail
    if not 0 < cut < end:
        raise UserError(
            f"--cut={config.cut} with --tail={config.tail}: node and server need at least one of "
            f"the {len(names)} "
            f"layers each: {', '.join(names)}"
        )
    tail = (Segment(ON_NODE, end, len(names)),) if config.tail else ()
    return (Segment(ON_NODE, 0, cut), Segment(ON_SERVER, cut, end), *tail)


def _cut_index(text: str, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + 1
    if text.isdecimal():
        return int(text)
    raise UserError(
        f"--cut={text}: want a number of layers or the name of the node's last one: "
        f"{', '.join(names)}"
    )
