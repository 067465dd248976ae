"""Cut models as the profiler tells of them: the parties that hold layers, and what they send."""

from collections.abc import Mapping
from typing import NamedTuple

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE, Role
from snake_jax.costs import memory, shapes
from snake_jax.costs.flops import StepFlops, chain_step_parts
from snake_jax.costs.layers import at_head, auxiliary_costs, batch_costs
from snake_jax.costs.shapes import BatchShape
from snake_jax.costs.traffic import stored_bytes
from snake_jax.models.language import LanguageModel
from snake_jax.params import LayerNames, num_bytes, num_params, select, without
from snake_jax.profiling.rows import ProfileRow, Sent
from snake_jax.profiling.subjects import Subject
from snake_jax.runs.job import Job, batch_messages, exchange_of, make_rule


class Party(NamedTuple):
    """One of the places that a cut model lies on, before it is known which node that is.

    Attributes:
      name: for people.
      role: in the chain.
      layers: that it trains.
    """

    name: str
    role: Role
    layers: LayerNames


def parties(job: Job) -> tuple[Party, ...]:
    """Those that a visit of a cut model lies on, in the order of the forward pass."""
    found = []
    trainable = (*job.plan.layer_names, *(layer.name for layer in job.auxiliary))
    for role in chains.roles(job.chain):
        layers = chains.owned(job.chain, job.model.layer_names, trainable, role)
        found.append(Party(_title(role), role, layers))
    return tuple(found)


def _title(role: Role) -> str:
    """A role for people: the nodes of a snake are the visiting one and those before it."""
    if role.kind == "node" and role.index > 0:
        return f"node {role.index} before"
    return role.kind


def party_rows(job: Job, subject: Subject, sent: Sent) -> tuple[ProfileRow, ...]:
    """A row for each party of a cut model; the weights of a visit go to and from its node.

    Args:
      job: of the split method.
      subject: that the rows are of.
      sent: bytes of weights of a visit.
    """
    params = job.task.like(job)
    rule = make_rule(job.config)
    flops = _flops(job, subject)
    exchange = exchange_of(job)
    base = without(shapes.held_shapes(subject.step.model, subject.adapters), params)

    # What a visit sends is told once, at its node.
    rows = []
    for party in parties(job):
        # Beside what trains lies what never does, as it is stored, what the party reads of
        # another's layers, and of adapters the columns that it reads only.
        trains = {}
        frozen_bytes = 0
        for name, subtree in select(params, party.layers).items():
            trains[name], read = shapes.trained_columns(subtree, subject.rank)
            frozen_bytes += 0 if read is None else num_bytes(read)
        for name in exchange.needed(party.role):
            if name in base:
                dtype = shapes.stored_dtype(name, subject.frozen_dtype)
                frozen_bytes += stored_bytes(base[name], dtype)
            elif name not in party.layers:
                frozen_bytes += num_bytes(params[name])
        state = memory.trained_bytes(trains, rule)._replace(frozen=frozen_bytes)
        row = ProfileRow(
            layer=party.name,
            trained=party.layers,
            params=num_params(trains),
            flops=flops[party.role],
            state=state,
            sent=sent if party.role == ON_NODE else None,
        )
        rows.append(row)
    return tuple(rows)


def _flops(job: Job, subject: Subject) -> Mapping[Role, StepFlops]:
    """Of a step, by role."""
    costs = batch_costs(subject.step, subject.batch, subject.adapters, subject.rank)
    if isinstance(job.model, LanguageModel):
        costs = at_head(job.model, costs)
        return chain_step_parts(job.chain, costs, (), True, job.plan.layer_names)
    # Gradients cross the cuts unless both sides have losses of their own.
    beside = auxiliary_costs(job.model, job.chain, job.auxiliary, subject.batch.size)
    gradients = not job.algorithm.local_losses
    return chain_step_parts(job.chain, costs, beside, gradients)


def cut_bytes(job: Job, batch: BatchShape) -> list[tuple[str, int]]:
    """What a step sends over the cuts, as words and bytes, in the order of sending."""
    # A message is one of a batch's images or tokens each: a step sends as many. Rows of text are
    # taken to be full.
    titles = {party.role: party.name for party in parties(job)}
    units = batch.size * batch.length if isinstance(job.model, LanguageModel) else batch.size
    found = []
    for message in batch_messages(job):
        way = f"{titles[message.source]} to {titles[message.destination]}"
        count = 1 if message.why == chains.SHARED else units
        found.append((f"{_words(message)}, {way}", message.bytes * count))
    return found


def _words(message: chains.Message) -> str:
    if message.why == message.item:
        return message.why
    return f"{message.why} of {message.item}"
