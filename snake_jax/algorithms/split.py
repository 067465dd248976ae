"""Split Learning: node after node, each trains its first layers together with the server's rest,
batch by batch.

Gupta and Raskar, "Distributed learning of deep neural network over multiple agents", Journal of
Network and Computer Applications 2018, Algorithms 1 and 2 (activations and labels up, gradients
down, weights to the next node); with `--tail` the U-shape of Vepakomma et al., "Split learning for
health", arXiv 1812.00564, section 2: labels stay.
"""

from snake_jax.algorithms.base import (
    INTERRUPTION_FLAGS,
    NETWORK_FLAGS,
    Algorithm,
    no_merge_state,
    node_and_server,
    replace,
)
from snake_jax.algorithms.schedule import Plan, relay
from snake_jax.algorithms.visits import Round


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    """Every node once a cycle."""
    return relay(plan, cycle, [plan.layer_names] * plan.config.nodes)


SPLIT = Algorithm(
    name="split",
    rounds=_rounds,
    traffic="relay",
    init_merge=no_merge_state,
    merge=replace,
    chain=node_and_server,
    flags=NETWORK_FLAGS | INTERRUPTION_FLAGS | {"mode", "carry_optimizer_state", "cut", "tail"},
)
