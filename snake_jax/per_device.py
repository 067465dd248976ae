"""What of a language model's step every device of a mesh does for itself: attention by heads, losses by tokens.

Both loop over parts of what they are given. Told only where arrays lie, the compiler would gather them for such loops.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from snake_jax.kernels.distill_xent import Xent, linear_xent
from snake_jax.layers import PyTree
from snake_jax.models.attention import Attend, attend_causally
from snake_jax.sharding import FSDP, TENSOR


def attend(mesh: Mesh | None, segments: jax.Array | None) -> Attend:
    """`attend_causally`; on a mesh every device attends for its own rows and heads.

    Args:
      mesh: its axes divide rows and heads evenly; None: one device.
      segments: `[B, T]` or None.
    """
    if mesh is None:
        return attend_causally(segments)

    def local(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None) -> jax.Array:
        return attend_causally(segments)(query, key, value)[0]

    heads, rows = PartitionSpec(FSDP, None, TENSOR), PartitionSpec(FSDP)
    attended = jax.shard_map(local, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
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
    """`linear_xent` of all tokens, `[B T]`; on a mesh every device has its own, and the table gathered as it is stored.

    Args:
      mesh: `fsdp` divides rows, and `tensor` the tokens in a row where it can; None: one device.
      hidden: `[B, T, E]`.
      table: `[V, E]`.
      targets: `[B, T]`.
      teacher: `[B, T, E]` or None.
      teacher_table: `[V, E]` or None.
      **options: of `linear_xent`.
    """

    def local(hidden: jax.Array, table: PyTree, targets: jax.Array, teacher: Any, teacher_table: PyTree) -> Xent:
        width = hidden.shape[-1]
        taught = {"teacher": None if teacher is None else teacher.reshape(-1, width), "teacher_table": teacher_table}
        losses = linear_xent(hidden.reshape(-1, width), table, targets.ravel(), **taught, **options)
        return jax.tree.map(lambda loss: loss.reshape(targets.shape), losses)

    losses = local
    if mesh is not None:
        part, whole = PartitionSpec(FSDP, None if targets.shape[1] % mesh.shape[TENSOR] else TENSOR), PartitionSpec()
        places: Any = (part, whole, part, part, whole)
        losses = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=part, check_vma=False)
    return jax.tree.map(jnp.ravel, losses(hidden, table, targets, teacher, teacher_table))
