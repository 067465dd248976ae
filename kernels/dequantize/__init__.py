"""Quantized arrays as dense ones, in a form that compilers fuse into what reads them.

qwix.dequantize is the definition. It looks nf4 codes up by a gather, for which the TPU compiler
writes several times the dense array into temporaries; as selections it writes none.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

if TYPE_CHECKING:
    import qwix

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The 16 values of 4-bit NormalFloat: QLoRA (arXiv 2305.14314), Appendix E."""


def dense(array: "jax.Array | qwix.QArray", dtype: DTypeLike) -> jax.Array:
    """A stored array in `dtype`.

    Quantized ones (int8, nf4) are computed in float32 whatever their scales' dtype.
    """
    if not is_quantized(array):
        return array.astype(dtype)
    if array.qtype != "nf4":
        import qwix

        return qwix.dequantize(array.astype(jnp.float32)).astype(dtype)
    values = look_up(array.qvalue)
    return _scaled(values, array.scale.astype(jnp.float32)).astype(dtype)


def look_up(codes: jax.Array) -> jax.Array:
    """The float32 values of 4-bit codes: each bit, from the lowest, halves the candidates.

    Of 16 values, bit 0 chooses between neighbours 0 and 1, 2 and 3, ...: 8 are left; bit 1 chooses
    between neighbours of these, and so on. 15 selections, no gather.
    """
    codes = codes.astype(jnp.int32)
    candidates: list[jax.Array | np.float32] = list(NF4)
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        pairs = zip(candidates[::2], candidates[1::2], strict=True)
        candidates = [jnp.where(odd, high, low) for low, high in pairs]
    return jnp.asarray(candidates[0])


def _scaled(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Values times the scale of their tile: an axis of the scale divides that of the values.

    With a scale for each of s tiles of an axis of v values, the axis is seen as `[s, v / s]` and
    the scale's as `[s, 1]`; otherwise (one scale, or one a value) they broadcast as they are.
    """
    tiled: list[int] = []
    aligned: list[int] = []
    for v, s in zip(values.shape, scale.shape, strict=True):
        if 1 < s < v:
            tiled += [s, v // s]
            aligned += [s, 1]
        else:
            tiled.append(v)
            aligned.append(s)
    scaled = values.reshape(tiled) * scale.reshape(aligned)
    return scaled.reshape(values.shape)


def take_rows(table: "jax.Array | qwix.QArray", ids: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rows [..., E] of a stored table [V, E]; only the rows taken are dequantized."""

    def rows_of(x: jax.Array) -> jax.Array:
        # As a JAX array first: a traced id cannot index a numpy array.
        return jnp.asarray(x)[ids]

    taken = jax.tree.map(rows_of, table)
    return dense(taken, dtype)


def is_quantized(leaf: object) -> "TypeGuard[qwix.QArray]":
    """Whether a leaf is an array with scales.

    Whoever makes one has imported qwix, which takes a launch without any half a second.
    """
    qwix = sys.modules.get("qwix")
    return qwix is not None and isinstance(leaf, qwix.QArray)
