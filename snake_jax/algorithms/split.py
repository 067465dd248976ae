"""Split Learning: node after node, each trains its first layers with the server's rest.

Gupta and Raskar, "Distributed learning of deep neural network over multiple agents", Journal of
Network and Computer Applications 2018, Algorithms 1 and 2 (batch by batch activations and labels
up, gradients down; then weights to the next node); with `--tail` the U-shape of Vepakomma et al.,
"Split learning for health", arXiv 1812.00564, section 2: labels stay.
"""

from snake_jax.algorithms.base import (
    INTERRUPTION_FLAGS,
    NETWORK_FLAGS,
    REPLACE,
    Algorithm,
    every_cycle,
    node_and_server,
)
from snake_jax.algorithms.schedule import Plan, relay
from snake_jax.algorithms.traffic import RELAY
from snake_jax.algorithms.visits import Rounds


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every node once a cycle."""
    return relay(plan, cycle, [plan.layer_names] * plan.config.nodes)


SPLIT = Algorithm(
    name="split",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=RELAY,
    merge=REPLACE,
    chain=node_and_server,
    flags=NETWORK_FLAGS
    | INTERRUPTION_FLAGS
    | {"mode", "carry_optimizer_state", "cut", "cloud_cut", "tail"},
)
