"""Accelerated FL: nodes train the first layers with an auxiliary head, the server the rest, each on
a loss of its own.

Han et al., "Accelerating Federated Learning with Split Learning on Locally Generated Losses", ICML
Workshop on Federated Learning 2021. Activations and labels go up and no gradient comes back; the
nodes' parts with their heads, and the server's copies of the rest, are averaged after a round. In
the Snake Learning papers the node has the first two layers and a linear head (magazine, "Training
of Classification Tasks").
"""

from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    Algorithm,
    no_merge_state,
    node_and_server,
    replace,
    side_by_side,
)
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Round
from snake_jax.train.split import AUXILIARY


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    return side_by_side(plan, cycle, (*plan.layer_names, AUXILIARY))


ACCELERATED_FL = Algorithm(
    name="accelerated_fl",
    rounds=_rounds,
    traffic="star",
    init_merge=no_merge_state,
    merge=replace,
    chain=node_and_server,
    local_losses=True,
    flags=NETWORK_FLAGS | {"nodes_per_round", "cut"},
)
