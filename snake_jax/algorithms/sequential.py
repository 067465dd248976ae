"""Sequential training of the full model, node after node (cyclic weight transfer).

Chang et al., "Distributed deep learning networks among institutions for medical imaging", JAMIA
2018.
"""

from snake_jax.algorithms import neighbours
from snake_jax.algorithms.base import RELAY_FLAGS, REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.neighbours import TOPOLOGY_FLAGS
from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.schedule import Plan, relay, shuffled_nodes
from snake_jax.algorithms.traffic import RELAY
from snake_jax.algorithms.visits import Rounds
from snake_jax.params import LayerNames


def _course(plan: Plan) -> Rounds:
    """From cycle to cycle, or where nodes have neighbours from hop to hop."""
    if neighbours.is_graph(plan.config):
        return neighbours.relay_over_graph(plan, _assignments)
    return every_cycle(_rounds)(plan)


def _assignments(plan: Plan, cycle: int) -> list[LayerNames]:
    """A cycle has as many turns as nodes."""
    del cycle
    return [plan.layer_names] * plan.config.nodes


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every node once a cycle, all layers."""
    config = plan.config
    nodes = list(range(config.nodes))
    if config.shuffle_nodes:
        nodes = shuffled_nodes(config, cycle)
    return relay(plan, cycle, _assignments(plan, cycle), nodes)


SEQUENTIAL = Algorithm(
    name="sequential",
    rounds=_course,
    cycle=_rounds,
    traffic=RELAY,
    merge=REPLACE,
    client=proximal_client,
    check=neighbours.check,
    flags=RELAY_FLAGS | TOPOLOGY_FLAGS | {"shuffle_nodes"},
)
