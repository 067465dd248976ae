"""Initial weights in pieces of one size, so that the compiler sees one program whatever the shapes.

A draw of its own for every shape costs a launch more than the numbers: the compiler takes longer
for each than the machine for all. The bits are those of `flax.linen.initializers`: with jax's
threefry, number i of an array depends on the key and i alone, so any piece can be drawn by itself.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

_PIECE = 1 << 16
_DEVIATION_WITHIN_TWO = 0.87962566103423978
"""Of a standard normal distribution between -2 and 2."""

Mode = Literal["fan_in", "fan_out"]
Distribution = Literal["truncated_normal", "normal", "uniform"]


def scaled(scale: float, mode: Mode, distribution: Distribution) -> nn.initializers.Initializer:
    """`nn.initializers.variance_scaling`, drawn in pieces where its key is known.

    Args:
      scale: of the variance.
      mode: fan_in or fan_out: what of the weights' shape the variance is divided by.
      distribution: truncated_normal (at two deviations), normal or uniform.
    """
    traced = nn.initializers.variance_scaling(scale, mode, distribution)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        if not _in_pieces(key, dtype):
            return traced(key, shape, dtype)
        # [..., Cin, Cout]: an output sums over all axes but the last.
        fan = math.prod(shape[:-1])
        if mode == "fan_out":
            fan = math.prod(shape) // shape[-2]
        variance = np.float32(scale / fan)

        # A uniform number in [-a, a) has the variance a^2 / 3; one within two deviations of a
        # normal distribution varies less than that.
        factor = np.sqrt(variance)
        if distribution == "uniform":
            factor = np.sqrt(3 * variance)
        if distribution == "truncated_normal":
            factor /= np.float32(_DEVIATION_WITHIN_TWO)
        return _drawn(key, shape, distribution, factor)

    return init


def uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform in [-bound, bound), drawn in pieces where its key is known."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        if not _in_pieces(key, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)
        return _drawn(key, shape, "between", np.float32(bound))

    return init


def zeros(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Zeros, from the host: no shape is compiled."""
    del key
    return jax.device_put(np.zeros(shape, dtype))


def _in_pieces(key: jax.Array, dtype: Any) -> bool:
    """Whether numbers are drawn now, and as those that `_piece` draws."""
    if isinstance(key, jax.core.Tracer) or dtype != jnp.float32:
        return False
    # Else a number depends on how many are drawn.
    is_threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    return is_threefry and bool(jax.config.values["jax_threefry_partitionable"])


def _drawn(key: jax.Array, shape: Sequence[int], kind: str, factor: np.float32) -> jax.Array:
    """Numbers of a kind times a factor, see `_piece`."""
    size = math.prod(shape)
    pieces = []
    for start in range(0, size, _PIECE):
        pieces.append(_piece(key, np.uint32(start), factor, kind))
    # Put together on the host, where no shape is compiled.
    flat = np.concatenate(jax.device_get(pieces))[:size]
    return jax.device_put(flat.reshape(shape))


@functools.partial(jax.jit, static_argnames="kind")
def _piece(key: jax.Array, start: jax.Array, factor: jax.Array, kind: str) -> jax.Array:
    """Numbers `start` to `start + _PIECE` of an array, `[_PIECE]`.

    Args:
      key: of the array.
      start: the first one's place in the array, row by row.
      factor: of the numbers.
      kind: truncated_normal (between -2 and 2), normal, uniform (in [-1, 1)), or between: uniform
        in [-factor, factor).
    """
    # As `jax.random.bits`: the two halves of a number's place, of which the upper is 0, enciphered
    # under the key. Then as `jax.random.uniform`: the bits are the mantissa of a number in [1, 2).
    places = start + lax.iota(np.uint32, _PIECE)
    halves = jnp.concatenate([jnp.zeros_like(places), places])
    upper, lower = jnp.split(threefry_2x32(jax.random.key_data(key), halves), 2)
    mantissa = ((upper ^ lower) >> 9) | np.float32(1).view(np.uint32)
    unit = lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)

    def between(least: Any, most: Any) -> jax.Array:
        return jnp.maximum(least, unit * (most - least) + least)

    one, two, root_2 = np.float32(1), np.float32(2), np.float32(np.sqrt(2))
    if kind == "between":
        return between(-factor, factor)
    if kind == "uniform":
        return between(-one, one) * factor

    # As `jax.random.normal`: the inverse of the distribution function.
    if kind == "normal":
        least = np.nextafter(-one, np.float32(0))
        return root_2 * lax.erf_inv(between(least, one)) * factor
    drawn = root_2 * lax.erf_inv(between(lax.erf(-two / root_2), lax.erf(two / root_2)))
    inside = np.nextafter(two, np.float32(0))
    return jnp.clip(drawn, -inside, inside) * factor
