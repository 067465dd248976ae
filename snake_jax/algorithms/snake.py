"""Snake Learning: node after node, serpentine over the layers, each trains and hands on a few
layers only.

Yu et al., "Snake Learning: A Communication- and Computation-Efficient Distributed Learning
Framework for 6G", IEEE Communications Magazine 2025 (and arXiv 2405.03372), sections "Layer
Assignment" and "Local Training".
"""

from snake_jax.algorithms.base import RELAY_FLAGS, Algorithm, no_merge_state, replace
from snake_jax.algorithms.schedule import Plan, relay, serpentine
from snake_jax.algorithms.visits import Round


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    """Every middle layer once a cycle; `parallel` nodes train it side by side and the server
    averages them.
    """
    assignments = serpentine(plan, cycle)
    nodes = [plan.visitors[layers] for layers in assignments] if plan.visitors else None
    return relay(plan, cycle, assignments, nodes)


SNAKE = Algorithm(
    name="snake",
    rounds=_rounds,
    traffic="relay",
    init_merge=no_merge_state,
    merge=replace,
    flags=RELAY_FLAGS
    | {
        "order",
        "layers_per_visit",
        "always_train",
        "frozen_dtype",
        "parallel",
        "assign",
        "assign_objective",
    },
)
