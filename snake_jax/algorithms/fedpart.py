"""FedPart: federated averaging, one layer after the other, with rounds of the full model between.

Wang et al., "Why Go Full? Elevating Federated Learning Through Partial Network Updates", NeurIPS
2024 (arXiv 2410.11559), section 3. A cycle is `--full_rounds` rounds in which all nodes train all
layers, then `--rounds_per_layer` rounds for each layer, or each `--layers_per_visit` neighbours, in
`--order`. Layers of `--always_train` train in every round; the paper has none of these.
"""

from snake_jax.algorithms.base import NETWORK_FLAGS, REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.pool import POOL_FLAGS
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, sampled_nodes, serpentine
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Rounds, Visit

_OWN_FLAGS = frozenset(
    {
        "full_rounds",
        "rounds_per_layer",
        "order",
        "layers_per_visit",
        "always_train",
        "frozen_dtype",
        "nodes_per_round",
        "proximal",
    }
)


def _rounds(plan: Plan, cycle: int) -> Rounds:
    config = plan.config
    groups = [plan.layer_names] * config.full_rounds
    for layers in serpentine(plan, cycle):
        groups += [layers] * config.rounds_per_layer
    first = cycle * len(groups)
    for turn, layers in enumerate(groups, start=first):
        nodes = sampled_nodes(config, turn)
        yield tuple(Visit(turn, cycle, node, layers) for node in nodes)


FEDPART = Algorithm(
    name="fedpart",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=STAR,
    merge=REPLACE,
    client=proximal_client,
    unit="round",
    flags=NETWORK_FLAGS | POOL_FLAGS | _OWN_FLAGS,
)
