"""How a node's arrays come to lie on its device, or over a mesh of them: stacks of frozen blocks,
what trains, rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from snake_jax.data.text import packing
from snake_jax.engines.text_batches import Batch, gathered
from snake_jax.params import PyTree
from snake_jax.train import quantization, sharding
from snake_jax.train.text_step import Rows

Copy = Callable[[PyTree], PyTree]


def freezing(mesh: Mesh | None, dtype: str) -> Copy:
    """What makes the copy of a layer in full precision that a node stores: see
    `quantization.freeze`.
    """
    freeze = jax.jit(lambda subtree: sharding.kept(mesh, quantization.freeze(subtree, dtype)))
    return lambda subtree: freeze(sharding.put_stored(mesh, subtree))


def casting(mesh: Mesh | None, dtype: Any) -> Copy:
    """What makes a copy of a layer in a floating dtype."""
    cast = lambda w: jnp.asarray(w).astype(dtype)  # noqa: E731
    return lambda subtree: jax.tree.map(cast, sharding.put_stored(mesh, subtree))


def setting(mesh: Mesh | None) -> Callable[[PyTree, PyTree, int], PyTree]:
    """What puts a layer's copy into a place of a stack, which it overwrites."""

    def function(rows: PyTree, one: PyTree, slot: jax.Array) -> PyTree:
        new = jax.tree.map(
            lambda all, x: jax.lax.dynamic_update_index_in_dim(all, x, slot, 0), rows, one
        )
        return sharding.kept(mesh, new)

    return jax.jit(function, donate_argnums=0)


def stack_of(
    mesh: Mesh | None, subtrees: Sequence[PyTree], copy: Copy, put: Callable[..., PyTree]
) -> PyTree:
    """Copies of layers as one stack; only one of them lies beside it at a time.

    Args:
      mesh: that they lie over.
      subtrees: the layers in full precision, in order.
      copy: see `freezing`, `casting`.
      put: see `setting`.
    """
    rows: PyTree = None
    for slot, subtree in enumerate(subtrees):
        one = copy(subtree)
        rows = put(_empty(mesh, one, len(subtrees)) if rows is None else rows, one, slot)
    return rows


def no_blocks(mesh: Mesh | None, one: PyTree) -> PyTree:
    """A stack of no layers like this copy of one."""
    return _empty(mesh, one, 0)


def own_copy(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Layers or optimizer states in arrays of their own, for a program to overwrite."""
    return jax.tree.map(jnp.array, tree) if mesh is None else sharding.put_stored(mesh, tree)


def rows_of(mesh: Mesh | None, rows: packing.TextRows, batch: Batch, hidden: Any = None) -> Rows:
    """The batch's rows, and their kept input of the first block that trains; every process reads
    its own.
    """
    if mesh is None:
        return gathered(rows, batch)._replace(hidden=hidden)
    place = sharding.rows(mesh, batch.indices.ndim - 1)
    return gathered(rows, batch, place)._replace(
        hidden=None if hidden is None else sharding.put(hidden, place)
    )


def _empty(mesh: Mesh | None, one: PyTree, count: int) -> PyTree:
    like: PyTree = jax.eval_shape(lambda: one)
    zeros = lambda: jax.tree.map(lambda w: jnp.zeros((count, *w.shape), w.dtype), like)  # noqa: E731
    return zeros() if mesh is None else jax.jit(lambda: sharding.kept(mesh, zeros()))()
