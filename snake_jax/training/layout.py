"""How named layers lie in the arguments of a program.

A visit names what it trains. A network of unlike layers has a program for each set of them, and its
arguments name the layers (`ByName`). The blocks of a language model are alike: one program serves
them all, which knows a block by its role and takes the others as one stack (`Stacked`). Whoever
runs visits asks a layout and knows no more of it.

Functions that take `Mesh | None` do what one device needs without a mesh.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from snake_jax.params import Params, PyTree, select, without
from snake_jax.training import quantization, sharding, stack
from snake_jax.training.image_step import LocalStep
from snake_jax.training.layer_copies import (
    Copy,
    casting,
    freezing,
    no_blocks,
    own_copy,
    slot_setter,
    stack_of,
)
from snake_jax.training.optimizers import OptimizerStates, init_states, renamed
from snake_jax.training.text_step import (
    ENDS,
    FrozenModel,
    LanguageStep,
    block_roles,
    own_dtype,
    own_items,
)


class Start(NamedTuple):
    """What the steps of a visit start from; the first arguments of a program.

    Attributes:
      trainable: what trains, in full precision.
      states: its optimizer states.
      frozen: what is read besides, as a node stores it.
      received: what trains as it was received, `{}` where no step reads it.
    """

    trainable: Params
    states: OptimizerStates
    frozen: Any
    received: Params


class Layout(Protocol):
    """How named layers lie in the arguments of a program."""

    def names(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """What the program calls these layers; equal for those that one program serves."""

    def enter(
        self,
        params: Params,
        states: OptimizerStates,
        layers: tuple[str, ...],
        node: int,
        alone: bool = True,
    ) -> Start:
        """What a visit starts from.

        Args:
          params: all that it reads or trains, in full precision, or `quantization.Stored` what it
            only reads; left as it is.
          states: optimizer states to go on from, by layer; layers not in it start afresh.
          layers: what it trains.
          node: who.
          alone: whether what trains and its states are arrays of their own, which a program may
            overwrite; else whoever calls makes a copy for each node.
        """

    def leave(
        self, trainable: Params, states: OptimizerStates, layers: tuple[str, ...]
    ) -> tuple[Params, OptimizerStates]:
        """New parameters and states by layer; those states that are given."""

    def given(self, tree: PyTree, layers: tuple[str, ...]) -> PyTree:
        """What a client's steps read (`update.Client.given`), on the device."""

    def has_prefix(self, layers: tuple[str, ...]) -> bool:
        """Whether layers below those that train give every epoch the same."""

    def whole(self, params: Params) -> tuple[Any, ...]:
        """The whole model, as the first arguments of an evaluation."""


class ByName:
    """Layers by their names; it keeps nothing."""

    def __init__(self, step: LocalStep, frozen_dtype: str) -> None:
        """Compiles nothing yet.

        Args:
          step: the local step.
          frozen_dtype: see `quantization.freeze`.
        """

        def freeze(subtree: PyTree) -> PyTree:
            return quantization.freeze(subtree, frozen_dtype)

        def fresh(layers: Params) -> OptimizerStates:
            return init_states(step.rule, layers, step.layer_names)

        self._needs_received = step.needs_received
        self._frozen_dtype = frozen_dtype
        self._freeze = jax.jit(freeze)
        # One call: array by array from Python the host's time shows beside a small network's.
        self._fresh = jax.jit(fresh)

    def names(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """See `Layout`."""
        return layers

    def enter(
        self,
        params: Params,
        states: OptimizerStates,
        layers: tuple[str, ...],
        node: int,
        alone: bool = True,
    ) -> Start:
        """See `Layout`."""
        del node
        # What trains, with the states that came along, and fresh ones for the rest.
        received = select(params, layers)
        kept = {name: states[name] for name in layers if name in states}
        fresh = self._fresh(without(received, kept))
        own = received, kept | fresh

        # What does not, as the node stores it.
        frozen = without(params, layers)
        if self._frozen_dtype != "float32":
            # From the full-precision values, never from another frozen copy.
            frozen = {name: _stored(subtree, self._freeze) for name, subtree in frozen.items()}
        if not self._needs_received:
            received = {}

        # A program overwrites what trains: what was received stays as it is beside it.
        if alone:
            own = _copied(own)
            frozen, received = jax.device_put((frozen, received))
        return Start(*own, frozen, received)

    def leave(
        self, trainable: Params, states: OptimizerStates, layers: tuple[str, ...]
    ) -> tuple[Params, OptimizerStates]:
        """See `Layout`."""
        del layers
        return trainable, states

    def given(self, tree: PyTree, layers: tuple[str, ...]) -> PyTree:
        """See `Layout`."""
        del layers
        return jax.device_put(tree)

    def has_prefix(self, layers: tuple[str, ...]) -> bool:
        """Never: an epoch is one program, which runs what lies below with every batch."""
        del layers
        return False

    def whole(self, params: Params) -> tuple[Any, ...]:
        """See `Layout`."""
        return (params,)


class _Place(NamedTuple):
    """What lies in a place of the stack: which item, and the values that it was made from."""

    item: str
    source: PyTree


class Stacked:
    """Blocks by their roles, the others as a stack that stays on the device from visit to visit.

    A visit overwrites the places whose block is another one, or has been trained since: after a
    serpentine visit that is one, the block just left, quantized then and only then. What is in full
    precision stays on the host. On a mesh (`sharding`) the stack, and through a visit what trains,
    lie over all devices.
    """

    def __init__(
        self, step: LanguageStep, base: Params, frozen_dtype: str, ranks: Sequence[int] = ()
    ) -> None:
        """Puts what never trains on the device, as nodes store it.

        Args:
          step: the local step.
          base: the layers that no visit trains, in full precision: with adapters all blocks, and
            ends.
          frozen_dtype: see `quantization.freeze`.
          ranks: of each node's adapters, where some are smaller than the adapters'.
        """
        self._step = step
        self._ranks = ranks
        self._mesh = step.mesh
        self._items = own_items(step.model, step.adapted)
        # The order that states travel in. It names adapters after all layers.
        self._every = step.model.layer_names
        if step.adapted:
            self._every += self._items

        # What puts layers on the device, compiled once.
        def fresh(trainable: Params) -> OptimizerStates:
            states = init_states(step.rule, trainable, tuple(trainable))
            return sharding.shard_stored(step.mesh, states)

        self._fresh = jax.jit(fresh)
        self._freeze = freezing(step.mesh, frozen_dtype)
        self._freeze_own = freezing(step.mesh, own_dtype(frozen_dtype, step.adapted))
        self._set = slot_setter(step.mesh)

        # What no visit trains is there once and for all.
        self._ends = {name: self._freeze(base[name]) for name in ENDS if name in base}
        self._base: PyTree = {}
        if step.adapted:
            blocks = [base[name] for name in own_items(step.model, False)]
            self._base = stack_of(step.mesh, blocks, self._freeze, self._set)

        # What a visit may train, of the visit before: see `_frozen`.
        self._own: PyTree = None
        self._places: list[_Place] = []

    def names(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """See `Layout`."""
        return tuple(self._roles(layers))

    def enter(
        self,
        params: Params,
        states: OptimizerStates,
        layers: tuple[str, ...],
        node: int,
        alone: bool = True,
    ) -> Start:
        """See `Layout`."""
        # What trains and the states that came along, by role instead of by name.
        roles = self._roles(layers)
        order = tuple(roles)
        trainable = {role: params[item] for role, item in roles.items()}
        kept = {}
        for role, item in roles.items():
            if item in states:
                kept[role] = renamed(states[item], self._every, item, order, role)
        if alone:
            trainable = own_copy(self._mesh, trainable)
            kept = own_copy(self._mesh, kept)

        # What was received is a copy of its own, as the program overwrites what trains.
        received: Params = {}
        if self._step.needs_received:
            received = trainable
            if alone:
                received = jax.tree.map(jnp.array, trainable)
        frozen = self._frozen(layers, node, params)
        return Start(trainable, self._fresh(trainable) | kept, frozen, received)

    def leave(
        self, trainable: Params, states: OptimizerStates, layers: tuple[str, ...]
    ) -> tuple[Params, OptimizerStates]:
        """See `Layout`; parameters come to the host."""
        roles = self._roles(layers)
        order = tuple(roles)
        by_name = {}
        states_by_name = {}
        for role, item in roles.items():
            by_name[item] = trainable[role]
            if role in states:
                states_by_name[item] = renamed(states[role], order, role, self._every, item)
        fetched = sharding.fetch(by_name)
        if self._mesh is not None:
            states_by_name = sharding.fetch(states_by_name)
        return fetched, states_by_name

    def given(self, tree: PyTree, layers: tuple[str, ...]) -> PyTree:
        """See `Layout`; a dict whose keys are just the layers has roles instead."""
        roles = self._roles(layers)

        def names_layers(node: Any) -> bool:
            return isinstance(node, dict) and bool(node) and node.keys() == set(layers)

        def by_role(node: Any) -> Any:
            if not names_layers(node):
                return node
            return {role: node[item] for role, item in roles.items()}

        tree = jax.tree.map(by_role, tree, is_leaf=names_layers)
        if self._mesh is None:
            return jax.device_put(tree)
        return sharding.put_stored(self._mesh, tree)

    def has_prefix(self, layers: tuple[str, ...]) -> bool:
        """See `Layout`: there are blocks below, and neither chance nor the embedding changes."""
        changes = "embed" in layers or self._step.model.stochastic
        return self._first(layers) > 0 and not changes

    def whole(self, params: Params) -> tuple[Any, ...]:
        """See `Layout`: what may train in full precision, what never does as nodes store it."""
        cast = casting(self._mesh, self._step.compute_dtype)
        own = stack_of(self._mesh, [params[name] for name in self._items], cast, self._set)
        ends = {name: params[name] for name in ENDS if name in params}
        return self._base, own, self._ends | sharding.put_stored(self._mesh, ends)

    def _roles(self, layers: tuple[str, ...]) -> dict[str, str]:
        """`{role: item}` of what a visit trains."""
        blocks = [item for item in self._items if item in layers]
        roles = dict(zip(block_roles(len(blocks)), blocks, strict=True))
        for name in ENDS:
            if name in layers:
                roles[name] = name
        return roles

    def _first(self, layers: tuple[str, ...]) -> int:
        """Which block is the first that trains."""
        return next(i for i, item in enumerate(self._items) if item in layers)

    def _frozen(self, layers: tuple[str, ...], node: int, params: Params) -> FrozenModel:
        """What the visit reads and does not train, as the node stores it."""
        # The blocks that wait, in order. Of the stack that the visit before left only those places
        # are written whose block is another one, or has other values.
        wanted = [_Place(item, params[item]) for item in self._items if item not in layers]
        if not wanted:
            # No layer waits; the program still wants to know what one is like.
            like = self._freeze_own(params[self._items[0]])
            self._own = no_blocks(self._mesh, like)
        elif len(wanted) != len(self._places):
            # Another number of places: a new stack.
            sources = [place.source for place in wanted]
            self._own = stack_of(self._mesh, sources, self._stored_own, self._set)
        else:
            for slot, new in enumerate(wanted):
                old = self._places[slot]
                if old.item != new.item or old.source is not new.source:
                    frozen = self._stored_own(new.source)
                    self._own = self._set(self._own, frozen, slot)
        self._places = wanted

        # The ends that do not train, those too that another visit may train.
        ends = dict(self._ends)
        for name in ENDS:
            if name in params and name not in layers:
                ends[name] = _stored(params[name], self._freeze)
        blocks = stack.FrozenBlocks(self._base, self._own, jnp.int32(self._first(layers)))
        return FrozenModel(blocks, ends, self._columns(node, params))

    def _stored_own(self, subtree: PyTree) -> PyTree:
        """A block's own part, as the node stores it."""
        return _stored(subtree, self._freeze_own)

    def _columns(self, node: int, params: Params) -> jax.Array | None:
        """Which columns of the adapters the node trains; None: all."""
        if not self._ranks:
            return None
        # The columns that there are: those of any matrix `a` `[in, R]`.
        adapters = params[self._items[0]]
        largest_rank = 0
        for path, leaf in jax.tree.leaves_with_path(adapters):
            if path[-1].key == "a":
                largest_rank = max(largest_rank, leaf.shape[-1])
        return jnp.arange(largest_rank) < self._ranks[node]


def _stored(subtree: PyTree, freeze: Copy) -> PyTree:
    """A layer as the node stores it; frozen here, unless it came so."""
    if isinstance(subtree, quantization.Stored):
        return subtree.tree
    return freeze(subtree)


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
