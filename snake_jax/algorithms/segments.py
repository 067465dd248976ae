"""Several layers a visit: neighbouring layers for each node, as many as its capability says.

"Assigned layers proportionate to the computational capability and communication connectivity of
nodes" (snake_learning_magazine, "Layer Assignment"). A node's capability is one over the seconds
that a visit of one layer takes there, computing and links together.
"""

from collections.abc import Sequence

from snake_jax.algorithms.assignment import LESS_MEMORY
from snake_jax.errors import UserError

Span = tuple[int, int]
"""A run of neighbours, from the first to before the last."""


def shared_out(seconds: Sequence[float], most: Sequence[int], units: int) -> list[int]:
    """How many units each node has.

    Where there are enough every node that can hold one has one, so that its data is learnt from.
    The others go one by one to the node that would have the least seconds with one more, which is
    how seats are given by the largest quotient (D'Hondt): a node's share of the units is its share
    of the capability.

    Args:
      seconds: of one unit at each node.
      most: that each node can hold.
      units: how many there are.

    Raises:
      UserError: the nodes together hold fewer.
    """
    if sum(most) < units:
        raise UserError(
            f"--assign=segments: the {len(most)} nodes, one visit each, cannot hold all layers "
            f"once: {LESS_MEMORY}, or say --assign=proportional"
        )
    able = [node for node, bound in enumerate(most) if bound > 0]
    counts = [0] * len(most)
    if len(able) <= units:
        for node in able:
            counts[node] = 1
    while sum(counts) < units:
        open_to_more = [node for node in able if counts[node] < most[node]]
        node = min(open_to_more, key=lambda one: ((counts[one] + 1) * seconds[one], one))
        counts[node] += 1
    return counts


def runs(counts: Sequence[int]) -> dict[int, Span]:
    """`{node: its run of units}`: units in their order, nodes in theirs."""
    found = {}
    start = 0
    for node, count in enumerate(counts):
        if count:
            found[node] = start, start + count
            start += count
    return found
