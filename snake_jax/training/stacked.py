"""Alike blocks in one stack that stays on the device: the layout of language models.

See `snake_jax.training.layout`. Functions that take `Mesh | None` do what one device needs without
a mesh.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.params import Params, PyTree
from snake_jax.training import adapter_columns, sharding, stack
from snake_jax.training.layer_copies import (
    casting,
    freezing,
    no_blocks,
    own_copy,
    slot_setter,
    stack_of,
)
from snake_jax.training.layout import Before, Start, stored
from snake_jax.training.optimizers import OptimizerStates, init_states, renamed
from snake_jax.training.text_step import (
    ADAPTERS,
    ENDS,
    FrozenModel,
    LanguageStep,
    block_roles,
    own_dtype,
    own_items,
)


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
        self._whole = freezing(step.mesh, "float32")

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
        # What trains and the states that came along, by role instead of by name: of adapters the
        # columns that the node trains.
        roles = self._roles(layers)
        order = tuple(roles)
        rank = self.rank(node)
        trainable = {}
        kept = {}
        for role, item in roles.items():
            trainable[role] = _first_columns(params[item], item, rank)
            if item in states:
                own = _first_columns(states[item], item, rank)
                kept[role] = renamed(own, self._every, item, order, role)
        if alone:
            trainable = own_copy(self._mesh, trainable)
            kept = own_copy(self._mesh, kept)

        # What was received is a copy of its own, as the program overwrites what trains.
        received: Params = {}
        if self._step.needs_received:
            received = trainable
            if alone:
                received = jax.tree.map(jnp.array, trainable)
        frozen = self._frozen(layers, rank, params)
        return Start(trainable, self._fresh(trainable) | kept, frozen, received)

    def leave(
        self,
        trainable: Params,
        states: OptimizerStates,
        layers: tuple[str, ...],
        before: Before,
    ) -> tuple[Params, OptimizerStates]:
        """See `Layout`; parameters come to the host, all columns of adapters."""
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
        if not self.rank(before.node):
            return fetched, states_by_name

        # The columns that did not train are as they were; states that nobody had are zero.
        for item in _adapters(layers):
            whole = before.params[item]
            fetched[item] = adapter_columns.widened(fetched[item], whole)
            if item in states_by_name:
                new = states_by_name[item]
                old = before.states.get(item)
                if old is None:
                    old = adapter_columns.zeros(new, adapter_columns.most(whole))
                states_by_name[item] = adapter_columns.widened(new, old)
        return fetched, states_by_name

    def rank(self, node: int) -> int:
        """See `Layout`."""
        return self._ranks[node] if self._ranks else 0

    def given(self, tree: PyTree, layers: tuple[str, ...], node: int) -> PyTree:
        """See `Layout`; a dict whose keys are just the layers has roles instead."""
        roles = self._roles(layers)
        rank = self.rank(node)

        def names_layers(node: Any) -> bool:
            return isinstance(node, dict) and bool(node) and node.keys() == set(layers)

        def by_role(node: Any) -> Any:
            if not names_layers(node):
                return node
            named = {}
            for role, item in roles.items():
                named[role] = _first_columns(node[item], item, rank)
            return named

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

    def _frozen(self, layers: tuple[str, ...], rank: int, params: Params) -> FrozenModel:
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
                ends[name] = stored(params[name], self._freeze)
        columns = self._other_columns(layers, rank, params)
        blocks = stack.FrozenBlocks(self._base, self._own, jnp.int32(self._first(layers)), columns)
        return FrozenModel(blocks, ends)

    def _stored_own(self, subtree: PyTree) -> PyTree:
        """A block's own part, as the node stores it."""
        return stored(subtree, self._freeze_own)

    def _other_columns(self, layers: tuple[str, ...], rank: int, params: Params) -> PyTree:
        """`[k, ...]` the columns of the trained blocks' adapters that this node reads only.

        They are in full precision, as the whole adapters come to it; None: it trains all.
        """
        trained = [params[item] for item in self._items if item in layers]
        most = adapter_columns.most(trained[0])
        if not rank or rank == most:
            return None
        rest = [adapter_columns.cut(subtree, rank, most) for subtree in trained]
        return stack_of(self._mesh, rest, self._whole, self._set)


def _adapters(layers: tuple[str, ...]) -> list[str]:
    """Those of the items that are adapters."""
    return [item for item in layers if item.endswith(ADAPTERS)]


def _first_columns(tree: PyTree, item: str, rank: int) -> PyTree:
    """Of adapters, or their states, the first columns; all else, and with rank 0 all, is whole."""
    if not rank or not item.endswith(ADAPTERS):
        return tree
    return adapter_columns.cut(tree, 0, rank)
