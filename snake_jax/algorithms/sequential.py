"""Sequential training of the full model, node after node (cyclic weight transfer).

Chang et al., "Distributed deep learning networks among institutions for medical imaging", JAMIA
2018.
"""

from snake_jax.algorithms.base import RELAY_FLAGS, Algorithm, no_merge_state, replace
from snake_jax.algorithms.schedule import Plan, relay, shuffled_nodes
from snake_jax.algorithms.visits import Round


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    """Every node once a cycle, all layers."""
    nodes = (
        shuffled_nodes(plan.config, cycle)
        if plan.config.shuffle_nodes
        else range(plan.config.nodes)
    )
    return relay(plan, cycle, [plan.layer_names] * plan.config.nodes, nodes)


SEQUENTIAL = Algorithm(
    name="sequential",
    rounds=_rounds,
    traffic="relay",
    init_merge=no_merge_state,
    merge=replace,
    flags=RELAY_FLAGS | {"shuffle_nodes"},
)
