"""How layers come to lie on a device, or over a mesh of them: copies, alone or as one stack.

Functions that take `Mesh | None` do what one device needs without a mesh.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from snake_jax.params import PyTree
from snake_jax.training import quantization, sharding

Copy = Callable[[PyTree], PyTree]
"""A layer in full precision to its copy on the device."""


def freezing(mesh: Mesh | None, dtype: str) -> Copy:
    """What makes the copy of a layer in full precision that a node stores.

    See `quantization.freeze`.
    """

    @jax.jit
    def freeze(subtree: PyTree) -> PyTree:
        return sharding.shard_stored(mesh, quantization.freeze(subtree, dtype))

    def copy(subtree: PyTree) -> PyTree:
        return freeze(sharding.put_stored(mesh, subtree))

    return copy


def casting(mesh: Mesh | None, dtype: Any) -> Copy:
    """What makes a copy of a layer in a floating dtype."""

    def cast(w: Any) -> jax.Array:
        return jnp.asarray(w).astype(dtype)

    def copy(subtree: PyTree) -> PyTree:
        return jax.tree.map(cast, sharding.put_stored(mesh, subtree))

    return copy


def slot_setter(mesh: Mesh | None) -> Callable[[PyTree, PyTree, int], PyTree]:
    """What puts a layer's copy into a place of a stack, which it overwrites."""

    def set_slot(stacked: PyTree, layer: PyTree, slot: jax.Array) -> PyTree:
        def written(all_slots: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(all_slots, new, slot, 0)

        return sharding.shard_stored(mesh, jax.tree.map(written, stacked, layer))

    return jax.jit(set_slot, donate_argnums=0)


def stack_of(
    mesh: Mesh | None, subtrees: Sequence[PyTree], copy: Copy, set_slot: Callable[..., PyTree]
) -> PyTree:
    """Copies of N layers as one stack, `[N, ...]`; only one of them lies beside it at a time.

    Args:
      mesh: that they lie over.
      subtrees: the layers in full precision, in order; at least one.
      copy: see `freezing`, `casting`.
      set_slot: see `slot_setter`.
    """
    stacked: PyTree = None
    for slot, subtree in enumerate(subtrees):
        layer = copy(subtree)
        if stacked is None:
            stacked = _empty(mesh, layer, len(subtrees))
        stacked = set_slot(stacked, layer, slot)
    return stacked


def no_blocks(mesh: Mesh | None, layer: PyTree) -> PyTree:
    """A stack of no layers like this copy of one, `[0, ...]`."""
    return _empty(mesh, layer, 0)


def own_copy(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Layers or optimizer states in arrays of their own, for a program to overwrite."""
    if mesh is None:
        return jax.tree.map(jnp.array, tree)
    return sharding.put_stored(mesh, tree)


def _empty(mesh: Mesh | None, layer: PyTree, count: int) -> PyTree:
    """`[count, ...]` zeros, for so many layers like this copy of one."""

    def shapes() -> PyTree:
        return layer

    like: PyTree = jax.eval_shape(shapes)

    def zeros_like(w: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros((count, *w.shape), w.dtype)

    def zeros() -> PyTree:
        return jax.tree.map(zeros_like, like)

    def sharded_zeros() -> PyTree:
        return sharding.shard_stored(mesh, zeros())

    if mesh is None:
        return zeros()
    # In a program, so that no device ever holds more than its own part.
    return jax.jit(sharded_zeros)()
