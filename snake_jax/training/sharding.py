"""One model over several devices: a mesh by flag, and what a step does on it.

Where each array lies on a mesh is told in `snake_jax.training.placement`. Here is what a program
says of it (`shard_stored`, `shard_rows`, `thawed`, `attend`, `token_losses`) and how arrays come
there and back (`put_at`, `fetch`).

Functions that take `Mesh | None` do nothing, or what one device needs, without a mesh.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import is_quantized
from snake_jax.kernels.distill_xent import Xent, linear_xent
from snake_jax.models.attention import Attend, Scores, attend_causally
from snake_jax.params import PyTree
from snake_jax.training.placement import (
    AXES,
    FSDP,
    TENSOR,
    gathered_sharding,
    replicated,
    row_sharding,
    step_places,
    stored_sharding,
)
from snake_jax.training.quantization import thaw

__all__ = (
    "AXES",
    "FSDP",
    "TENSOR",
    "attend",
    "check_mesh",
    "fetch",
    "gathered_sharding",
    "make_mesh",
    "put_at",
    "put_everywhere",
    "put_stored",
    "row_sharding",
    "shard_rows",
    "shard_stored",
    "sharded_shapes",
    "sizes",
    "step_places",
    "stored_sharding",
    "thawed",
    "token_losses",
)

_WAY_OUT = "say as fsdp:4,tensor:2"


def sizes(flag: str) -> dict[str, int]:
    """The axes of a mesh as the flag names them, `fsdp:4,tensor:2`; those left out have size 1.

    Raises:
      UserError: an axis that there is not, one named twice, or a size that is none.
    """
    found: dict[str, int] = {}
    for word in flag.split(","):
        name, _, size = word.strip().partition(":")
        reason = ""
        if name in found:
            reason = "named twice"
        elif name not in AXES:
            reason = "no axis"
        if reason:
            raise UserError(
                f"--mesh={flag}: {name or 'a gap'} is {reason}; axes are {', '.join(AXES)}: "
                f"{_WAY_OUT}"
            )
        if not size.isdecimal() or not int(size):
            raise UserError(f"--mesh={flag}: {name} has no size of at least 1; {_WAY_OUT}")
        found[name] = int(size)
    return {name: found.get(name, 1) for name in AXES}


def make_mesh(flag: str, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The flag's mesh over the first of the devices; None for an empty flag.

    Args:
      flag: see `sizes`.
      devices: by default all there are.

    Raises:
      UserError: see `sizes`; or there are fewer devices; or several processes, of which it would
        leave out some.
    """
    if not flag:
        return None
    if devices is None:
        devices = jax.devices()
    shape = tuple(sizes(flag).values())
    count = math.prod(shape)
    if count > len(devices):
        raise UserError(
            f"--mesh={flag}: {count} devices, there are {len(devices)}; take a smaller mesh"
        )

    # Every process carries out every program, so it must hold a part of the mesh.
    used = devices[:count]
    unused = {device.process_index for device in devices}
    unused -= {device.process_index for device in used}
    if unused:
        reason = f"{count} of {len(devices)} devices leave out process {min(unused)}"
        raise UserError(f"--mesh={flag}: {reason}; take a mesh over the devices of all")
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=used)


def check_mesh(
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
        # Without a mesh each process would train a model of its own.
        if jax.process_count() > 1:
            raise UserError(
                f"{jax.process_count()} processes need a mesh: say --mesh=fsdp:{jax.device_count()}"
            )
        return

    # Both must divide evenly: each device has whole rows and whole heads.
    axes = sizes(flag)
    if batch_size % axes[FSDP]:
        raise UserError(
            f"--mesh={flag}: fsdp does not divide --batch_size={batch_size}; take a multiple of "
            f"{axes[FSDP]}"
        )
    for count, kind in ((heads, "heads"), (key_heads, "key heads")):
        if count % axes[TENSOR]:
            raise UserError(
                f"--mesh={flag}: tensor does not divide the model's {count} {kind}; take a "
                f"divisor of it"
            )
    make_mesh(flag, devices)


def sharded_shapes(mesh: Mesh, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shapes of these arguments with their places on the mesh, to compile for."""

    def shape(array: jax.Array, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    return jax.tree.map(shape, arguments, step_places(mesh, arguments))


def shard_stored(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """In a program: has weights, gradients or optimizer states lie as `stored_sharding` says."""
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, stored_sharding(mesh, tree))


def shard_rows(mesh: Mesh | None, values: jax.Array) -> jax.Array:
    """In a program: has every device hold its own rows of activations `[B, ...]`."""
    if mesh is None:
        return values
    return lax.with_sharding_constraint(values, row_sharding(mesh, 0))


def thawed(mesh: Mesh | None, subtree: PyTree, dtype: DTypeLike) -> PyTree:
    """In a program: a stored subtree as what is computed with, in `dtype`, gathered along `fsdp`.

    Gathered is the narrower form of the two, since its bytes pass between devices: quantized and
    half-width weights before they are widened, wider ones after they are cast.
    """
    if mesh is None:
        return thaw(subtree, dtype)
    computed_bits = jnp.finfo(dtype).bits

    def gather_if_narrow(leaf: Any, place: Any) -> Any:
        if not is_quantized(leaf) and jnp.finfo(leaf.dtype).bits > computed_bits:
            return leaf
        return lax.with_sharding_constraint(leaf, place)

    places = gathered_sharding(mesh, subtree)
    subtree = jax.tree.map(gather_if_narrow, subtree, places, is_leaf=is_quantized)
    dense = thaw(subtree, dtype)
    # What was gathered already lies there: the constraint moves the wider ones alone.
    return lax.with_sharding_constraint(dense, gathered_sharding(mesh, dense))


def put_at(tree: PyTree, places: PyTree) -> PyTree:
    """Host arrays, the same in all processes, on a mesh.

    A process moves what its own devices hold.
    """
    return jax.tree.map(_put, tree, places)


def put_stored(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Host arrays where `stored_sharding` says; without a mesh they stay where they are."""
    if mesh is None:
        return tree
    return put_at(tree, stored_sharding(mesh, tree))


def put_everywhere(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Arrays that are not on the mesh, on all of its devices; the others as they are."""
    if mesh is None:
        return tree
    everywhere = replicated(mesh)

    def put_unless_there(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            place = leaf.sharding
            if isinstance(place, NamedSharding) and place.mesh == mesh:
                return leaf
        return _put(leaf, everywhere)

    return jax.tree.map(put_unless_there, tree)


def fetch(tree: PyTree) -> PyTree:
    """Arrays whole on the host, wherever they lie; of several processes, on the host of each."""

    def fetch_array(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            is_here = leaf.is_fully_addressable or leaf.is_fully_replicated
            if not is_here:
                return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(fetch_array, tree)


def _put(array: Any, place: NamedSharding) -> jax.Array:
    """One host array there; a key by its data, which alone can be read."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)

    def part_at(index: Any) -> np.ndarray:
        return host[index]

    return jax.make_array_from_callback(host.shape, place, part_at)


def attend(mesh: Mesh | None, segments: jax.Array | None) -> Attend:
    """`attend_causally`; on a mesh every device attends for its own rows and heads.

    Args:
      mesh: its axes divide rows and heads evenly; None: one device.
      segments: `[B, T]` or None.
    """
    if mesh is None:
        return attend_causally(segments)

    # `[B, T, N, H]`: rows over `fsdp`, heads over `tensor`; `[B, T]` segments: rows.
    of_heads, of_rows = PartitionSpec(FSDP, None, TENSOR), PartitionSpec(FSDP)

    def attend_on_mesh(
        query: jax.Array, key: jax.Array, value: jax.Array, scores: Scores | None = None
    ) -> tuple[jax.Array, None]:
        given: tuple[Any, ...] = (query, key, value, segments)
        places: tuple[Any, ...] = (of_heads, of_heads, of_heads, of_rows)
        cap = None
        if scores is not None:
            # A window may be an array, which every device has whole.
            cap = scores.cap
            if scores.window is not None:
                given = (*given, jnp.int32(scores.window))
                places = (*places, PartitionSpec())

        def local(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            segments: jax.Array | None,
            window: jax.Array | None = None,
        ) -> jax.Array:
            return attend_causally(segments)(query, key, value, Scores(window, cap))[0]

        attended = jax.shard_map(
            local, mesh=mesh, in_specs=places, out_specs=of_heads, check_vma=False
        )
        return attended(*given), None

    return attend_on_mesh


def token_losses(
    mesh: Mesh | None,
    hidden: jax.Array,
    table: PyTree,
    targets: jax.Array,
    teacher: jax.Array | None = None,
    teacher_table: PyTree = None,
    **options: Any,
) -> Xent:
    """`linear_xent` of all tokens, `[B * T]`.

    On a mesh every device has its own tokens, and the whole table, gathered as it is stored.

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
        """`[B, T]` losses of the tokens that are here."""
        width = hidden.shape[-1]
        flat_hidden = hidden.reshape(-1, width)
        flat_targets = targets.ravel()
        flat_teacher = None
        if teacher is not None:
            flat_teacher = teacher.reshape(-1, width)
        losses = linear_xent(
            flat_hidden,
            table,
            flat_targets,
            teacher=flat_teacher,
            teacher_table=teacher_table,
            **options,
        )

        def as_rows(loss: jax.Array) -> jax.Array:
            return loss.reshape(targets.shape)

        return jax.tree.map(as_rows, losses)

    losses = local
    if mesh is not None:
        # A row's tokens are divided too where `tensor` divides their number: else each of its
        # devices would compute the same losses.
        is_even = targets.shape[1] % mesh.shape[TENSOR] == 0
        along_row = TENSOR if is_even else None
        tokens = PartitionSpec(FSDP, along_row)
        everywhere = PartitionSpec()
        places: Any = (tokens, everywhere, tokens, tokens, everywhere)
        losses = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=tokens, check_vma=False)
    by_row = losses(hidden, table, targets, teacher, teacher_table)
    return jax.tree.map(jnp.ravel, by_row)
