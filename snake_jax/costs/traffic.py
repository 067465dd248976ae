"""Bytes of what travels between nodes: counted from shapes, of images and language alike.

docs/accounting.md says what each number holds.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from snake_jax.costs.shapes import stored_dtype
from snake_jax.nodes.ledger import Sizes, optimizer_item
from snake_jax.params import Params, PyTree, num_bytes
from snake_jax.training import quantization


def transfer_sizes(
    params: Params,
    frozen_dtype: str,
    states: Mapping[str, Any] | None = None,
    base: Params | None = None,
) -> Sizes:
    """Bytes of everything that may travel, in full precision and as stored frozen.

    Args:
      params: what may train, by layer or by a block's adapters (shapes suffice).
      frozen_dtype: see `quantization.freeze`.
      states: optimizer states by layer, where they travel.
      base: what never trains, by layer; it travels as it is stored.
    """
    full, frozen = {}, {}
    for name, subtree in params.items():
        full[name] = num_bytes(subtree)
        frozen[name] = stored_bytes(subtree, stored_dtype(name, frozen_dtype))

    # Nobody trains these, so nobody needs them in full precision.
    for name, subtree in (base or {}).items():
        frozen[name] = stored_bytes(subtree, stored_dtype(name, frozen_dtype))
        full[name] = frozen[name]

    # Optimizer states travel in full precision, as items of their own.
    for name, state in (states or {}).items():
        item = optimizer_item(name)
        full[item] = num_bytes(state)
        frozen[item] = full[item]
    return Sizes(full, frozen)


def stored_bytes(subtree: PyTree, dtype: str) -> int:
    """Bytes of a layer as a node stores it frozen.

    Args:
      subtree: its arrays, or their shapes.
      dtype: see `quantization.freeze`.
    """
    # Shapes can be a key of the cache, arrays cannot.
    leaves, structure = jax.tree.flatten(subtree)
    shapes = []
    for leaf in leaves:
        shapes.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return _stored_bytes(structure, tuple(shapes), dtype)


@functools.lru_cache(maxsize=256)
def _stored_bytes(structure: Any, shapes: tuple[Any, ...], dtype: str) -> int:
    """By shapes, since blocks are alike: most are counted once."""
    subtree = jax.tree.unflatten(structure, shapes)
    freeze = functools.partial(quantization.freeze, dtype=dtype)
    return num_bytes(jax.eval_shape(freeze, subtree))
