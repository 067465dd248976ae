"""Snake Learning: node after node, serpentine over the layers, each trains a few layers only.

Yu et al., "Snake Learning: A Communication- and Computation-Efficient Distributed Learning
Framework for 6G", IEEE Communications Magazine 2025 (and arXiv 2405.03372), sections "Layer
Assignment" and "Local Training".
"""

from snake_jax.algorithms.base import RELAY_FLAGS, REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.pool import POOL_FLAGS
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, relay, serpentine
from snake_jax.algorithms.traffic import RELAY
from snake_jax.algorithms.visits import Rounds

_OWN_FLAGS = frozenset(
    {
        "order",
        "layers_per_visit",
        "always_train",
        "frozen_dtype",
        "parallel",
        "assign",
        "assign_objective",
        "rates",
        "stand_in",
    }
)


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every middle layer once a cycle; `parallel` nodes train it side by side."""
    assignments = serpentine(plan, cycle)
    nodes: list[int] | None = None
    if plan.visitors:
        nodes = [plan.visitors[layers] for layers in assignments]
    return relay(plan, cycle, assignments, nodes)


SNAKE = Algorithm(
    name="snake",
    rounds=every_cycle(_rounds),
    traffic=RELAY,
    merge=REPLACE,
    client=proximal_client,
    flags=RELAY_FLAGS | POOL_FLAGS | _OWN_FLAGS,
)
