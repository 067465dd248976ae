"""Chunk after chunk of the vocabulary, and of the tokens: logits are never whole, forward or
backward.

The forward pass keeps a running logsumexp (Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm
3); the backward pass computes each chunk's logits anew and needs no other sums. Only a chunk of a
quantized table is ever dense.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.distill_xent.reference import Table
from snake_jax.kernels.distill_xent.xent import Xent, accumulator


class Plan(NamedTuple):
    """What is known when compiled: `chunk` rows of the table against `rows` tokens make one tile of
    logits.
    """

    temperature: float
    chunk: int
    rows: int
    table_gradient: bool


class Tokens(NamedTuple):
    """Tokens in blocks, [M, R, ...], or one block, [R, ...]; `teacher` is None without one."""

    hidden: jax.Array
    targets: jax.Array
    teacher: jax.Array | None


class Window(NamedTuple):
    """Rows [C, E] of the table (and of the teacher's), their numbers [C], and which no earlier
    window had [C].
    """

    rows: jax.Array
    taught_rows: jax.Array
    numbers: jax.Array
    fresh: jax.Array


class Running(NamedTuple):
    """Over the vocabulary so far, for each token: largest logit and its index, sum of exp(logit -
    top), target's logit.

    With a teacher also: the sum at its temperature; the teacher's largest logit over temperature,
    sum, and sum weighted by the student's logits over temperature.
    """

    top: jax.Array
    best: jax.Array
    total: jax.Array
    target: jax.Array
    soft_total: jax.Array
    taught_top: jax.Array
    taught_total: jax.Array
    cross: jax.Array


class Sums(NamedTuple):
    """Logsumexp of each token's logits; of logits over temperature, the student's and the
    teacher's.
    """

    plain: jax.Array
    soft: jax.Array
    taught: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_xent(
    plan: Plan,
    hidden: jax.Array,
    table: Table,
    targets: jax.Array,
    teacher: jax.Array | None,
    teacher_table: Table | None,
) -> Xent:
    """See the package's `linear_xent`."""
    return _forward(plan, hidden, table, targets, teacher, teacher_table)[0]


def _forward(
    plan: Plan, hidden: jax.Array, table: Table, targets: jax.Array, *taught: Any
) -> tuple[Xent, Sums]:
    teacher, teacher_table = taught
    tokens = _blocks(Tokens(hidden, targets, teacher), plan.rows)

    def chunk(index: jax.Array, running: Running) -> Running:
        window = _window(plan, table, teacher_table, index, hidden.dtype)
        return lax.map(lambda both: _advance(plan, window, *both), (tokens, running))

    start = _start(tokens.targets.shape, accumulator(hidden.dtype))
    running = lax.fori_loop(0, _count(table.shape[0], plan.chunk), chunk, start)
    running = jax.tree.map(lambda x: x.reshape(-1)[: len(targets)], running)
    sums = _sums(plan, running)
    distance = (
        jnp.zeros_like(sums.plain)
        if teacher is None
        else sums.soft - running.cross / running.taught_total
    )
    return Xent(sums.plain - running.target, distance, running.best == targets), sums


def _remember(plan: Plan, *inputs: Any) -> tuple[Xent, Any]:
    result, sums = _forward(plan, *inputs)
    return result, (inputs, sums)


def _backward(plan: Plan, residuals: Any, cotangent: Xent) -> tuple[Any, ...]:
    (hidden, table, targets, teacher, teacher_table), sums = residuals
    tokens = _blocks(Tokens(hidden, targets, teacher), plan.rows)
    sums, pull = _blocks((sums, (cotangent.nll, cotangent.distance)), plan.rows)
    total_dtype = accumulator(hidden.dtype)

    def chunk(index: jax.Array, gradients: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        window = _window(plan, table, teacher_table, index, hidden.dtype)

        def block(b: jax.Array, sums_so_far: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            to_hidden, to_rows = sums_so_far
            here, its_sums, its_pull = jax.tree.map(lambda x: x[b], (tokens, sums, pull))
            g = _logit_gradient(plan, window, here, its_sums, *its_pull).astype(hidden.dtype)
            to_hidden = to_hidden.at[b].add(
                jnp.dot(g, window.rows, preferred_element_type=total_dtype)
            )
            if to_rows is not None:
                to_rows += jnp.dot(g.T, here.hidden, preferred_element_type=total_dtype)
            return to_hidden, to_rows

        to_hidden, to_table = gradients
        to_rows = jnp.zeros(window.rows.shape, total_dtype) if plan.table_gradient else None
        to_hidden, to_rows = lax.fori_loop(0, len(tokens.hidden), block, (to_hidden, to_rows))
        return to_hidden, None if to_rows is None else _add_rows(
            to_table, to_rows, window.numbers[0]
        )

    start = (
        jnp.zeros(tokens.hidden.shape, total_dtype),
        jnp.zeros_like(table) if plan.table_gradient else None,
    )
    to_hidden, to_table = lax.fori_loop(0, _count(table.shape[0], plan.chunk), chunk, start)
    to_hidden = to_hidden.reshape(-1, hidden.shape[1])[: len(hidden)].astype(hidden.dtype)
    return to_hidden, to_table, None, None, None


linear_xent.defvjp(_remember, _backward)


def _advance(plan: Plan, window: Window, tokens: Tokens, old: Running) -> Running:
    """The running sums [R] with one more window."""
    logits = _logits(tokens.hidden, window.rows, window.fresh)
    highest = logits.max(1)
    top = jnp.maximum(old.top, highest)
    index = jnp.where(logits == highest[:, None], window.numbers, jnp.iinfo(jnp.int32).max).min(1)
    new = old._replace(
        top=top,
        best=jnp.where(highest > old.top, index, old.best),
        total=old.total * jnp.exp(old.top - top) + jnp.exp(logits - top[:, None]).sum(1),
        target=old.target + jnp.where(_is_target(window, tokens), logits, 0).sum(1),
    )
    return (
        new
        if tokens.teacher is None
        else _advance_teacher(plan, window, tokens.teacher, logits, old, new)
    )


def _advance_teacher(
    plan: Plan, window: Window, teacher: jax.Array, logits: jax.Array, old: Running, new: Running
) -> Running:
    t = plan.temperature
    taught = _logits(teacher, window.taught_rows, window.fresh) / t
    taught_top = jnp.maximum(old.taught_top, taught.max(1))
    decay, share = jnp.exp(old.taught_top - taught_top), jnp.exp(taught - taught_top[:, None])
    soft_total = old.soft_total * jnp.exp((old.top - new.top) / t) + jnp.exp(
        (logits - new.top[:, None]) / t
    ).sum(1)
    return new._replace(
        soft_total=soft_total,
        taught_top=taught_top,
        taught_total=old.taught_total * decay + share.sum(1),
        cross=old.cross * decay + (share * jnp.where(window.fresh, logits / t, 0)).sum(1),
    )


def _logit_gradient(
    plan: Plan,
    window: Window,
    tokens: Tokens,
    sums: Sums,
    to_nll: jax.Array,
    to_distance: jax.Array,
) -> jax.Array:
    """[R, C]: softmax minus target, and with a teacher (softmax minus its softmax) / temperature at
    temperature.
    """
    logits = _logits(tokens.hidden, window.rows, window.fresh)
    gradient = to_nll[:, None] * (
        jnp.exp(logits - sums.plain[:, None]) - _is_target(window, tokens)
    )
    if tokens.teacher is None:
        return gradient
    t = plan.temperature
    taught = _logits(tokens.teacher, window.taught_rows, window.fresh) / t
    apart = jnp.exp(logits / t - sums.soft[:, None]) - jnp.exp(taught - sums.taught[:, None])
    return gradient + to_distance[:, None] / t * apart


def _logits(hidden: jax.Array, rows: jax.Array, fresh: jax.Array) -> jax.Array:
    """[R, C], with -inf for rows that an earlier window had."""
    logits = jnp.dot(hidden, rows.T, preferred_element_type=accumulator(hidden.dtype))
    return jnp.where(fresh, logits, -jnp.inf)


def _is_target(window: Window, tokens: Tokens) -> jax.Array:
    return (window.numbers == tokens.targets[:, None]) & window.fresh


def _window(
    plan: Plan, table: Table, teacher_table: Table | None, index: jax.Array, dtype: jnp.dtype
) -> Window:
    """The last window starts early, so that it is a whole one: no padded copy of the table."""
    start = jnp.minimum(index * plan.chunk, table.shape[0] - plan.chunk)
    columns = (start + jnp.arange(plan.chunk)).astype(jnp.int32)
    fresh = columns >= index * plan.chunk
    rows = _rows(table, start, fresh, dtype)
    taught_rows = rows if teacher_table is None else _rows(teacher_table, start, fresh, dtype)
    return Window(rows, taught_rows, columns, fresh)


def _rows(table: Table, start: jax.Array, fresh: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Dense rows [C, E] of the table, cut out before they are dequantized; a scale of one row
    serves all.
    """
    size, count = table.shape[0], len(fresh)
    cut = jax.tree.map(lambda x: _cut(x, start, count) if x.shape[0] == size else x, table)
    if isinstance(cut, jax.Array) and cut.dtype != dtype:
        # A cast alone would be moved out of the loop: a second table. Rows that are not fresh serve
        # nobody.
        cut *= fresh[:, None].astype(cut.dtype)
    return dense(cut, dtype)


def _cut(x: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """`count` rows from `start`, where `start` is a multiple of what divides both `count` and the
    number of rows.

    The TPU lays arrays out in tiles of rows, 32 for int8. Said in groups of rows, the cut falls
    between tiles; otherwise the whole array would first be copied into a finer layout.
    """
    group = math.gcd(len(x), count)
    if group % 32:
        return lax.dynamic_slice_in_dim(x, start, count)
    groups = x.reshape(-1, group, *x.shape[1:])
    return lax.dynamic_slice_in_dim(groups, start // group, count // group).reshape(
        count, *x.shape[1:]
    )


def _add_rows(table: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """The table [V, E] with the rows added; those that an earlier window had are zeros, so each row
    is one window's.
    """
    old = lax.dynamic_slice_in_dim(table, start, len(rows))
    return lax.dynamic_update_slice_in_dim(table, old + rows.astype(table.dtype), start, 0)


def _blocks(tree: Any, rows: int) -> Any:
    """[N, ...] as [M, R, ...], the last block filled up with zeros."""

    def cut(x: jax.Array) -> jax.Array:
        count = _count(len(x), rows)
        padding = [(0, count * rows - len(x)), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, padding).reshape(count, rows, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _start(shape: tuple[int, ...], dtype: jnp.dtype) -> Running:
    zero, lowest = jnp.zeros(shape, dtype), jnp.full(shape, -jnp.inf, dtype)
    return Running(lowest, jnp.full(shape, -1, jnp.int32), zero, zero, zero, lowest, zero, zero)


def _sums(plan: Plan, end: Running) -> Sums:
    soft, taught = (
        end.top / plan.temperature + jnp.log(end.soft_total),
        end.taught_top + jnp.log(end.taught_total),
    )
    return Sums(end.top + jnp.log(end.total), soft, taught)


def _count(size: int, part: int) -> int:
    return -(-size // part)
