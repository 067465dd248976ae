"""Sequential training of the full model, node after node (cyclic weight transfer).

Chang et al., "Distributed deep learning networks among institutions for medical imaging", JAMIA
2018.
"""

from snake_jax.algorithms.base import RELAY_FLAGS, REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, relay, shuffled_nodes
from snake_jax.algorithms.traffic import RELAY
from snake_jax.algorithms.visits import Rounds


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every node once a cycle, all layers."""
    config = plan.config
    nodes = list(range(config.nodes))
    if config.shuffle_nodes:
        nodes = shuffled_nodes(config, cycle)
    assignments = [plan.layer_names for _ in nodes]
    return relay(plan, cycle, assignments, nodes)


SEQUENTIAL = Algorithm(
    name="sequential",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=RELAY,
    merge=REPLACE,
    client=proximal_client,
    flags=RELAY_FLAGS | {"shuffle_nodes"},
)
