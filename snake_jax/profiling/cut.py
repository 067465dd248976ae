"""Cut models as the profiler tells of them: the parties that hold layers, and what they send."""

import functools
from typing import NamedTuple

import jax

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE, Role
from snake_jax.costs import memory
from snake_jax.costs.flops import chain_step_parts
from snake_jax.costs.layers import auxiliary_costs, layer_costs
from snake_jax.params import LayerNames, num_params, select
from snake_jax.profiling.rows import ProfileRow, Sent
from snake_jax.runs import image_task
from snake_jax.runs.job import Job, make_rule


class Party(NamedTuple):
    """One of the places that a cut model lies on, before it is known which node that is.

    Attributes:
      name: for people.
      role: in the chain.
      layers: that it holds and trains.
    """

    name: str
    role: Role
    layers: LayerNames


def parties(job: Job) -> tuple[Party, ...]:
    """Those that a visit of a cut model lies on, in the order of the forward pass."""
    found = []
    for role in chains.roles(job.chain):
        layers = chains.held(job.chain, job.model.layer_names, role)
        if role == ON_NODE:
            layers += tuple(layer.name for layer in job.auxiliary)
        found.append(Party(_title(role), role, layers))
    return tuple(found)


def _title(role: Role) -> str:
    """A role for people: the nodes of a snake are the visiting one and those before it."""
    if role.kind == "node" and role.index > 0:
        return f"node {role.index} before"
    return role.kind


def party_rows(job: Job, sent: Sent) -> tuple[ProfileRow, ...]:
    """A row for each party of a cut model; the weights of a visit go to and from its node.

    Args:
      job: of the split method.
      sent: bytes of weights of a visit.
    """
    params = jax.eval_shape(functools.partial(image_task.init_params, job), jax.random.key(0))
    rule = make_rule(job.config)

    # Gradients cross the cuts unless both sides have losses of their own.
    costs = layer_costs(job.model, job.config.batch_size)
    beside = auxiliary_costs(job.model, job.chain, job.auxiliary, job.config.batch_size)
    gradients = not job.algorithm.local_losses
    flops = chain_step_parts(job.chain, costs, beside, gradients)

    # What a visit sends is told once, at its node.
    rows = []
    for party in parties(job):
        held = select(params, party.layers)
        row = ProfileRow(
            layer=party.name,
            trained=party.layers,
            params=num_params(held),
            flops=flops[party.role],
            state=memory.trained_bytes(held, rule),
            sent=sent if party.role == ON_NODE else None,
        )
        rows.append(row)
    return tuple(rows)


def cut_bytes(job: Job) -> list[tuple[str, int]]:
    """What a step sends over the cuts, as words and bytes, in the order of sending."""
    # A message is one of a batch's examples each: a step sends as many.
    titles = {party.role: party.name for party in parties(job)}
    gradients = not job.algorithm.local_losses
    found = []
    for message in chains.messages(job.chain, job.model, job.config.compute_dtype, gradients):
        way = f"{titles[message.source]} to {titles[message.destination]}"
        num_bytes = message.bytes * job.config.batch_size
        found.append((f"{_words(message)}, {way}", num_bytes))
    return found


def _words(message: chains.Message) -> str:
    if message.why == message.item:
        return message.why
    return f"{message.why} of {message.item}"
