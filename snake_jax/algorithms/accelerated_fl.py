"""Accelerated FL: nodes train the first layers with a head of their own, the server the rest.

Each has a loss of its own.

Han et al., "Accelerating Federated Learning with Split Learning on Locally Generated Losses", ICML
Workshop on Federated Learning 2021. Activations and labels go up and no gradient comes back; the
nodes' parts with their heads, and the server's copies of the rest, are averaged after a round. So
a node goes on while the server trains on what it sent: the clock has both at the same time
(`snake_jax.nodes.overlap`, with the formula). In
the Snake Learning papers the node has the first two layers and a linear head (magazine, "Training
of Classification Tasks").
"""

from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    REPLACE,
    Algorithm,
    every_cycle,
    node_and_server,
)
from snake_jax.algorithms.schedule import Plan, side_by_side
from snake_jax.algorithms.traffic import STAR
from snake_jax.algorithms.visits import Rounds
from snake_jax.training.split import AUXILIARY


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """The nodes of a round train their head too."""
    return side_by_side(plan, cycle, (*plan.layer_names, AUXILIARY))


ACCELERATED_FL = Algorithm(
    name="accelerated_fl",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=STAR,
    merge=REPLACE,
    chain=node_and_server,
    local_losses=True,
    unit="round",
    flags=NETWORK_FLAGS | {"nodes_per_round", "cut"},
)
