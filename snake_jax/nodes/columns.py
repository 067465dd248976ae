"""What of a block's adapters a node of smaller rank sends: the columns that it trains, and no more.

The ranks of all nodes cut the columns of adapters into parts: with ranks 2 and 8 of at most 16 into
[0, 2), [2, 8) and [8, 16). A part is an item of its own, with versions, bytes and holders like any
layer's. Every node trains the first, which so has the adapters' own name and stands for them in
orders; the others are `block_05.lora[2:8]`. A node of rank 2 makes a new version of the first part
alone: the others are everywhere what they were, and nobody is sent them again. What its visit reads
are all columns, so those that it lacks are sent to it once.

Where the columns lie in arrays, and how a step trains some of them: `training.adapter_columns`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.params import PyTree
from snake_jax.training.adapter_columns import axis_of
from snake_jax.training.text_step import ADAPTERS


class Columns(NamedTuple):
    """How adapters are cut.

    Attributes:
      stops: where the parts end, in order; empty: adapters travel whole.
      ranks: of each node.
    """

    stops: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()


WHOLE = Columns()


def of_ranks(ranks: Sequence[int], most: int) -> Columns:
    """The columns of nodes of these ranks.

    Args:
      ranks: of each node; empty: all have the most.
      most: the adapters' own rank, of which all others are the first columns.
    """
    if all(rank == most for rank in ranks):
        return WHOLE
    return Columns(tuple(sorted({*ranks, most})), tuple(ranks))


def parts(columns: Columns, item: str) -> tuple[str, ...]:
    """The parts of an item, in order; of what is no adapters, or whole, the item itself."""
    if not columns.stops or not item.endswith(ADAPTERS):
        return (item,)
    found = [item]
    for start, stop in itertools.pairwise(columns.stops):
        found.append(f"{item}[{start}:{stop}]")
    return tuple(found)


def trained(columns: Columns, item: str, node: int) -> tuple[str, ...]:
    """The parts of an item that a node trains."""
    names = parts(columns, item)
    if len(names) == 1:
        return names
    return names[: columns.stops.index(columns.ranks[node]) + 1]


def rank_of(columns: Columns, node: int) -> int:
    """How many columns a node trains; 0: all of them."""
    return columns.ranks[node] if columns.ranks else 0


def greatest(columns: Columns) -> int:
    """The rank of the nodes that train the most columns; 0: all train all."""
    return max(columns.ranks, default=0)


def all_parts(columns: Columns, items: Iterable[str]) -> tuple[str, ...]:
    """The parts of all items, in order."""
    found: list[str] = []
    for item in items:
        found.extend(parts(columns, item))
    return tuple(found)


def all_trained(columns: Columns, items: Iterable[str], node: int) -> tuple[str, ...]:
    """The parts of all items that a node trains, in order."""
    found: list[str] = []
    for item in items:
        found.extend(trained(columns, item, node))
    return tuple(found)


def split(columns: Columns, item: str, tree: PyTree) -> dict[str, PyTree]:
    """The parts of an item's arrays, by name.

    What has no columns, as a count of steps, is the first part's; the others are lists.
    """
    names = parts(columns, item)
    if len(names) == 1:
        return {item: tree}
    paths, structure = jax.tree.flatten_with_path(tree)
    found: dict[str, PyTree] = {}
    start = 0
    for name, stop in zip(names, columns.stops, strict=True):
        leaves = []
        for path, leaf in paths:
            axis = axis_of(path)
            if axis is not None:
                leaves.append(leaf[_slice(axis, start, stop)])
            elif start == 0:
                leaves.append(leaf)
        found[name] = leaves if start else jax.tree.unflatten(structure, leaves)
        start = stop
    return found


def joined(columns: Columns, item: str, found: Mapping[str, PyTree]) -> PyTree:
    """An item's arrays from its parts.

    Args:
      columns: how it was cut.
      item: which.
      found: its parts by name. The first is there; others that are not are zero, as the states are
        that an optimizer starts with.
    """
    names = parts(columns, item)
    if len(names) == 1:
        return found[item]
    paths, structure = jax.tree.flatten_with_path(found[item])
    whole = []
    index = 0
    for path, leaf in paths:
        axis = axis_of(path)
        if axis is None:
            whole.append(leaf)
            continue
        pieces = [leaf]
        for name, (start, stop) in zip(names[1:], itertools.pairwise(columns.stops), strict=True):
            if name in found:
                pieces.append(found[name][index])
            else:
                shape = list(leaf.shape)
                shape[axis] = stop - start
                pieces.append(np.zeros(shape, leaf.dtype))
        # On the host where all of it is there, so that nothing is moved.
        on_host = all(isinstance(piece, np.ndarray) for piece in pieces)
        whole.append((np if on_host else jnp).concatenate(pieces, axis))
        index += 1
    return jax.tree.unflatten(structure, whole)


def shapes(columns: Columns, trees: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The shapes of all items' parts, from those of the items."""
    found: dict[str, PyTree] = {}
    for item, tree in trees.items():

        def cut(whole: PyTree, item: str = item) -> dict[str, PyTree]:
            return split(columns, item, whole)

        if len(parts(columns, item)) == 1:
            found[item] = tree
        else:
            found |= jax.eval_shape(cut, tree)
    return found


def _slice(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)
