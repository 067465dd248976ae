"""Random Walking Snakes: the model lies over a snake of nodes whose head has the data; the snake
walks on.

Ardic et al., "Random Walking Snakes for Decentralized Learning at Edge Networks", IEEE LANMAN 2023,
as the Snake Learning papers describe it ("Split Learning"): no server, finely cut segments, heads
re-shuffled (here: every cycle takes the nodes in a new random order, each the head once; the body
is the nodes before it in that order, taken as a ring). Activations go down the snake and gradients
up, batch by batch; when it moves on, each segment goes to the next node.
"""

import numpy as np

from snake_jax.algorithms.base import NETWORK_FLAGS, Algorithm, no_merge_state, of_images, replace
from snake_jax.algorithms.chain import Chain, Segment
from snake_jax.algorithms.schedule import Plan, shuffled_nodes
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.errors import UserError


def _rounds(plan: Plan, cycle: int) -> tuple[Round, ...]:
    config = of_images(plan.config)
    heads = shuffled_nodes(config, cycle)
    turns = [(cycle * config.nodes + i, head, i) for i, head in enumerate(heads)]
    body = {
        i: tuple(heads[(i - k) % config.nodes] for k in range(1, config.snake_length))
        for _, _, i in turns
    }
    return tuple(
        (Visit(turn, cycle, head, plan.layer_names, others=body[i]),) for turn, head, i in turns
    )


def _chain(plan: Plan) -> Chain:
    """As many segments of about equally many layers as the snake is long."""
    length, layers = of_images(plan.config).snake_length, len(plan.layer_names)
    if length > min(layers, plan.config.nodes):
        raise UserError(
            f"--snake_length={length}: a snake needs a node and a layer for each segment; there "
            f"are "
            f"{plan.config.nodes} nodes and {layers} layers"
        )
    edges = np.cumsum(
        [0, *(len(part) for part in np.array_split(np.arange(layers), length))]
    ).tolist()
    return tuple(Segment(role, edges[role], edges[role + 1]) for role in range(length))


RANDOM_WALKING_SNAKES = Algorithm(
    name="random_walking_snakes",
    rounds=_rounds,
    traffic="walk",
    init_merge=no_merge_state,
    merge=replace,
    chain=_chain,
    flags=NETWORK_FLAGS | {"snake_length"},
)
