"""Cut models as the profiler tells of them: the places that hold layers, and what they send."""

from typing import NamedTuple

import jax

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE, ON_SERVER
from snake_jax.costs import memory
from snake_jax.costs.flops import chain_step_parts
from snake_jax.costs.layers import auxiliary_costs, layer_costs
from snake_jax.nodes import ledger
from snake_jax.params import num_params, select
from snake_jax.profiling.rows import Row, Sent
from snake_jax.runs import image_task
from snake_jax.runs.setup import Setup, make_rule


class Place(NamedTuple):
    """A place of a cut model.

    Attributes:
      name: for people.
      role: in the chain.
      layers: that it holds and trains.
    """

    name: str
    role: int
    layers: tuple[str, ...]


def places(setup: Setup) -> tuple[Place, ...]:
    """The places that a visit of a cut model lies on, in the order of the forward pass."""
    titles = {ON_NODE: "node", ON_SERVER: ledger.SERVER}
    found = []
    for role in chains.roles(setup.chain):
        layers = chains.held(setup.chain, setup.model.layer_names, role)
        if role == ON_NODE:
            layers += tuple(layer.name for layer in setup.auxiliary)
        found.append(Place(titles.get(role, f"node {role} before"), role, layers))
    return tuple(found)


def place_rows(setup: Setup, sent: Sent) -> tuple[Row, ...]:
    """A row for each place of a cut model; the weights of a visit go to and from its node.

    Args:
      setup: of the split method.
      sent: bytes of weights of a visit.
    """
    params = jax.eval_shape(lambda: image_task.init_params(setup, jax.random.key(0)))
    batch_size, rule = setup.config.batch_size, make_rule(setup.config)
    costs = layer_costs(setup.model, batch_size)
    beside = auxiliary_costs(setup.model, setup.chain, setup.auxiliary, batch_size)
    gradients = not setup.algorithm.local_losses
    flops = chain_step_parts(setup.chain, costs, beside, gradients)
    rows = []
    for place in places(setup):
        held = select(params, place.layers)
        row = Row(
            layer=place.name,
            trained=place.layers,
            params=num_params(held),
            flops=flops[place.role],
            state=memory.trained_bytes(held, rule),
            sent=sent if place.role == ON_NODE else None,
        )
        rows.append(row)
    return tuple(rows)


def cut_bytes(setup: Setup) -> list[tuple[str, int]]:
    """What a step sends over the cuts, as words and bytes, in the order of sending."""
    titles = {place.role: place.name for place in places(setup)}
    gradients = not setup.algorithm.local_losses
    found = []
    for message in chains.messages(setup.chain, setup.model, setup.config.compute_dtype, gradients):
        way = f"{titles[message.source]} to {titles[message.destination]}"
        num_bytes = message.bytes * setup.config.batch_size
        found.append((f"{_words(message)}, {way}", num_bytes))
    return found


def _words(message: chains.Message) -> str:
    return message.why if message.why == message.item else f"{message.why} of {message.item}"
