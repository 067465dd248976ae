"""Arguments of a training step that are neither read from a file nor all zero.

Weights are uniform noise from a hash of each number's place. So an array is computed where it is
written, with no temporary beside it: what a device held at most is then of the step.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from snake_jax.costs.shapes import StepProgram
from snake_jax.training.image_step import Examples
from snake_jax.training.text_step import TextBatch

_MOST = 0.035
"""Of a weight: uniform noise within it has the deviation 0.02 that models are initialised with."""


def arguments(program: StepProgram, choices: int) -> list[Any]:
    """Arrays for a step: noise in the place of weights and batch, zeros as optimizer states.

    Args:
      program: the step.
      choices: of a label or a token, which are below it.
    """
    trainable, states, frozen, received, batch, *others = program.arguments
    filled = [
        _weights(trainable),
        jax.tree.map(_zeros, states),
        _weights(frozen),
        _weights(received),
        _batch(batch, choices),
    ]
    filled += jax.tree.map(_other, others)
    return list(program.aimed(tuple(filled)))


def _batch(batch: Any, choices: int) -> Any:
    """Rows of text, or images with labels, of the shapes given."""
    if isinstance(batch, TextBatch):
        ids = _noise(batch.ids.shape, jnp.dtype(jnp.int32)) % choices
        positions = jnp.broadcast_to(jnp.arange(ids.shape[-1], dtype=jnp.int32), ids.shape)
        weight = jnp.ones(ids.shape, jnp.float32)
        # One text a row, also where there might be several.
        segments = None if batch.segments is None else jnp.ones(ids.shape, jnp.int32)
        return TextBatch(ids, jnp.roll(ids, -1, -1), weight, positions, segments)
    assert isinstance(batch, Examples)
    labels = jnp.arange(batch.labels.shape[0], dtype=jnp.int32) % choices
    return Examples(_noise(batch.images.shape, batch.images.dtype), labels)


def _weights(tree: Any) -> Any:
    return jax.tree.map(_weight, tree)


def _weight(leaf: Any) -> jax.Array:
    """A scalar says what trains, and is set later."""
    return _noise(leaf.shape, leaf.dtype) if leaf.shape else _zeros(leaf)


def _zeros(leaf: Any) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def _other(leaf: Any) -> jax.Array:
    """Of an image step's batches: which examples, in order, of weight one; keys and rates too."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if len(leaf.shape) == 2 and jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.broadcast_to(jnp.arange(leaf.shape[1], dtype=leaf.dtype), leaf.shape)
    return jnp.ones(leaf.shape, leaf.dtype) if len(leaf.shape) == 2 else _zeros(leaf)


@functools.partial(jax.jit, static_argnums=(0, 1))
def standard(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """Uniform numbers of mean 0 and deviation 1: the compiler takes less for them than for normal.

    Args:
      shape: of the array.
      dtype: of the numbers, which are floating.
      seed: arrays of unlike seeds have nothing in common.
    """
    unit = (_bits(shape, seed) >> 8).astype(jnp.float32) / 2**24
    # A number between -a and a has the variance a^2 / 3.
    return ((2 * unit - 1) * 3**0.5).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _noise(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform: floating numbers within `_MOST` of zero, integers in all of their range."""
    bits = _bits(shape, 0)
    if jnp.issubdtype(dtype, jnp.floating):
        unit = (bits >> 8).astype(jnp.float32) / 2**24
        return ((2 * unit - 1) * _MOST).astype(dtype)
    limits = jnp.iinfo(dtype)
    span = min(int(limits.max) - int(limits.min) + 1, 2**31 - 1)
    least = max(int(limits.min), 0) if span == 2**31 - 1 else int(limits.min)
    return ((bits % jnp.uint32(span)).astype(jnp.int32) + least).astype(dtype)


def _bits(shape: tuple[int, ...], seed: Any) -> jax.Array:
    """`shape` of 32 bits each, from a hash of each number's place and the seed."""
    # The number of each place in the array, [0, size), modulo 2^32.
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)

    # Multiplied by odd numbers and folded: neighbours have nothing in common (as in murmur3).
    place ^= jnp.uint32(seed) * jnp.uint32(0x27D4EB2F)
    bits = (place + jnp.uint32(1)) * jnp.uint32(0x9E3779B1)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA77)
    return bits ^ (bits >> 13)
