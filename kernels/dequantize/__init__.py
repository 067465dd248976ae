"""Quantized arrays as dense ones, in a form that compilers fuse into what reads them.

qwix.dequantize is the definition. It looks nf4 codes up by a gather, for which the TPU compiler
writes several times the dense array into temporaries; as selections it writes none.
"""

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from jax.typing import DTypeLike

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


def dense(array: jax.Array | qwix.QArray, dtype: DTypeLike) -> jax.Array:
    """A stored array in `dtype`; quantized ones (int8, nf4) are computed in float32 whatever their
    scales' dtype.
    """
    if not isinstance(array, qwix.QArray):
        return array.astype(dtype)
    if array.qtype != "nf4":
        return qwix.dequantize(array.astype(jnp.float32)).astype(dtype)
    return _scaled(look_up(array.qvalue), array.scale.astype(jnp.float32)).astype(dtype)


def look_up(codes: jax.Array) -> jax.Array:
    """The float32 values of 4-bit codes: each bit, from the lowest, halves the candidates."""
    codes = codes.astype(jnp.int32)
    candidates: list[jax.Array | np.float32] = list(NF4)
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        candidates = [
            jnp.where(odd, high, low)
            for low, high in zip(candidates[::2], candidates[1::2], strict=True)
        ]
    return jnp.asarray(candidates[0])


def _scaled(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Values times the scale of their tile: an axis of the scale divides that of the values."""
    pairs = list(zip(values.shape, scale.shape, strict=True))
    tiled = [(s, v // s) if 1 < s < v else (v,) for v, s in pairs]
    aligned = [(s, 1) if 1 < s < v else (s,) for v, s in pairs]
    return (values.reshape(sum(tiled, ())) * scale.reshape(sum(aligned, ()))).reshape(values.shape)


def take_rows(table: jax.Array | qwix.QArray, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rows [..., E] of a stored table [V, E]; only the rows taken are dequantized."""
    return dense(
        jax.tree.map(lambda x: jnp.asarray(x)[ids], table), dtype
    )  # a traced id cannot index a numpy array


def is_quantized(leaf: object) -> bool:
    """Whether a leaf is an array with scales."""
    return isinstance(leaf, qwix.QArray)
