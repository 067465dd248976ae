"""Where each array of a model lies on a mesh of devices.

The axis `fsdp` divides batches, and beside them all that is stored: frozen weights, and the trained
ones with gradients and optimizer states. A block is gathered when it is computed with, in the form
that it is stored in ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv
1910.02054, section 5; "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", arXiv
2304.11277, section 3). The axis `tensor` divides heads and inner features, and weights stay where
they are ("Megatron-LM", arXiv 1909.08053, section 3). A stack's axis of blocks is not divided, and
what does not divide evenly is whole along that axis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from snake_jax.kernels.dequantize import is_quantized
from snake_jax.params import PyTree

FSDP, TENSOR = "fsdp", "tensor"
AXES = (FSDP, TENSOR)

# Linear layers whose output features `tensor` divides, and those whose input features it divides:
# the second's inputs are the first's outputs, so that nothing moves between the two.
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1")
ROWS = ("o_proj", "out_proj", "down_proj", "fc2")

# Axis of an array, counted from its end (-1 is the last): axes of the mesh that divide it. From the
# end, since a stack of blocks has an axis more in front.
Divided = Mapping[int, tuple[str, ...]]


def stored_sharding(mesh: Mesh, tree: PyTree) -> PyTree:
    """Where each array of a tree of weights, gradients or optimizer states is kept.

    That follows from the last two names of its path, whatever lies around it. Both axes divide
    kernels `[in, out]`, adapters `a`, `b` and tables `embedding`; `tensor` alone the biases of
    divided features; none the other vectors.

    Returns:
      A tree of `NamedSharding`.
    """
    return _shardings(mesh, tree, _stored_axes)


def gathered_sharding(mesh: Mesh, tree: PyTree) -> PyTree:
    """Where each array lies while it is computed with: as it is stored, and whole along `fsdp`."""
    return _shardings(mesh, tree, _tensor_axes)


def row_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """Where arrays of rows lie: `fsdp` divides this axis of them."""
    undivided: list[tuple[str, ...]] = [()] * axis
    return _named(mesh, [*undivided, (FSDP,)])


def replicated(mesh: Mesh) -> NamedSharding:
    """On all devices."""
    return NamedSharding(mesh, PartitionSpec())


def step_places(mesh: Mesh, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where the arguments of `text_step.train_step` lie: a tree like theirs, of `NamedSharding`."""

    def by_row(_: Any) -> NamedSharding:
        return row_sharding(mesh, 1)  # `[A, B, T]`

    def everywhere(_: Any) -> NamedSharding:
        return replicated(mesh)

    *weights, batch, key, rate = arguments
    of_weights = [stored_sharding(mesh, tree) for tree in weights]
    of_batch = jax.tree.map(by_row, batch)
    of_key, of_rate = jax.tree.map(everywhere, (key, rate))
    return (*of_weights, of_batch, of_key, of_rate)


def _shardings(mesh: Mesh, tree: PyTree, axes_of: Callable[[tuple[str, ...]], Divided]) -> PyTree:
    """A tree of places, by the names of each array's path.

    Args:
      mesh: the devices.
      tree: arrays or their shapes; codes and scales of a quantized one have a place each.
      axes_of: names of a path to the axes that divide what lies there.
    """

    def places(path: tuple, leaf: Any) -> Any:
        names = tuple(key.key for key in path if isinstance(key, DictKey))
        parts = jax.tree.leaves(leaf)
        divided = _even(mesh, parts, axes_of(names))
        by_tensor = _even(mesh, parts, _tensor_axes(names))

        def place(part: Any) -> NamedSharding:
            # Scales of whole channels or rows are few: to gather them would be one more message,
            # for nothing.
            few = 1 in part.shape[-2:]
            return _place(mesh, part, by_tensor if few else divided)

        return jax.tree.map(place, leaf)

    return jax.tree.map_with_path(places, tree, is_leaf=is_quantized)


def _even(mesh: Mesh, parts: Sequence[Any], axes: Divided) -> Divided:
    """Of these axes those that divide an array evenly.

    `parts` are the array alone, or a quantized one's codes and scales: all of them alike.
    """

    def divides(axis: int, names: tuple[str, ...]) -> bool:
        count = math.prod(mesh.shape[name] for name in names)
        for part in parts:
            if part.ndim < -axis:
                return False
            size = part.shape[axis]
            if size != 1 and size % count:
                return False
        return True

    return {axis: names for axis, names in axes.items() if divides(axis, names)}


def _place(mesh: Mesh, part: Any, divided: Divided) -> NamedSharding:
    """Where an array lies that these axes divide; an axis of size 1 is whole."""
    axes: list[tuple[str, ...]] = []
    for i, size in enumerate(part.shape):
        from_end = i - part.ndim
        axes.append(divided.get(from_end, ()) if size > 1 else ())
    return _named(mesh, axes)


def _named(mesh: Mesh, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
    """The place in the compiler's words: without what divides nothing.

    A program's results are said in these words, so that it takes its own results without a move.
    """
    names: list[tuple[str, ...]] = []
    for of_axis in axes:
        dividing = tuple(name for name in of_axis if mesh.shape[name] > 1)
        names.append(dividing)
    while names and not names[-1]:
        names.pop()
    return NamedSharding(mesh, PartitionSpec(*names))


def _tensor_axes(names: tuple[str, ...]) -> Divided:
    """What `tensor` divides of an array, by the last two names of its path."""
    layer, name = ("", "", *names)[-2:]
    if layer in COLUMNS and name in ("kernel", "b", "bias"):
        return {-1: (TENSOR,)}
    if layer in ROWS and name in ("kernel", "a"):
        return {-2: (TENSOR,)}
    return {}


def _stored_axes(names: tuple[str, ...]) -> Divided:
    """As `_tensor_axes`, and `fsdp` along the other axis; a table's rows by both."""
    axes = _tensor_axes(names)
    name = names[-1] if names else ""
    if name == "embedding":
        return {-2: AXES}
    if name not in ("kernel", "a", "b"):
        return axes
    other = -1 if -2 in axes else -2
    return {other: (FSDP,), **axes}
