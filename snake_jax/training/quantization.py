"""Storage of frozen layers: float32, bfloat16, int8 or nf4.

A frozen copy is always made from the full-precision values, never from another frozen copy, so that
no error adds up however many nodes a layer passes. Dequantization happens a layer at a time inside
the forward pass.

- int8: a float32 scale, the largest magnitude / 127.5, for each output channel of a `kernel` (its
  last axis) and each row of an `embedding`. No error is above scale / 2.
- nf4: a scale, the largest magnitude, for each block of values along the axis that products sum
  over. No error is above 0.152 scale. With its scale a parameter takes 4.5 bits, 4.25 with bfloat16
  scales.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from snake_jax.kernels.dequantize import NF4, dense, is_quantized
from snake_jax.kernels.quant_matmul import OfStack
from snake_jax.params import PyTree

if TYPE_CHECKING:
    import qwix

BLOCK = 64
"""Values that share a scale in nf4; where it does not divide an axis, the largest divisor of the
axis below it.
"""

SMALLEST_BLOCK = 8
"""Below this nf4 would store more scales than it saves: the matrix is kept in bfloat16."""


class Stored(NamedTuple):
    """A layer that is there only as a node stores it, where others are in full precision.

    Attributes:
      tree: what `freeze` gave.
    """

    tree: PyTree


def freeze(subtree: PyTree, dtype: str, scale_dtype: DTypeLike = jnp.float32) -> PyTree:
    """A layer's parameters as a node stores them while they are frozen.

    `jax.vmap` of it freezes a stack of layers.

    Args:
      subtree: full-precision arrays. A leaf under the key `embedding` is a table of rows, any other
        of two or more axes has its output channels last and the axis that products sum over before
        it.
      dtype: float32 (as they are), bfloat16, int8 or nf4. The last two leave vectors in full
        precision: they are small and quantize badly.
      scale_dtype: of the scales of nf4; bfloat16 saves a quarter of a bit.
    """

    def narrowed(w: jax.Array) -> jax.Array:
        return w.astype(jnp.bfloat16)

    def quantized(path: tuple, w: jax.Array) -> "jax.Array | qwix.QArray":
        return _quantized(path, w, dtype, scale_dtype)

    if dtype == "bfloat16":
        return jax.tree.map(narrowed, subtree)
    if dtype in ("int8", "nf4"):
        return jax.tree.map_with_path(quantized, subtree)
    return subtree


def thaw(subtree: PyTree, dtype: DTypeLike) -> PyTree:
    """A stored subtree as the arrays that are computed with, in `dtype`.

    One of a stack stays as it is: the product that reads it dequantizes it.
    """

    def one(leaf: "jax.Array | qwix.QArray | OfStack") -> jax.Array | OfStack:
        if isinstance(leaf, OfStack):
            return leaf
        return dense(leaf, dtype)

    def is_leaf(node: object) -> bool:
        return is_quantized(node) or isinstance(node, OfStack)

    return jax.tree.map(one, subtree, is_leaf=is_leaf)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Codes of four bits, two in a byte: the first of a pair is the lower half."""

    codes: np.ndarray
    shape: tuple[int, ...]


def packed(tree: PyTree) -> PyTree:
    """A stored layer as it travels: arrays of NumPy, which keeps a code of four bits in a byte, two
    of them in one.
    """

    def one(leaf: jax.Array) -> np.ndarray | _Pairs:
        values = np.asarray(leaf)
        if values.dtype != jnp.uint4:
            return values
        halves = values.astype(np.uint8).reshape(-1)
        if halves.size % 2:
            halves = np.append(halves, np.uint8(0))
        return _Pairs(halves[0::2] | halves[1::2] << 4, values.shape)

    return jax.tree.map(one, tree)


def unpacked(tree: PyTree) -> PyTree:
    """What was packed, in arrays of its own."""

    def one(leaf: np.ndarray | _Pairs) -> np.ndarray:
        if not isinstance(leaf, _Pairs):
            return np.array(leaf)
        halves = np.stack([leaf.codes & 15, leaf.codes >> 4], axis=-1).reshape(-1)
        count = int(np.prod(leaf.shape))
        return halves[:count].reshape(leaf.shape).astype(jnp.uint4)

    return jax.tree.map(one, tree)


def of_stack(tree: PyTree, index: jax.Array) -> PyTree:
    """One block of a stack of them as `stack.at`, its quantized matrices left in the stack."""

    def one(leaf: "jax.Array | qwix.QArray") -> jax.Array | OfStack:
        if is_quantized(leaf):
            return OfStack(leaf, index)
        return lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    return jax.tree.map(one, tree, is_leaf=is_quantized)


def _quantized(
    path: tuple, w: jax.Array, dtype: str, scale_dtype: DTypeLike
) -> "jax.Array | qwix.QArray":
    """One array of a layer, in int8 or nf4; a vector as it is."""
    if w.ndim < 2:
        return w
    # A kernel is [..., in, out], a table [V, E]: whoever multiplies with it sums over `in` or E,
    # and an output is an `out` or a row of V.
    is_table = bool(path) and path[-1] == jax.tree_util.DictKey("embedding")
    outputs, summed = w.ndim - 1, w.ndim - 2
    if is_table:
        outputs, summed = 0, 1
    if dtype == "int8":
        import qwix

        # One scale an output: it is a factor of the sum, and can be multiplied with after it.
        return qwix.quantize(w.astype(jnp.float32), jnp.int8, channelwise_axes=[outputs])
    return _nf4(w, summed, scale_dtype)


def _nf4(w: jax.Array, axis: int, scale_dtype: DTypeLike) -> "jax.Array | qwix.QArray":
    """Each value as the nearest of 16, times the largest magnitude of its block along `axis`.

    "QLoRA" (arXiv 2305.14314), section 3. The codes are those of `qwix.quantize(w, "nf4")`, which
    compares all 16 and has the compiler store the comparisons.
    """
    import qwix

    # The largest divisor of the axis up to `BLOCK`.
    size = w.shape[axis]
    block = max(n for n in range(1, min(BLOCK, size) + 1) if size % n == 0)
    if block < SMALLEST_BLOCK:
        return w.astype(jnp.bfloat16)

    # `[..., size, ...]` as `[..., size / block, block, ...]`, and a scale for each block. A block
    # of zeros has the scale 1: nothing is divided by zero.
    before, after = w.shape[:axis], w.shape[axis + 1 :]
    blocks = w.astype(jnp.float32).reshape(*before, size // block, block, *after)
    scale = jnp.abs(blocks).max(axis + 1, keepdims=True).astype(scale_dtype)
    scale = jnp.where(scale > jnp.finfo(jnp.float32).tiny, scale, 1)
    relative = (blocks / scale.astype(jnp.float32)).reshape(w.shape)

    # The nearest of 16 ascending values: how many of the 15 middles between neighbours lie below.
    middles = (NF4[1:] + NF4[:-1]) / 2
    codes: Any = 0
    for middle in middles:
        is_above = relative > middle
        codes = codes + is_above.astype(jnp.int32)
    return qwix.QArray(codes.astype(jnp.uint4), scale.squeeze(axis + 1), None, "nf4")
