"""Orders with what they name: from versions to values, which are alike, and what comes of one."""

from collections.abc import Mapping
from typing import NamedTuple

from snake_jax.algorithms.visits import Order, Outcome, Round, Visit
from snake_jax.engines.contract import Held, Holdings
from snake_jax.engines.epochs import Tally, VisitSettings, mean_rate, why_ended
from snake_jax.params import Params, PyTree, num_bytes, select
from snake_jax.training.optimizers import OptimizerStates
from snake_jax.training.update import Client


class Bound(NamedTuple):
    """An order with the values of what it names.

    Attributes:
      order: of the visit.
      params: all that it reads or trains.
      states: optimizer states to go on from, by layer.
      memory: what the node remembers for the method's client.
      shared: what the server tells all nodes for it.
    """

    order: Order
    params: Params
    states: OptimizerStates
    memory: PyTree
    shared: PyTree

    @property
    def visit(self) -> Visit:
        """Of the order."""
        return self.order.visit


def bound(order: Order, holdings: Holdings, client: Client | None) -> Bound:
    """The order with what it names; a node that remembers nothing yet begins to.

    Args:
      order: of the visit.
      holdings: that it names versions of.
      client: the method's.

    Raises:
      ValueError: another version is held.
    """
    params = _named(holdings.layers, order.layers)
    states = _named(holdings.states, order.states)
    memory: PyTree = {}
    if order.memory is not None:
        memory = _of_version(holdings.memory[order.visit.node], order.memory)
    elif client is not None:
        memory = client.memory(params)
    return Bound(order, params, states, memory, _of_version(holdings.shared, order.shared))


def _named(held: Mapping[str, Held], versions: Mapping[str, int]) -> dict[str, PyTree]:
    return {name: _of_version(held[name], version) for name, version in versions.items()}


def _of_version(held: Held, version: int) -> PyTree:
    if held.version != version:
        raise ValueError(f"version {version} is wanted, version {held.version} is held")
    return held.value


def are_alike(order: Order, first: Order) -> bool:
    """Whether one program can carry out both: same layers, from the same weights and states."""
    same_start = order.layers == first.layers and order.states == first.states
    same_steps = order.learning_rate == first.learning_rate
    return same_start and same_steps and order.visit.layers == first.visit.layers


def first_group(waiting: list[Bound], together: bool) -> tuple[list[Bound], list[Bound]]:
    """The first order with those that go with it, and those that wait on.

    Args:
      waiting: at least one.
      together: whether a program may carry out several. Else nobody is compared: of n orders that
        would be n^2 comparisons a round.
    """
    first, *others = waiting
    if not together:
        return [first], others
    group, rest = [first], []
    for one in others:
        if are_alike(one.order, first.order):
            group.append(one)
        else:
            rest.append(one)
    return group, rest


_SMALL_BYTES = 1 << 26


def is_small(one: Bound) -> bool:
    """Whether a visit can be begun while another one trains: what both train lies on the device
    then, which of a large model may be too much.
    """
    return num_bytes(select(one.params, one.visit.layers)) <= _SMALL_BYTES


def group_sizes(visits: Round) -> dict[tuple[str, ...], int]:
    """How many visits of a round train which layers."""
    sizes: dict[tuple[str, ...], int] = {}
    for visit in visits:
        sizes[visit.layers] = sizes.get(visit.layers, 0) + 1
    return sizes


def outcome_of(
    one: Bound,
    layers: Params,
    states: OptimizerStates,
    tally: Tally,
    held: int,
    settings: VisitSettings,
    factors: float,
    client: Client | None,
) -> Outcome:
    """What a visit gives back.

    Args:
      one: its order.
      layers: that it trained.
      states: their optimizer states, where they travel.
      tally: its sums.
      held: examples at its node.
      settings: of visits.
      factors: the sum of what the learning rates of its steps were multiplied by.
      client: the method's.
    """
    loss = float("nan")
    if tally.examples:
        loss = tally.loss_sum / tally.examples
    outcome = Outcome(
        one.visit,
        layers,
        states,
        loss=loss,
        finite=tally.finite,
        iterations=tally.iterations,
        examples=int(tally.examples),
        examples_held=held,
        train_s=tally.train_s,
        started=one.order.layers,
        ended=why_ended(tally, settings, one.visit.node),
    )
    if client is None:
        return outcome
    # What the node remembers from now on, and what it tells the server.
    rate = mean_rate(settings, one.order.learning_rate, factors, tally)
    received = select(one.params, one.visit.layers)
    memory, report = client.finish(one.memory, one.shared, received, layers, tally.iterations, rate)
    return outcome._replace(memory=memory, report=report)
