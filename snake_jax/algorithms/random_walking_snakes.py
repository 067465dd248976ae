"""Random Walking Snakes: the model lies over a snake of nodes whose head has the data.

Ardic et al., "Random Walking Snakes for Decentralized Learning at Edge Networks", IEEE LANMAN 2023,
as the Snake Learning papers describe it ("Split Learning"): no server, finely cut segments, heads
re-shuffled. Activations go down the snake and gradients up, batch by batch; when it moves on, each
segment goes to the next node.

How the head moves is a flag. `--walk=permutation`: every cycle takes the nodes in a new random
order, each the head once; the body is the nodes before it in that order, taken as a ring.
`uniform`: a random walk over the graph of neighbours (`--topology`), to each neighbour alike that
is not in the body, and back over the body where all are. `metropolis`: to a drawn neighbour with
the chance min(1, d / d') of their numbers of neighbours d and d', else the head stays, so that in
the long run all nodes are as often head (Metropolis-Hastings). In both the body is where the head
was last, each node once, and a cycle has as many visits as there are nodes.
"""

import numpy as np

from snake_jax import streams
from snake_jax.algorithms.base import (
    NETWORK_FLAGS,
    REPLACE,
    Algorithm,
    every_cycle,
)
from snake_jax.algorithms.chain import Chain, Role, Segment
from snake_jax.algorithms.neighbours import TOPOLOGY_FLAGS, check_degree, graph_of
from snake_jax.algorithms.schedule import Plan, shuffled_nodes
from snake_jax.algorithms.traffic import WALK
from snake_jax.algorithms.visits import Rounds, Visit
from snake_jax.errors import UserError
from snake_jax.nodes import topology
from snake_jax.nodes.topology import Graph


def _course(plan: Plan) -> Rounds:
    """From cycle to cycle, or one walk through the run."""
    if plan.config.walk == "permutation":
        return every_cycle(_rounds)(plan)
    return _walk(plan)


def _walk(plan: Plan) -> Rounds:
    """A visit at each step of the walk."""
    config = plan.config
    graph = graph_of(config)
    rng = streams.generator(config.seed, "schedule/walk", 0)
    trail = [int(rng.integers(config.nodes))]

    # Before its first visit the snake has to have come to its length.
    step = 1
    while len(trail) < config.snake_length:
        trail = _moved(plan, graph, trail, step)
        step += 1
    for turn in range(config.cycles * config.nodes):
        head, *body = trail[: config.snake_length]
        cycle = turn // config.nodes
        yield (Visit(turn, cycle, head, plan.layer_names, others=tuple(body)),)
        trail = _moved(plan, graph, trail, step)
        step += 1


def _moved(plan: Plan, graph: Graph, trail: list[int], step: int) -> list[int]:
    """Where the head was, from the last node on and each once, after one step more."""
    config = plan.config
    head = trail[0]
    near = topology.neighbours(graph, head, config.nodes)
    if not near:
        return trail
    rng = streams.generator(config.seed, "schedule/walk", step)
    if config.walk == "metropolis":
        there = int(rng.choice(near))
        others = len(topology.neighbours(graph, there, config.nodes))
        if rng.random() >= len(near) / others:
            return trail
    else:
        body = trail[1 : config.snake_length]
        free = [node for node in near if node not in body]
        there = int(rng.choice(np.array(free or near)))
    return [there, *(node for node in trail if node != there)]


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
    rounds=_course,
    cycle=_rounds,
    traffic=WALK,
    merge=REPLACE,
    chain=_chain,
    check=check_degree,
    flags=NETWORK_FLAGS | TOPOLOGY_FLAGS | {"snake_length", "walk"},
)
