"""Parameters as a dict from layer name to subtree: sub-dicts, masks, and what they weigh."""

import math
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
    left_out = set(names)
    return {name: subtree for name, subtree in params.items() if name not in left_out}


def layer_mask(layer_names: Iterable[str], trained: Iterable[str]) -> dict[str, bool]:
    """A mask for `optax.masked`: True for the trained layers.

    It is a prefix of any tree of parameters in this order.
    """
    chosen = set(trained)
    return {name: name in chosen for name in layer_names}


def num_params(tree: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Bytes of a tree's arrays as they are stored and sent: two 4-bit values a byte, scales too."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        bits = math.prod(leaf.shape) * _bits(leaf.dtype)
        # An odd number of 4-bit values fills its last byte by half.
        total += math.ceil(bits / 8)
    return total


def _bits(dtype: np.dtype) -> int:
    # NumPy says one byte of an int4; JAX knows its four bits.
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    return 8 * dtype.itemsize
