"""How named layers lie in the arguments of a program.

A visit names what it trains. A network of unlike layers has a program for each set of them, and its
arguments name the layers (`ByName`). The blocks of a language model are alike: one program serves
them all, which knows a block by its role and takes the others as one stack
(`snake_jax.training.stacked`). Whoever runs visits asks a layout and knows no more of it.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from snake_jax.params import Params, PyTree, select, without
from snake_jax.training import quantization
from snake_jax.training.image_step import LocalStep
from snake_jax.training.layer_copies import Copy
from snake_jax.training.optimizers import OptimizerStates, init_states


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


class Before(NamedTuple):
    """What a visit began with.

    Attributes:
      node: who trained.
      params: all that it read or trained, in full precision.
      states: optimizer states that came along, by layer.
    """

    node: int
    params: Params
    states: OptimizerStates


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
        self,
        trainable: Params,
        states: OptimizerStates,
        layers: tuple[str, ...],
        before: "Before",
    ) -> tuple[Params, OptimizerStates]:
        """New parameters and states by layer; those states that are given.

        Args:
          trainable: what trained, at the end.
          states: its optimizer states, or `{}` where nobody goes on from them.
          layers: what the visit trained.
          before: who trained, and from what.
        """

    def given(self, tree: PyTree, layers: tuple[str, ...], node: int) -> PyTree:
        """What a client's steps read (`update.Client.given`) at a node, on the device."""

    def rank(self, node: int) -> int:
        """How many columns of adapters this node's program trains; 0: all, or there are none."""

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
            frozen = {name: stored(subtree, self._freeze) for name, subtree in frozen.items()}
        if not self._needs_received:
            received = {}

        # A program overwrites what trains: what was received stays as it is beside it.
        if alone:
            own = _copied(own)
            frozen, received = jax.device_put((frozen, received))
        return Start(*own, frozen, received)

    def leave(
        self,
        trainable: Params,
        states: OptimizerStates,
        layers: tuple[str, ...],
        before: Before,
    ) -> tuple[Params, OptimizerStates]:
        """See `Layout`."""
        del layers, before
        return trainable, states

    def given(self, tree: PyTree, layers: tuple[str, ...], node: int) -> PyTree:
        """See `Layout`."""
        del layers, node
        return jax.device_put(tree)

    def rank(self, node: int) -> int:
        """See `Layout`: nothing has columns."""
        del node
        return 0

    def has_prefix(self, layers: tuple[str, ...]) -> bool:
        """Never: an epoch is one program, which runs what lies below with every batch."""
        del layers
        return False

    def whole(self, params: Params) -> tuple[Any, ...]:
        """See `Layout`."""
        return (params,)


def stored(subtree: PyTree, freeze: Copy) -> PyTree:
    """A layer as the node stores it; frozen here, unless it came so."""
    if isinstance(subtree, quantization.Stored):
        return subtree.tree
    return freeze(subtree)


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
