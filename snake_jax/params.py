"""Parameters as a dict from layer name to subtree: sub-dicts, masks, and what they weigh."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Params = dict[str, PyTree]
LayerNames = tuple[str, ...]  # in the model's order


def select(params: Params, names: Iterable[str]) -> Params:
    """The sub-dict of the named layers."""
    return {name: params[name] for name in names}


def without(params: Params, names: Iterable[str]) -> Params:
    """The sub-dict of all but the named layers."""
    names = set(names)
    return {name: subtree for name, subtree in params.items() if name not in names}


def layer_mask(layer_names: Iterable[str], trained: Iterable[str]) -> dict[str, bool]:
    """A mask for `optax.masked`: True for the trained layers; a prefix of any parameter tree in
    this order.
    """
    trained = set(trained)
    return {name: name in trained for name in layer_names}


def num_params(tree: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Bytes of a tree's arrays as they are stored and sent: two 4-bit values a byte, scales
    included.
    """
    return sum(
        -(-int(np.prod(leaf.shape)) * _bits(leaf.dtype) // 8) for leaf in jax.tree.leaves(tree)
    )


def _bits(dtype: np.dtype) -> int:
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize
