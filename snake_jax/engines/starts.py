"""What the steps of visits start from, and what their method's client gives them."""

from collections.abc import Sequence

from snake_jax import processes
from snake_jax.engines.emulations import Emulation
from snake_jax.engines.orders import Bound
from snake_jax.params import Params, PyTree
from snake_jax.training.layout import Layout, Start
from snake_jax.training.update import Client


def start_of(
    layout: Layout,
    how: Emulation,
    params: Params,
    states: PyTree,
    layers: tuple[str, ...],
    node: int,
    lead: tuple[int, ...],
) -> Start:
    """What steps start from, a copy a node of what trains.

    Args:
      layout: of the layers in a program's arguments.
      how: the emulation.
      params: see `Layout.enter`, likewise the next three.
      states: to go on from.
      layers: that train.
      node: who.
      lead: leading axes of the program's nodes; none for one node.
    """
    start = layout.enter(params, states, layers, node, alone=not lead)
    if not lead:
        return start
    trainable, own_states = how.spread((start.trainable, start.states), lead)
    frozen, received = processes.put((start.frozen, start.received), how.shared)
    return Start(trainable, own_states, frozen, received)


def given_to(
    client: Client | None,
    layout: Layout,
    how: Emulation,
    group: Sequence[Bound],
    lead: tuple[int, ...],
) -> PyTree:
    """What the steps of these visits read for the method's client; `{}` without one."""
    if client is None:
        return {}
    trees = []
    for one in group:
        layers = one.visit.layers
        tree = client.given(one.shared, one.memory, layers)
        trees.append(layout.given(tree, layers, one.visit.node))
    return how.stack(trees, lead) if lead else trees[0]


def given_at_first(
    client: Client | None,
    layout: Layout,
    how: Emulation,
    params: Params,
    shared: PyTree,
    layers: tuple[str, ...],
    lead: tuple[int, ...],
) -> PyTree:
    """The same of a visit whose node remembers nothing yet."""
    if client is None:
        return {}
    tree = client.given(shared, client.memory(params), layers)
    tree = layout.given(tree, layers, 0)
    return how.stack([tree], lead) if lead else tree
