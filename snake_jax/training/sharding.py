"""One model over several devices: a mesh by flag, and what a step does on it.

Where each array lies on a mesh is told in `snake_jax.training.placement`. Here is what a program
says of it (`kept`, `spread`, `thawed`, `attend`, `token_losses`) and how arrays come there and back
(`put`, `fetch`).

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
from snake_jax.models.attention import Attend, attend_causally
from snake_jax.params import PyTree
from snake_jax.training.placement import (
    AXES,
    FSDP,
    TENSOR,
    gathered,
    rows,
    step_places,
    stored,
    whole,
)
from snake_jax.training.quantization import thaw

__all__ = (
    "AXES",
    "FSDP",
    "TENSOR",
    "attend",
    "check",
    "fetch",
    "gathered",
    "kept",
    "make_mesh",
    "on",
    "put",
    "put_everywhere",
    "put_stored",
    "rows",
    "sizes",
    "spread",
    "step_places",
    "stored",
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


def on(mesh: Mesh, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Shapes of these arguments with their places on the mesh, to compile for."""

    def shape(array: jax.Array, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    return jax.tree.map(shape, arguments, step_places(mesh, arguments))


def kept(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """In a program: has a tree of weights, gradients or optimizer states lie as it is `stored`."""
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, stored(mesh, tree))


def spread(mesh: Mesh | None, values: jax.Array) -> jax.Array:
    """In a program: has every device hold its own rows of activations `[B, ...]`."""
    if mesh is None:
        return values
    return lax.with_sharding_constraint(values, rows(mesh, 0))


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

    places = gathered(mesh, subtree)
    subtree = jax.tree.map(gather_if_narrow, subtree, places, is_leaf=is_quantized)
    dense = thaw(subtree, dtype)
    # What was gathered already lies there: the constraint moves the wider ones alone.
    return lax.with_sharding_constraint(dense, gathered(mesh, dense))


def put(tree: PyTree, places: PyTree) -> PyTree:
    """Host arrays, the same in all processes, on a mesh.

    A process moves what its own devices hold.
    """
    return jax.tree.map(_put, tree, places)


def put_stored(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Host arrays as they are `stored`; without a mesh they stay where they are."""
    if mesh is None:
        return tree
    return put(tree, stored(mesh, tree))


def put_everywhere(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Arrays that are not on the mesh, on all of its devices; the others as they are."""
    if mesh is None:
        return tree
    everywhere = whole(mesh)

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            place = leaf.sharding
            if isinstance(place, NamedSharding) and place.mesh == mesh:
                return leaf
        return _put(leaf, everywhere)

    return jax.tree.map(one, tree)


def fetch(tree: PyTree) -> PyTree:
    """Arrays whole on the host, wherever they lie; of several processes, on the host of each."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            here = leaf.is_fully_addressable or leaf.is_fully_replicated
            if not here:
                return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(one, tree)


def _put(array: Any, place: NamedSharding) -> jax.Array:
    """One host array there; a key by its data, which alone can be read."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


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

    # `[B, T, N, H]`: rows over `fsdp`, heads over `tensor`; `[B, T]` segments: rows.
    of_heads, of_rows = PartitionSpec(FSDP, None, TENSOR), PartitionSpec(FSDP)
    attended = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_heads, of_heads, of_heads, of_rows),
        out_specs=of_heads,
        check_vma=False,
    )

    def attend_on_mesh(
        query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, None]:
        return attended(query, key, value, segments), None

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
        losses = linear_xent(
            hidden.reshape(-1, width),
            table,
            targets.ravel(),
            teacher=None if teacher is None else teacher.reshape(-1, width),
            teacher_table=teacher_table,
            **options,
        )
        return jax.tree.map(lambda loss: loss.reshape(targets.shape), losses)

    losses = local
    if mesh is not None:
        # A row's tokens are divided too where `tensor` divides their number: else each of its
        # devices would compute the same losses.
        along_row = TENSOR if targets.shape[1] % mesh.shape[TENSOR] == 0 else None
        tokens, everywhere = PartitionSpec(FSDP, along_row), PartitionSpec()
        places: Any = (tokens, everywhere, tokens, tokens, everywhere)
        losses = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=tokens, check_vma=False)
    return jax.tree.map(jnp.ravel, losses(hidden, table, targets, teacher, teacher_table))
