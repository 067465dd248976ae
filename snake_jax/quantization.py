"""Storage of frozen layers: float32, bfloat16 or int8.

A frozen copy is always made from the full-precision values, never from another frozen copy, so that no error adds up
however many nodes a layer passes. Dequantization happens a layer at a time inside the forward pass.
"""

import jax
import jax.numpy as jnp
import qwix

from snake_jax.layers import PyTree


def freeze(subtree: PyTree, dtype: str) -> PyTree:
    """A layer's parameters as a node stores them while they are frozen.

    Args:
      subtree: full-precision arrays.
      dtype: float32 (as they are), bfloat16, or int8 (kernels symmetric with a float32 scale for each output channel,
        the last axis; vectors stay float32: they are small and quantize badly).
    """
    if dtype == "bfloat16":
        return jax.tree.map(lambda w: w.astype(jnp.bfloat16), subtree)
    if dtype == "int8":
        return jax.tree.map(lambda w: _int8(w) if w.ndim > 1 else w, subtree)
    return subtree


def thaw(subtree: PyTree, dtype: jnp.dtype) -> PyTree:
    """A stored subtree as the arrays that are computed with, in `dtype`."""
    return jax.tree.map(lambda leaf: _dense(leaf).astype(dtype), subtree, is_leaf=_is_quantized)


def _int8(w: jax.Array) -> qwix.QArray:
    return qwix.quantize(w, jnp.int8, channelwise_axes=[w.ndim - 1])


def _is_quantized(leaf: object) -> bool:
    return isinstance(leaf, qwix.QArray)


def _dense(leaf: jax.Array | qwix.QArray) -> jax.Array:
    return qwix.dequantize(leaf) if isinstance(leaf, qwix.QArray) else leaf
