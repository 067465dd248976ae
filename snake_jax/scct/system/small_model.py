"""A small model in two places: the device's first layers and the edge's others.

Equations 3, 4, 10 and 11 of the paper. Each place has its own layers, gets what the place before it
computed, and sends back the gradient of that; nothing else passes between them. A layer is a
program of its own, the same wherever it lies, so a split point changes no bit of what is trained.
The backward pass computes a layer's forward pass again.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from snake_jax.models.encoder import Encoder, Texts
from snake_jax.models.language import Hidden
from snake_jax.params import Params, PyTree
from snake_jax.training.optimizers import OptimizerStates, update_rule

Input = Texts | Hidden


class NamedRule(NamedTuple):
    """An update rule by name."""

    optimizer: str

    def make(self) -> optax.GradientTransformation:
        """The rule itself, without learning rate and sign."""
        return update_rule(self.optimizer, momentum=0.0, weight_decay=0.0)


class ForwardPass(NamedTuple):
    """A segment's forward pass.

    Attributes:
      output: what goes to the next place.
      inputs: of each layer, which the backward pass begins from again.
    """

    output: Hidden
    inputs: tuple[Input, ...]


def forward(encoder: Encoder, layers: Sequence[str], params: Params, x: Input) -> ForwardPass:
    """Runs layers that follow each other: equation 3 on the device, 4 on the edge.

    Args:
      encoder: of all devices.
      layers: of this place, in order; none passes x on.
      params: at least theirs.
      x: texts where the first layer is the embedding, what the place before computed elsewhere.
    """
    inputs: list[Input] = []
    for name in layers:
        inputs.append(x)
        if isinstance(x, Texts):
            x = _embed(encoder, params[name], x)
        else:
            x = block(encoder, params[name], x)
    assert isinstance(x, Hidden), "the device has at least the embedding"
    return ForwardPass(x, tuple(inputs))


def backward(
    encoder: Encoder,
    layers: Sequence[str],
    params: Params,
    inputs: Sequence[Input],
    gradient: jax.Array,
) -> tuple[Params, jax.Array]:
    """Gradients of the layers, and that of what came in `[B, T, D]`.

    Args:
      encoder: of all devices.
      layers: of this place, in order.
      params: as in the forward pass.
      inputs: of it.
      gradient: of its output, `[B, T, D]`.
    """
    gradients: Params = {}
    for name, x in zip(reversed(layers), reversed(inputs), strict=True):
        if isinstance(x, Texts):
            gradients[name] = _embed_gradient(encoder, params[name], x, gradient)
        else:
            gradients[name], gradient = block_gradient(encoder, params[name], x, gradient)
    return gradients, gradient


def update(
    rule: NamedRule, rate: float, gradients: Params, states: OptimizerStates, params: Params
) -> tuple[Params, OptimizerStates]:
    """One step of the layers that gradients are given of; the others stay.

    A layer without a state begins with a fresh one.
    """
    new_params, new_states = dict(params), dict(states)
    for name, gradient in gradients.items():
        state = states.get(name)
        if state is None:
            state = rule.make().init(params[name])
        new_params[name], new_states[name] = _step(rule, rate, gradient, state, params[name])
    return new_params, new_states


@functools.partial(jax.jit, static_argnums=0)
def _embed(encoder: Encoder, weights: PyTree, texts: Texts) -> Hidden:
    return encoder.embed(weights, texts)


@functools.partial(jax.jit, static_argnums=0)
def block(encoder: Encoder, weights: PyTree, hidden: Hidden) -> Hidden:
    """One layer's forward pass, `[B, T, D]`."""
    return encoder.block(weights, hidden)


@functools.partial(jax.jit, static_argnums=0)
def _embed_gradient(encoder: Encoder, weights: PyTree, texts: Texts, gradient: jax.Array) -> PyTree:
    def values(weights: PyTree) -> jax.Array:
        return encoder.embed(weights, texts).values

    _, pull = jax.vjp(values, weights)
    (of_weights,) = pull(gradient)
    return of_weights


@functools.partial(jax.jit, static_argnums=0)
def block_gradient(
    encoder: Encoder, weights: PyTree, hidden: Hidden, gradient: jax.Array
) -> tuple[PyTree, jax.Array]:
    """Of a layer's weights and of its input, from that of its output: forward again, then back."""

    def values(weights: PyTree, x: jax.Array) -> jax.Array:
        return encoder.block(weights, hidden._replace(values=x)).values

    _, pull = jax.vjp(values, weights, hidden.values)
    of_weights, of_input = pull(gradient)
    return of_weights, of_input


@functools.partial(jax.jit, static_argnums=0)
def _step(
    rule: NamedRule, rate: float, gradient: PyTree, state: PyTree, weights: PyTree
) -> tuple[PyTree, PyTree]:
    updates, state = rule.make().update(gradient, state, weights)
    scaled = jax.tree.map(lambda x: -jnp.float32(rate) * x, updates)
    return optax.apply_updates(weights, scaled), state
