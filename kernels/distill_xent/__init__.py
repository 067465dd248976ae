"""Cross-entropy and distillation, straight from hidden states and the vocabulary matrix."""

import jax
import jax.numpy as jnp

from snake_jax.kernels.dequantize import is_quantized
from snake_jax.kernels.distill_xent import chunked, reference
from snake_jax.kernels.distill_xent.reference import Table
from snake_jax.kernels.distill_xent.windows import Tiling
from snake_jax.kernels.distill_xent.xent import Xent

__all__ = ("LOWERINGS", "Xent", "linear_xent", "tile")

LOWERINGS = ("chunked", "xla")
TILE_BYTES = 32 * 2**20


def linear_xent(
    hidden: jax.Array,
    table: Table,
    targets: jax.Array,
    *,
    teacher: jax.Array | None = None,
    teacher_table: Table | None = None,
    temperature: float = 1.0,
    table_gradient: bool = False,
    cap: float | None = None,
    chunk: int | None = None,
    rows: int | None = None,
    lowering: str = "chunked",
) -> Xent:
    """Losses of N tokens whose logits are hidden [N, E] times the table's rows [V, E].

    Products are in hidden's dtype, summed in float32. Gradients go to `hidden`, and to `table`
    where `table_gradient`; the teacher gets none. Weigh tokens by what their losses are multiplied
    with: 0 for padding.

    Args:
      hidden: [N, E].
      table: [V, E], floating or quantized with scales for each row (and tiles along E); it may be
        stored in any dtype.
      targets: [N] integers; one outside [0, V) counts as a token whose logit is 0.
      teacher: [N, E] or None, its hidden states.
      teacher_table: [V, E], None for the same table.
      temperature: of both distributions in `distance`.
      table_gradient: whether the table is trained; else it is a constant, and no array of its size
        is written.
      cap: of logits l, the teacher's too, which are cap * tanh(l / cap) then; None: as they are.
      chunk: rows of the table at a time; None: see `tile`.
      rows: tokens at a time; None: see `tile`.
      lowering: "chunked", or "xla" for the definition with whole logits.

    Returns:
      `nll` [N], -log softmax(logits)[target]; `distance` [N], the cross-entropy of softmax(logits /
      temperature) against the teacher's (zeros without one; a loss weighs it by temperature^2:
      Hinton et al. 2015, arXiv 1503.02531, section 2); `hit` [N], whether the target's logit is the
      largest, the first of equals.

    Raises:
      ValueError: shapes, dtypes or options that do not fit.
    """
    # Wrong arguments are refused before anything is traced.
    _check(hidden, table, targets, teacher, teacher_table)
    if table_gradient and is_quantized(table):
        raise ValueError("linear_xent: a quantized table has no gradient")
    _check_options(temperature, cap, chunk, rows, lowering)
    if lowering == "xla":
        return reference.linear_xent(
            hidden, table, targets, teacher, teacher_table, temperature, table_gradient, cap
        )

    # A tile of logits is [rows, chunk]; asked for or by default, at most all of them.
    count, width = hidden.shape
    vocabulary = table.shape[0]
    default_chunk, default_rows = tile(count, vocabulary, width, hidden.dtype.itemsize)
    chunk = min(chunk or default_chunk, vocabulary)
    rows = min(rows or default_rows, count)
    tiling = Tiling(float(temperature), chunk, rows, table_gradient, cap)
    return chunked.linear_xent(tiling, hidden, table, targets, teacher, teacher_table)


def tile(tokens: int, vocabulary: int, width: int, itemsize: int) -> tuple[int, int]:
    """(chunk, rows) by default: no float32 tile of logits or dense piece of table above 32 MiB.

    All tokens at a time while that leaves 1024 rows of the table; beyond, the tokens are parted
    too. Both are evened out over their parts. Two or three such tiles are alive at once, about five
    with a teacher.
    """
    # Rows of the table: by the logits of all tokens, four bytes each, and by the table's own bytes.
    by_logits = max(TILE_BYTES // (4 * tokens), 1024)
    by_table = TILE_BYTES // (width * itemsize)
    most_chunk = max(128, min(by_logits, by_table))
    chunk = min(vocabulary, _even(vocabulary, most_chunk, 128))

    # Tokens: as many as the logits against so many rows leave room for.
    most_rows = max(8, TILE_BYTES // (4 * chunk))
    rows = min(tokens, _even(tokens, most_rows, 8))
    return chunk, rows


def _even(size: int, most: int, multiple: int) -> int:
    """`size` in as few parts as `most` allows, all of one size that is a multiple of `multiple`."""
    most = most // multiple * multiple
    parts = -(-size // most)
    return -(-size // (parts * multiple)) * multiple


def _check_options(
    temperature: float, cap: float | None, chunk: int | None, rows: int | None, lowering: str
) -> None:
    """Raises ValueError where one is not what it can be."""
    if temperature <= 0:
        raise ValueError(f"linear_xent: temperature must be above 0, got {temperature}")
    if cap is not None and cap <= 0:
        raise ValueError(f"linear_xent: cap must be above 0, got {cap}")
    if lowering not in LOWERINGS:
        raise ValueError(f"linear_xent: lowering {lowering!r} is not one of {', '.join(LOWERINGS)}")
    for name, size in (("chunk", chunk), ("rows", rows)):
        if size is not None and size < 1:
            raise ValueError(f"linear_xent: {name} must be at least 1, got {size}")


def _check(
    hidden: jax.Array,
    table: Table,
    targets: jax.Array,
    teacher: jax.Array | None,
    teacher_table: Table | None,
) -> None:
    """Raises ValueError where shapes or dtypes do not fit."""
    # The student's.
    if hidden.ndim != 2 or not jnp.issubdtype(hidden.dtype, jnp.floating) or 0 in hidden.shape:
        raise ValueError(
            f"linear_xent: hidden must be floating [N, E], got {hidden.dtype} {hidden.shape}"
        )
    if targets.shape != hidden.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"linear_xent: targets must be integers [{len(hidden)}], got {targets.dtype} "
            f"{targets.shape}"
        )
    if table.ndim != 2 or table.shape[1] != hidden.shape[1]:
        raise ValueError(f"linear_xent: table must be [V, {hidden.shape[1]}], got {table.shape}")

    # The teacher's must be as the student's are.
    if teacher is None and teacher_table is not None:
        raise ValueError("linear_xent: a teacher_table without a teacher")
    if teacher is not None and (teacher.shape, teacher.dtype) != (hidden.shape, hidden.dtype):
        expected, got = f"{hidden.dtype} {hidden.shape}", f"{teacher.dtype} {teacher.shape}"
        raise ValueError(f"linear_xent: teacher must be {expected} as hidden is, got {got}")
    if teacher_table is not None and teacher_table.shape != table.shape:
        raise ValueError(
            f"linear_xent: teacher_table must be {table.shape}, got {teacher_table.shape}"
        )
