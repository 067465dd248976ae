"""Initial weights in pieces of one size, so that the compiler sees one program whatever the shapes.

A draw of its own for every shape costs a launch more than the numbers: the compiler takes longer
for each than the machine for all. The bits are those of `flax.linen.initializers`: with jax's
threefry, number i of an array depends on the key and i alone, so any piece can be drawn by itself.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.extend.random import threefry_2x32
from jax.interpreters import mlir

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

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        law = _Law(distribution, scale, mode)
        return _draw.bind(key, law=law, shape=tuple(shape), dtype=np.dtype(dtype))

    return init


def uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform in [-bound, bound), drawn in pieces where its key is known."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        law = _Law("between", bound)
        return _draw.bind(key, law=law, shape=tuple(shape), dtype=np.dtype(dtype))

    return init


def zeros(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Zeros, from the host where their key is known: no shape is compiled."""
    law = _Law("zeros", 0.0)
    return _draw.bind(key, law=law, shape=tuple(shape), dtype=np.dtype(dtype))


class _Law(NamedTuple):
    """What numbers are drawn.

    Attributes:
      kind: of `_piece`, or zeros.
      scale: of the variance; of `between` the bound.
      mode: what the variance is divided by.
    """

    kind: str
    scale: float
    mode: Mode = "fan_in"


def _at_once(key: jax.Array, *, law: _Law, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """The draw as flax and jax have it: as a program has it, and of any key and dtype."""
    if law.kind == "zeros":
        return jnp.zeros(shape, dtype)
    if law.kind == "between":
        return jax.random.uniform(key, shape, dtype, -law.scale, law.scale)
    whole = nn.initializers.variance_scaling(law.scale, law.mode, cast(Distribution, law.kind))
    return whole(key, shape, dtype)


def _now(key: jax.Array, *, law: _Law, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """The draw outside of any program, in pieces where it can be."""
    if law.kind == "zeros":
        return jax.device_put(np.zeros(shape, dtype))
    if not _in_pieces(key, dtype):
        return _at_once(key, law=law, shape=shape, dtype=dtype)
    if law.kind == "between":
        return _drawn(key, shape, law.kind, np.float32(law.scale))

    # [..., Cin, Cout]: an output sums over all axes but the last.
    fan = math.prod(shape[:-1])
    if law.mode == "fan_out":
        fan = math.prod(shape) // shape[-2]
    variance = np.float32(law.scale / fan)

    # A uniform number in [-a, a) has the variance a^2 / 3; one within two deviations of a
    # normal distribution varies less than that.
    factor = np.sqrt(variance)
    if law.kind == "uniform":
        factor = np.sqrt(3 * variance)
    if law.kind == "truncated_normal":
        factor /= np.float32(_DEVIATION_WITHIN_TWO)
    return _drawn(key, shape, law.kind, factor)


def _shape_of(
    key: jax.core.AbstractValue, *, law: _Law, shape: tuple[int, ...], dtype: np.dtype
) -> jax.core.ShapedArray:
    del key, law
    return jax.core.ShapedArray(shape, dtype)


# An operation of its own, so that tracing a model for its shapes does not trace its draws, and so
# that a traced model can be drawn without all else in it (`models.layered.drawn`).
_draw = Primitive("draw")
_draw.def_impl(_now)
_draw.def_abstract_eval(_shape_of)
mlir.register_lowering(_draw, mlir.lower_fun(_at_once, multiple_results=False))


def _in_pieces(key: jax.Array, dtype: np.dtype) -> bool:
    """Whether numbers are drawn as those that `_piece` draws."""
    if dtype != jnp.float32:
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
