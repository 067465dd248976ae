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
from snake_jax.runs.job import Job, make_rule


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


def places(job: Job) -> tuple[Place, ...]:
    """The places that a visit of a cut model lies on, in the order of the forward pass."""
    titles = {ON_NODE: "node", ON_SERVER: ledger.SERVER}
    found = []
    for role in chains.roles(job.chain):
        layers = chains.held(job.chain, job.model.layer_names, role)
        if role == ON_NODE:
            layers += tuple(layer.name for layer in job.auxiliary)
        found.append(Place(titles.get(role, f"node {role} before"), role, layers))
    return tuple(found)


def place_rows(job: Job, sent: Sent) -> tuple[Row, ...]:
    """A row for each place of a cut model; the weights of a visit go to and from its node.

    Args:
      job: of the split method.
      sent: bytes of weights of a visit.
    """
    params = jax.eval_shape(lambda: image_task.init_params(job, jax.random.key(0)))
    batch_size, rule = job.config.batch_size, make_rule(job.config)
    costs = layer_costs(job.model, batch_size)
    beside = auxiliary_costs(job.model, job.chain, job.auxiliary, batch_size)
    gradients = not job.algorithm.local_losses
    flops = chain_step_parts(job.chain, costs, beside, gradients)
    rows = []
    for place in places(job):
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


def cut_bytes(job: Job) -> list[tuple[str, int]]:
    """What a step sends over the cuts, as words and bytes, in the order of sending."""
    titles = {place.role: place.name for place in places(job)}
    gradients = not job.algorithm.local_losses
    found = []
    for message in chains.messages(job.chain, job.model, job.config.compute_dtype, gradients):
        way = f"{titles[message.source]} to {titles[message.destination]}"
        num_bytes = message.bytes * job.config.batch_size
        found.append((f"{_words(message)}, {way}", num_bytes))
    return found


def _words(message: chains.Message) -> str:
    return message.why if message.why == message.item else f"{message.why} of {message.item}"
