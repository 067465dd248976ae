"""Columns of a block's adapters: a node of smaller rank trains the first, and reads the others.

Columns are the second axis of `a` `[in, R]` and the first of `b` `[R, out]`, and likewise in the
optimizer states of both. With r of the R columns trained a linear layer computes

    x @ kernel + (x @ a[:, :r]) @ b[:r] + (x @ a[:, r:]) @ b[r:]

as two products of adapters: the same values, but only the first has weight gradients. So a program
of rank r has gradients, optimizer states and float32 copies of r columns.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.params import PyTree

_AXES = {"a": 1, "b": 0}


def axis_of(path: Sequence[Any]) -> int | None:
    """Which axis of the array at this path of a tree the columns are; None: it has none."""
    return _AXES.get(getattr(path[-1], "key", ""))


def most(adapters: PyTree) -> int:
    """R, how many columns adapters have."""
    largest = 0
    for path, leaf in jax.tree.leaves_with_path(adapters):
        axis = axis_of(path)
        if axis is not None:
            largest = max(largest, leaf.shape[axis])
    return largest


def cut(tree: PyTree, start: int, stop: int) -> PyTree:
    """Columns `start` to `stop` of adapters or their optimizer states; what has none is left."""

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        axis = axis_of(path)
        if axis is None:
            return leaf
        return leaf[(slice(None),) * axis + (slice(start, stop),)]

    return jax.tree.map_with_path(of_leaf, tree)


def zeros(tree: PyTree, columns: int) -> PyTree:
    """Zeros in the place of a tree of so many columns, given one of some."""

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        shape = list(leaf.shape)
        axis = axis_of(path)
        if axis is not None:
            shape[axis] = columns
        return np.zeros(shape, leaf.dtype)

    return jax.tree.map_with_path(of_leaf, tree)


def widened(first: PyTree, whole: PyTree) -> PyTree:
    """All columns: the first as in `first`, those that it lacks as in `whole`.

    What has no columns, as a count of steps, is that of `first`.
    """

    def of_leaf(path: tuple[Any, ...], new: Any, old: Any) -> Any:
        axis = axis_of(path)
        if axis is None:
            return new
        rest = old[(slice(None),) * axis + (slice(new.shape[axis], None),)]
        # On the host where both are there, so that nothing is moved.
        on_host = isinstance(new, np.ndarray) and isinstance(rest, np.ndarray)
        return (np if on_host else jnp).concatenate([new, rest], axis)

    return jax.tree.map_with_path(of_leaf, first, whole)


def with_read(adapters: PyTree, read: PyTree) -> PyTree:
    """Pairs `{"a", "b"}` that train with the columns that are only read beside them.

    Those come as `a_read` and `b_read`, as `snake_jax.models.linear` takes them.
    """

    def is_pair(tree: PyTree) -> bool:
        return "b" in tree

    def both(trained: dict[str, jax.Array], other: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {**trained, "a_read": other["a"], "b_read": other["b"]}

    return jax.tree.map(both, adapters, read, is_leaf=is_pair)
