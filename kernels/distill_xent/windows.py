"""Windows of the vocabulary matrix: neighbouring rows, cut out and dense one window at a time.

The forward and the backward pass (`chunked`) go through the same windows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.distill_xent.reference import Table


class Tiling(NamedTuple):
    """What is known when compiled.

    Attributes:
      temperature: T.
      chunk: C, rows of the table in a window.
      rows: R, tokens in a block; a window against a block is one tile of logits [R, C].
      table_gradient: whether the table is trained.
      cap: of the logits, student's and teacher's; None: as they are.
    """

    temperature: float
    chunk: int
    rows: int
    table_gradient: bool
    cap: float | None = None


class Window(NamedTuple):
    """C neighbouring rows of the table.

    Attributes:
      rows: [C, E], dense.
      taught_rows: [C, E], the teacher's; the same where it has no table of its own.
      numbers: [C], which rows they are.
      fresh: [C] bool, which of them no earlier window had.
    """

    rows: jax.Array
    taught_rows: jax.Array
    numbers: jax.Array
    fresh: jax.Array


def window_at(
    tiling: Tiling, table: Table, teacher_table: Table | None, index: jax.Array, dtype: jnp.dtype
) -> Window:
    """Window `index` of the table.

    The last one starts early, so that it is a whole one: no padded copy of the table. Rows that it
    shares with the one before are not `fresh`.
    """
    start = jnp.minimum(index * tiling.chunk, table.shape[0] - tiling.chunk)
    columns = (start + jnp.arange(tiling.chunk)).astype(jnp.int32)
    fresh = columns >= index * tiling.chunk
    rows = _rows(table, start, fresh, dtype)
    taught_rows = rows if teacher_table is None else _rows(teacher_table, start, fresh, dtype)
    return Window(rows, taught_rows, columns, fresh)


def _rows(table: Table, start: jax.Array, fresh: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Dense rows [C, E] of the table from `start`, cut out before they are dequantized."""
    size, count = table.shape[0], len(fresh)

    def of_part(x: jax.Array) -> jax.Array:
        # Scales of one row serve all rows.
        return _cut(x, start, count) if x.shape[0] == size else x

    cut = jax.tree.map(of_part, table)
    if isinstance(cut, jax.Array) and cut.dtype != dtype:
        # A cast alone would be moved out of the loop: a second table. Rows that are not fresh serve
        # nobody.
        cut *= fresh[:, None].astype(cut.dtype)
    return dense(cut, dtype)


def _cut(x: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """`count` rows from `start`: a multiple of what divides both `count` and the number of rows.

    The TPU lays arrays out in tiles of rows, 32 for int8. Said in groups of rows, the cut falls
    between tiles; otherwise the whole array would first be copied into a finer layout.
    """
    group = math.gcd(len(x), count)
    if group % 32:
        return lax.dynamic_slice_in_dim(x, start, count)
    groups = x.reshape(-1, group, *x.shape[1:])
    cut = lax.dynamic_slice_in_dim(groups, start // group, count // group)
    return cut.reshape(count, *x.shape[1:])


def add_rows(table: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """The table [V, E] with the rows [C, E] added from `start`.

    Rows that an earlier window had are zeros, so that each row is one window's.
    """
    old = lax.dynamic_slice_in_dim(table, start, len(rows))
    return lax.dynamic_update_slice_in_dim(table, old + rows.astype(table.dtype), start, 0)
