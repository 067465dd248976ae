"""Random Walking Snakes: the model lies over a snake of nodes whose head has the data.

Ardic et al., "Random Walking Snakes for Decentralized Learning at Edge Networks", IEEE LANMAN 2023,
as the Snake Learning papers describe it ("Split Learning"): no server, finely cut segments, heads
re-shuffled (here: every cycle takes the nodes in a new random order, each the head once; the body
is the nodes before it in that order, taken as a ring). Activations go down the snake and gradients
up, batch by batch; when it moves on, each segment goes to the next node.
"""

from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    REPLACE,
    Algorithm,
    every_cycle,
)
from snake_jax.algorithms.chain import Chain, Role, Segment
from snake_jax.algorithms.schedule import Plan, shuffled_nodes
from snake_jax.algorithms.traffic import WALK
from snake_jax.algorithms.visits import Rounds, Visit
from snake_jax.errors import UserError


def _rounds(plan: Plan, cycle: int) -> Rounds:
    """Every node is the head once a cycle, in an order drawn for the cycle."""
    config = plan.config
    heads = shuffled_nodes(config, cycle)
    for index, head in enumerate(heads):
        # The body are the heads before this one, the nearest first, taken as a ring.
        body = []
        for back in range(1, config.snake_length):
            body.append(heads[(index - back) % config.nodes])
        turn = cycle * config.nodes + index
        yield (Visit(turn, cycle, head, plan.layer_names, others=tuple(body)),)


def _chain(plan: Plan) -> Chain:
    """As many segments of about equally many layers as the snake is long.

    Raises:
      UserError: there are fewer nodes, or fewer layers, than segments.
    """
    # Both nodes and layers bound the snake's length.
    length = plan.config.snake_length
    layers = len(plan.model_layers)
    if length > min(layers, plan.config.nodes):
        raise UserError(
            f"--snake_length={length}: a snake needs a node and a layer for each segment; there "
            f"are {plan.config.nodes} nodes and {layers} layers"
        )

    # The layers that are left over by the division go to the first segments, one each.
    each, left_over = divmod(layers, length)
    segments = []
    start = 0
    for index in range(length):
        stop = start + each
        if index < left_over:
            stop += 1
        segments.append(Segment(Role("node", index), start, stop))
        start = stop
    return tuple(segments)


RANDOM_WALKING_SNAKES = Algorithm(
    name="random_walking_snakes",
    rounds=every_cycle(_rounds),
    cycle=_rounds,
    traffic=WALK,
    merge=REPLACE,
    chain=_chain,
    flags=NETWORK_FLAGS | {"snake_length"},
)
