"""One model over several devices: a mesh by flag, where each array lies on it, and when a layer is
gathered.

The axis `fsdp` divides batches, and beside them all that is stored: frozen weights, and the trained
ones with gradients and optimizer states. A block is gathered when it is computed with, in the form
that it is stored in ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv
1910.02054, section 5; "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", arXiv
2304.11277, section 3). The axis `tensor` divides heads and inner features, and weights stay where
they are ("Megatron-LM", arXiv 1909.08053, section 3). A stack's axis of blocks is not divided, and
what does not divide evenly is whole along that axis.

Functions that take `Mesh | None` do nothing, or what one device needs, without a mesh.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey
from jax.typing import DTypeLike

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import is_quantized
from snake_jax.kernels.distill_xent import Xent, linear_xent
from snake_jax.models.attention import Attend, attend_causally
from snake_jax.params import PyTree
from snake_jax.train.quantization import thaw

FSDP, TENSOR = "fsdp", "tensor"
AXES = (FSDP, TENSOR)

# Linear layers whose output features `tensor` divides, and those whose input features it divides.
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1")
ROWS = ("o_proj", "out_proj", "down_proj", "fc2")

_WAY_OUT = "say as fsdp:4,tensor:2"


def sizes(flag: str) -> dict[str, int]:
    """The axes of a mesh as the flag names them, `fsdp:4,tensor:2`; one that it leaves out has size
    1.

    Raises:
      UserError: an axis that there is not, one named twice, or a size that is none.
    """
    found: dict[str, int] = {}
    for word in flag.split(","):
        name, _, size = word.strip().partition(":")
        if name not in AXES or name in found:
            reason = "named twice" if name in found else "no axis"
            raise UserError(
                f"--mesh={flag}: {name or 'a gap'} is {reason}; axes are {', '.join(AXES)}: "
                f"{_WAY_OUT}"
            )
        if not size.isdecimal() or not int(size):
            raise UserError(f"--mesh={flag}: {name} has no size of at least 1; {_WAY_OUT}")
        found[name] = int(size)
    return {name: found.get(name, 1) for name in AXES}


def make_mesh(flag: str, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The flag's mesh over the first of the devices, by default all there are; None for an empty
    flag.

    Raises:
      UserError: see `sizes`; or there are fewer devices; or several processes, of which it would
        leave out some.
    """
    if not flag:
        return None
    devices, shape = jax.devices() if devices is None else devices, tuple(sizes(flag).values())
    count = math.prod(shape)
    if count > len(devices):
        raise UserError(
            f"--mesh={flag}: {count} devices, there are {len(devices)}; take a smaller mesh"
        )
    used = devices[:count]
    if unused := {device.process_index for device in devices} - {
        device.process_index for device in used
    }:
        reason = f"{count} of {len(devices)} devices leave out process {min(unused)}"
        raise UserError(f"--mesh={flag}: {reason}; take a mesh over the devices of all")
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=used)


def check(
    flag: str, batch_size: int, heads: int, key_heads: int, devices: Sequence[Any] | None = None
) -> None:
    """Checks that there is such a mesh, and that it divides what it has to.

    Args:
      flag: the mesh; empty: one device, which several processes do not share.
      batch_size: rows passed at a time, which `fsdp` divides.
      heads: of queries; `tensor` divides them.
      key_heads: of keys and values; likewise.
      devices: see `make_mesh`.

    Raises:
      UserError: see `make_mesh`; or it does not.
    """
    if not flag:
        if jax.process_count() > 1:
            raise UserError(
                f"{jax.process_count()} processes need a mesh: say --mesh=fsdp:{jax.device_count()}"
            )
        return
    of = sizes(flag)
    if batch_size % of[FSDP]:
        raise UserError(
            f"--mesh={flag}: fsdp does not divide --batch_size={batch_size}; take a multiple of "
            f"{of[FSDP]}"
        )
    for count, kind in ((heads, "heads"), (key_heads, "key heads")):
        if count % of[TENSOR]:
            raise UserError(
                f"--mesh={flag}: tensor does not divide the model's {count} {kind}; take a "
                f"divisor of it"
            )
    make_mesh(flag, devices)


def stored(mesh: Mesh, tree: PyTree) -> PyTree:
    """Where each array of a tree of weights, gradients or optimizer states is kept: a tree of
    `NamedSharding`.

    That follows from the last two names of its path, whatever lies around it. Both axes divide
    kernels `[in, out]`, adapters `a`, `b` and tables `embedding`; `tensor` alone the biases of
    divided features; none the other vectors.
    """
    return _shardings(mesh, tree, _stored_axes)


def gathered(mesh: Mesh, tree: PyTree) -> PyTree:
    """Where each array lies while it is computed with: as `stored`, and whole along `fsdp`."""
    return _shardings(mesh, tree, _tensor_axes)


def rows(mesh: Mesh, axis: int) -> NamedSharding:
    """Where arrays of rows lie: `fsdp` divides this axis of them."""
    return _named(mesh, [()] * axis + [(FSDP,)])


def step_places(mesh: Mesh, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where the arguments of `language_step.train_step` lie: a tree like theirs, of
    `NamedSharding`.
    """
    *weights, batch, key, rate = arguments
    places = [stored(mesh, tree) for tree in weights]
    return (
        *places,
        jax.tree.map(lambda _: rows(mesh, 1), batch),
        *jax.tree.map(lambda _: _whole(mesh), (key, rate)),
    )


def on(mesh: Mesh, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shapes of these arguments with their places on the mesh, to compile for."""
    place = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(place, arguments, step_places(mesh, arguments))


def kept(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """In a program: has a tree of weights, gradients or optimizer states lie as it is `stored`."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, stored(mesh, tree))


def spread(mesh: Mesh | None, values: jax.Array) -> jax.Array:
    """In a program: has every device hold its own rows of activations `[B, ...]`."""
    return values if mesh is None else lax.with_sharding_constraint(values, rows(mesh, 0))


def thawed(mesh: Mesh | None, subtree: PyTree, dtype: DTypeLike) -> PyTree:
    """In a program: a stored subtree as what is computed with, gathered in the narrower form of the
    two.
    """
    if mesh is None:
        return thaw(subtree, dtype)
    bits = jnp.finfo(dtype).bits

    def narrow(leaf: Any, place: Any) -> Any:
        wide = not is_quantized(leaf) and jnp.finfo(leaf.dtype).bits > bits
        return leaf if wide else lax.with_sharding_constraint(leaf, place)

    dense = thaw(
        jax.tree.map(narrow, subtree, gathered(mesh, subtree), is_leaf=is_quantized), dtype
    )
    return lax.with_sharding_constraint(dense, gathered(mesh, dense))


def put(tree: PyTree, places: PyTree) -> PyTree:
    """Host arrays, the same in all processes, on a mesh: a process moves what its own devices
    hold.
    """
    return jax.tree.map(_put, tree, places)


def put_stored(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Host arrays as they are `stored`; without a mesh they stay where they are."""
    return tree if mesh is None else put(tree, stored(mesh, tree))


def put_everywhere(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Arrays that are not on the mesh, on all of its devices; the others as they are."""

    def one(leaf: Any) -> Any:
        there = (
            isinstance(leaf, jax.Array)
            and isinstance(leaf.sharding, NamedSharding)
            and leaf.sharding.mesh == mesh
        )
        return leaf if there else _put(leaf, whole)

    if mesh is None:
        return tree
    whole = _whole(mesh)
    return jax.tree.map(one, tree)


def fetch(tree: PyTree) -> PyTree:
    """Arrays whole on the host, wherever they lie; of several processes, on the host of each."""

    def one(leaf: Any) -> Any:
        here = (
            not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return jax.device_get(leaf) if here else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def _put(array: Any, place: NamedSharding) -> jax.Array:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _put(jax.random.key_data(array), place), impl=jax.random.key_impl(array)
        )
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def _whole(mesh: Mesh) -> NamedSharding:
    """On all devices."""
    return NamedSharding(mesh, PartitionSpec())


Divided = Mapping[
    int, tuple[str, ...]
]  # axis of an array, from its end: axes of the mesh that divide it


def _shardings(mesh: Mesh, tree: PyTree, axes_of: Callable[[tuple[str, ...]], Divided]) -> PyTree:
    def places(path: tuple, leaf: Any) -> Any:
        names = tuple(key.key for key in path if isinstance(key, DictKey))
        parts = jax.tree.leaves(leaf)
        divided, by_tensor = (_even(mesh, parts, axes(names)) for axes in (axes_of, _tensor_axes))
        # Scales of whole channels or rows are few: to gather them would be one more message, for
        # nothing.
        return jax.tree.map(
            lambda part: _place(mesh, part, by_tensor if 1 in part.shape[-2:] else divided), leaf
        )

    return jax.tree.map_with_path(places, tree, is_leaf=is_quantized)


def _even(mesh: Mesh, parts: Sequence[Any], axes: Divided) -> Divided:
    """Of these axes those that divide an array evenly, or a quantized one's codes and scales
    alike.
    """

    def divides(axis: int, names: tuple[str, ...]) -> bool:
        count = math.prod(mesh.shape[name] for name in names)
        return all(
            part.ndim >= -axis and (part.shape[axis] == 1 or part.shape[axis] % count == 0)
            for part in parts
        )

    return {axis: names for axis, names in axes.items() if divides(axis, names)}


def _place(mesh: Mesh, part: Any, divided: Divided) -> NamedSharding:
    return _named(
        mesh,
        [divided.get(i - part.ndim, ()) if part.shape[i] > 1 else () for i in range(part.ndim)],
    )


def _named(mesh: Mesh, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
    """In the words of the compiler, so that a program takes its own results: without what divides
    nothing.
    """
    names = [tuple(name for name in some if mesh.shape[name] > 1) for some in axes]
    while names and not names[-1]:
        names.pop()
    return NamedSharding(mesh, PartitionSpec(*names))


def _tensor_axes(names: tuple[str, ...]) -> Divided:
    """Of an array that is computed with, by the last two names of its path."""
    layer, name = ("", "", *names)[-2:]
    if layer in COLUMNS and name in ("kernel", "b", "bias"):
        return {-1: (TENSOR,)}
    return {-2: (TENSOR,)} if layer in ROWS and name in ("kernel", "a") else {}


def _stored_axes(names: tuple[str, ...]) -> Divided:
    """As `_tensor_axes`, and `fsdp` along the other axis; a table's rows by both."""
    axes, name = _tensor_axes(names), names[-1] if names else ""
    if name == "embedding":
        return {-2: AXES}
    if name not in ("kernel", "a", "b"):
        return axes
    return {-1 if -2 in axes else -2: (FSDP,), **axes}


def attend(mesh: Mesh | None, segments: jax.Array | None) -> Attend:
    """`attend_causally`; on a mesh every device attends for its own rows and heads.

    Args:
      mesh: its axes divide rows and heads evenly; None: one device.
      segments: `[B, T]` or None.
    """
    if mesh is None:
        return attend_causally(segments)

    def local(
        query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None
    ) -> jax.Array:
        return attend_causally(segments)(query, key, value)[0]

    heads, rows = PartitionSpec(FSDP, None, TENSOR), PartitionSpec(FSDP)
    attended = jax.shard_map(
        local, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return lambda query, key, value: (attended(query, key, value, segments), None)


def token_losses(
    mesh: Mesh | None,
    hidden: jax.Array,
    table: PyTree,
    targets: jax.Array,
    teacher: jax.Array | None = None,
    teacher_table: PyTree = None,
    **options: Any,
) -> Xent:
    """`linear_xent` of all tokens, `[B T]`; on a mesh every device has its own, and the table
    gathered as it is stored.

    Args:
      mesh: `fsdp` divides rows, and `tensor` the tokens in a row where it can; None: one device.
      hidden: `[B, T, E]`.
      table: `[V, E]`.
      targets: `[B, T]`.
      teacher: `[B, T, E]` or None.
      teacher_table: `[V, E]` or None.
      **options: of `linear_xent`.
    """

    def local(
        hidden: jax.Array, table: PyTree, targets: jax.Array, teacher: Any, teacher_table: PyTree
    ) -> Xent:
        width = hidden.shape[-1]
        taught = {
            "teacher": None if teacher is None else teacher.reshape(-1, width),
            "teacher_table": teacher_table,
        }
        losses = linear_xent(hidden.reshape(-1, width), table, targets.ravel(), **taught, **options)
        return jax.tree.map(lambda loss: loss.reshape(targets.shape), losses)

    losses = local
    if mesh is not None:
        part, whole = (
            PartitionSpec(FSDP, None if targets.shape[1] % mesh.shape[TENSOR] else TENSOR),
            PartitionSpec(),
        )
        places: Any = (part, whole, part, part, whole)
        losses = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=part, check_vma=False)
    return jax.tree.map(jnp.ravel, losses(hidden, table, targets, teacher, teacher_table))
