"""Who holds which value, and what is sent to whom: the part of the engine on Ray that knows no
process.

A value has a number of the engine's own. The versions of orders say which value is meant; numbers
say whether it is one that a node has already. What a visit trained keeps its number when the merge
only puts it in its place, which is seen by identity: then whoever trained it is sent nothing.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import ray

from snake_jax.algorithms.visits import Order, Outcome, Serialized
from snake_jax.engines import orders
from snake_jax.engines.contract import Holdings
from snake_jax.engines.ray_node import (
    SHARED,
    STORED,
    Facts,
    Item,
    Key,
    VisitTask,
    remembered,
    serialized_bytes,
    still_held,
)
from snake_jax.engines.updates import UNKNOWN_VERSION
from snake_jax.nodes import columns
from snake_jax.nodes.columns import WHOLE, Columns
from snake_jax.params import PyTree
from snake_jax.training import quantization


class Sending(NamedTuple):
    """What is sent, as the run's flags say.

    Attributes:
      peer_to_peer: whether values go from node to node, not through this process.
      cached: whether nodes keep what they were sent.
      states: whether optimizer states travel.
      remembers: whether the method has a client at the nodes.
      stored: makes of a layer, given its name, what a node stores while it is frozen, where that is
        what a node is sent of it; None: layers travel in full precision, because whoever gets one
        may have to train it, or pass it on.
      columns: how adapters are cut where nodes have unlike ranks.
    """

    peer_to_peer: bool
    cached: bool
    states: bool
    remembers: bool
    stored: Callable[[str, PyTree], PyTree] | None = None
    columns: Columns = WHOLE


class _Value(NamedTuple):
    """A value under its number."""

    number: int
    value: PyTree


class _Whole(NamedTuple):
    """A value as the run has it, and the parts of it by item: one, but for cut adapters."""

    value: PyTree
    parts: dict[Item, _Value]


class Values:
    """What is held, under numbers, and where it lies."""

    def __init__(self, sending: Sending) -> None:
        """Of nothing."""
        self._sending = sending
        self._numbers = itertools.count()
        self._holdings = Holdings({})
        self._held: dict[Item, _Value] = {}
        self._wholes: dict[Item, _Whole] = {}
        self._references: dict[Key, ray.ObjectRef] = {}
        self._given: dict[int, _Whole] = {}

    def hold(self, holdings: Holdings) -> None:
        """See `Engine.hold`; nothing is sent before it is asked for."""
        items: dict[Item, PyTree] = {}
        for name, layer in holdings.layers.items():
            items["layers", name] = layer.value
        for name, state in holdings.states.items():
            items["states", name] = state.value
        for node, memory in holdings.memory.items():
            items["memory", node] = memory.value
        if self._sending.remembers:
            items[SHARED] = holdings.shared.value

        wholes: dict[Item, _Whole] = {}
        held: dict[Item, _Value] = {}
        for item, value in items.items():
            old, given = self._wholes.get(item), self._given.get(id(value))
            if old is not None and old.value is value:
                wholes[item] = old
            elif given is not None:
                wholes[item] = given
            else:
                wholes[item] = _Whole(value, self._numbered(item, value))
            held |= wholes[item].parts
        self._holdings, self._held, self._wholes = holdings, held, wholes
        self._given.clear()
        # Ray keeps what is referred to.
        current = {(item, value.number) for item, value in held.items()}
        for (kind, of), value in held.items():
            if kind == "layers":
                current.add(((STORED, of), value.number))
        for key in set(self._references) - current:
            del self._references[key]

    def _numbered(self, item: Item, value: PyTree) -> dict[Item, _Value]:
        """The parts of a new value, each under a number of its own."""
        kind, name = item
        if kind not in ("layers", "states"):
            return {item: _Value(next(self._numbers), value)}
        parts = columns.split(self._sending.columns, str(name), value)
        return {(kind, part): _Value(next(self._numbers), tree) for part, tree in parts.items()}

    def task(self, order: Order, has: set[Key]) -> tuple[VisitTask, set[Key]]:
        """What a process is asked, with references to what it lacks; and what it has afterwards.

        Args:
          order: of the visit.
          has: what the process has.

        Raises:
          ValueError: the order names a version that is not held.
        """
        orders.bound(order, self._holdings, None)
        wanted: list[Item] = [("layers", name) for name in order.layers]
        wanted += [("states", name) for name in order.states]
        if order.memory is not None:
            wanted.append(("memory", order.visit.node))
        if self._sending.remembers:
            wanted.append(SHARED)
        items: dict[Item, int] = {}
        for item in wanted:
            for part, value in self._wholes[item].parts.items():
                items[self._needed(part, value.number, order, has)] = value.number
        references = {}
        for item, number in items.items():
            if (item, number) not in has:
                references[item] = [self._reference(item)]
        made = next(self._numbers)
        cut = self._sending.columns
        task = VisitTask(order.visit, order.learning_rate, items, references, made, cut)

        # By the rules that the process itself goes by.
        after = still_held(has | set(items.items()), task)
        for name in self._trained(order):
            after |= {(("layers", name), made), (("states", name), made)}
        after.add((("memory", order.visit.node), made))
        return task, after if self._sending.cached else remembered(after)

    def returns(self, order: Order) -> int:
        """How many objects come back of an order: facts, and its arrays by item."""
        layers = len(self._trained(order))
        states = layers if self._sending.states else 0
        return 1 + layers + states + (2 if self._sending.remembers else 0)

    def _needed(self, item: Item, number: int, order: Order, has: set[Key]) -> Item:
        """How a visit needs an item: as it is, but a layer that it does not train as its node
        stores it, unless that has it already.
        """
        kind, name = item
        is_there = (item, number) in has
        if self._sending.stored is None or kind != "layers" or is_there:
            return item
        return item if name in self._trained(order) else (STORED, name)

    def _value(self, item: Item) -> _Value:
        """What is held of an item; what is stored of a layer goes by the layer's number."""
        kind, name = item
        return self._held["layers", name] if kind == STORED else self._held[item]

    def _trained(self, order: Order) -> tuple[str, ...]:
        """The layers, or parts of adapters, that an order's visit trains."""
        visit = order.visit
        return columns.all_trained(self._sending.columns, visit.layers, visit.node)

    def _reference(self, item: Item) -> "ray.ObjectRef":
        """To the current value of an item; put by this process unless it lies at a node."""
        number, value = self._value(item)
        if (item, number) not in self._references:
            kind, name = item
            if kind == STORED:
                assert self._sending.stored is not None
                value = self._sending.stored(str(name), value)
            self._references[item, number] = ray.put(quantization.packed(value))
        return self._references[item, number]

    def forget_places(self) -> None:
        """Where values lie is not to be trusted: this process puts its copies."""
        self._references.clear()

    def outcome(
        self,
        order: Order,
        task: VisitTask,
        facts: Facts,
        values: Sequence[PyTree],
        references: Sequence["ray.ObjectRef"],
    ) -> Outcome:
        """The outcome with its arrays, which are noted as lying where they were trained.

        Args:
          order: of the visit.
          task: that was asked for it.
          facts: about it.
          values: of their items, as Ray has them.
          references: to these values.
        """
        visit, outcome = task.visit, facts.outcome
        assert outcome.serialized is not None
        came = sum(map(serialized_bytes, values))
        # Copies, so that Ray may let go of its own; where the run has its arrays.
        copied = _copied_to_device if self._on_device() else _copied
        own = [copied(value) for value in values]
        found = dict(zip(facts.items, own, strict=True))
        if self._sending.peer_to_peer:
            for item, reference in zip(facts.items, references, strict=True):
                self._references[item, task.made] = reference
        states = visit.layers if self._sending.states else ()
        whole: dict[Item, PyTree] = {}
        for kind, names in (("layers", visit.layers), ("states", states)):
            for name in names:
                whole[kind, name] = self._noted(task, (kind, name), found)
        for item in facts.items:
            if item[0] not in ("layers", "states"):
                made = {item: _Value(task.made, found[item])}
                self._given[id(found[item])] = _Whole(found[item], made)
        return outcome._replace(
            layers={name: whole["layers", name] for name in visit.layers},
            states={name: whole["states", name] for name in states},
            memory=found.get(("memory", visit.node)),
            report=found.get(("report", "")),
            serialized=Serialized(outcome.serialized.to_node, came),
            started=_versions(order, task, outcome.started or {}),
        )

    def _noted(self, task: VisitTask, item: Item, found: Mapping[Item, PyTree]) -> PyTree:
        """A layer, or its optimizer state, as it is after a visit, and that it lies at its node.

        Columns of adapters that the node did not train are those that this process holds.
        """
        kind, name = item
        before = self._wholes.get(item)
        parts: dict[Item, _Value] = {}
        for part in columns.parts(self._sending.columns, str(name)):
            if (kind, part) in found:
                parts[kind, part] = _Value(task.made, found[kind, part])
            elif before is not None and (kind, part) in before.parts:
                parts[kind, part] = before.parts[kind, part]
        trees = {str(part): value.value for (_, part), value in parts.items()}
        value = columns.joined(self._sending.columns, str(name), trees)
        self._given[id(value)] = _Whole(value, parts)
        return value

    def _on_device(self) -> bool:
        """Whether the run has its layers on the device, or on the host."""
        for held in self._holdings.layers.values():
            return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(held.value))
        return False


def _versions(order: Order, task: VisitTask, started: Mapping[str, int]) -> dict[str, int]:
    """`{layer: version}` that a visit started from, given the numbers that its node had."""
    found = {}
    for name, version in order.layers.items():
        number = task.items.get(("layers", name), task.items.get((STORED, name)))
        same = started.get(name) == number
        found[name] = version if same else UNKNOWN_VERSION
    return found


_copied = functools.partial(jax.tree.map, np.array)
_copied_to_device = functools.partial(jax.tree.map, jax.numpy.array)
