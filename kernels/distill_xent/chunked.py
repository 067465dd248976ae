"""Chunk after chunk of the vocabulary, and of the tokens: logits are never whole.

For a token with logits l [V], target t and, at temperature T, the teacher's softmax q [V]:

    nll       = logsumexp(l) - l[t]
    distance  = logsumexp(l / T) - sum(q * l / T)     cross-entropy of softmax(l / T) against q
    d nll / d l       = softmax(l) - onehot(t)
    d distance / d l  = (softmax(l / T) - q) / T

Where logits are capped, l = c tanh(p / c) of the product p, the teacher's likewise, and

    d l / d p = 1 - tanh(p / c)^2 = 1 - (l / c)^2

**Forward.** All of these are sums over the vocabulary, so that they can be added up window after
window of it, [R, C] logits at a time. A sum of exponentials is kept relative to the largest logit
so far and scaled down when a larger one comes: a running logsumexp (Milakov and Gimelshein 2018,
arXiv 1805.02867, algorithm 3).

**Backward.** With the logsumexps of the forward pass, [N] numbers, each window's logits, computed
anew, give its part of the gradients at once; no other sum is needed:

    to hidden  [R, E]  +=  g [R, C] @ rows [C, E]
    to rows    [C, E]  +=  g^T [C, R] @ hidden [R, E]      only where the table is trained

Only a chunk of a quantized table is ever dense.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.distill_xent.reference import Table
from snake_jax.kernels.distill_xent.windows import Tiling, Window, add_rows, window_at
from snake_jax.kernels.distill_xent.xent import Xent, accumulator, capped


class TokenBlocks(NamedTuple):
    """Tokens in blocks, [M, R, ...], or one block, [R, ...]; `teacher` is None without one."""

    hidden: jax.Array
    targets: jax.Array
    teacher: jax.Array | None


class Running(NamedTuple):
    """Of each token, over the vocabulary so far; l are its logits, m the teacher's over T.

    Attributes:
      top: max(l).
      best: the index of the largest, the first of equals.
      total: sum(exp(l - top)).
      target: the target's logit, 0 until its window.
      soft_total: sum(exp((l - top) / T)); this and the rest with a teacher only.
      taught_top: max(m).
      taught_total: sum(exp(m - taught_top)).
      cross: sum(exp(m - taught_top) * l / T).
    """

    top: jax.Array
    best: jax.Array
    total: jax.Array
    target: jax.Array
    soft_total: jax.Array
    taught_top: jax.Array
    taught_total: jax.Array
    cross: jax.Array


class LogSums(NamedTuple):
    """Logsumexps of each token [N].

    Attributes:
      plain: of the logits.
      soft: of the logits over temperature.
      taught: of the teacher's logits over temperature.
    """

    plain: jax.Array
    soft: jax.Array
    taught: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_xent(
    tiling: Tiling,
    hidden: jax.Array,
    table: Table,
    targets: jax.Array,
    teacher: jax.Array | None,
    teacher_table: Table | None,
) -> Xent:
    """See the package's `linear_xent`."""
    losses, _ = _forward(tiling, hidden, table, targets, teacher, teacher_table)
    return losses


def _forward(
    tiling: Tiling,
    hidden: jax.Array,
    table: Table,
    targets: jax.Array,
    teacher: jax.Array | None,
    teacher_table: Table | None,
) -> tuple[Xent, LogSums]:
    """The losses, and the sums that the backward pass needs."""
    tokens = _blocks(TokenBlocks(hidden, targets, teacher), tiling.rows)

    def chunk(index: jax.Array, running: Running) -> Running:
        window = window_at(tiling, table, teacher_table, index, hidden.dtype)

        def of_block(both: tuple[TokenBlocks, Running]) -> Running:
            return _advance(tiling, window, *both)

        # One block of tokens after the other, [R] each: a tile of logits at a time.
        return lax.map(of_block, (tokens, running))

    # A window is made dense once, for all blocks of tokens: the loop over windows is the outer one.
    start = _start(tokens.targets.shape, accumulator(hidden.dtype))
    windows = _count(table.shape[0], tiling.chunk)
    running = lax.fori_loop(0, windows, chunk, start)

    # [M, R] blocks as [N] tokens, without what filled up the last block.
    def of_tokens(x: jax.Array) -> jax.Array:
        return x.reshape(-1)[: len(targets)]

    running = jax.tree.map(of_tokens, running)
    sums = _sums(tiling, running)
    nll = sums.plain - running.target
    if teacher is None:
        distance = jnp.zeros_like(sums.plain)
    else:
        distance = sums.soft - running.cross / running.taught_total
    return Xent(nll, distance, running.best == targets), sums


def _remember(tiling: Tiling, *inputs: Any) -> tuple[Xent, Any]:
    """The forward pass of a gradient: the losses, and (inputs, sums) for `_backward`."""
    result, sums = _forward(tiling, *inputs)
    return result, (inputs, sums)


def _backward(tiling: Tiling, residuals: Any, cotangent: Xent) -> tuple[Any, ...]:
    """Gradients of hidden [N, E], and of the table [V, E] where it is trained; None elsewhere."""
    (hidden, table, targets, teacher, teacher_table), sums = residuals
    tokens = _blocks(TokenBlocks(hidden, targets, teacher), tiling.rows)
    to_losses = (cotangent.nll, cotangent.distance)
    sums, to_losses = _blocks((sums, to_losses), tiling.rows)
    total_dtype = accumulator(hidden.dtype)

    def chunk(index: jax.Array, gradients: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        window = window_at(tiling, table, teacher_table, index, hidden.dtype)

        def block(b: jax.Array, so_far: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            """One tile of logits: its gradient [R, C], into the sums [M, R, E] and [C, E]."""

            def of_block(x: jax.Array) -> jax.Array:
                return x[b]

            to_hidden, to_rows = so_far
            here, its_sums, its_to_losses = jax.tree.map(of_block, (tokens, sums, to_losses))
            g = _logit_gradient(tiling, window, here, its_sums, *its_to_losses)
            g = g.astype(hidden.dtype)
            of_tile = jnp.dot(g, window.rows, preferred_element_type=total_dtype)
            to_hidden = to_hidden.at[b].add(of_tile)
            if to_rows is not None:
                to_rows += jnp.dot(g.T, here.hidden, preferred_element_type=total_dtype)
            return to_hidden, to_rows

        # A window's rows are complete after all blocks of tokens, and then written to the table's
        # gradient once.
        to_hidden, to_table = gradients
        to_rows = jnp.zeros(window.rows.shape, total_dtype) if tiling.table_gradient else None
        to_hidden, to_rows = lax.fori_loop(0, len(tokens.hidden), block, (to_hidden, to_rows))
        if to_rows is not None:
            to_table = add_rows(to_table, to_rows, window.numbers[0])
        return to_hidden, to_table

    to_hidden = jnp.zeros(tokens.hidden.shape, total_dtype)
    to_table = jnp.zeros_like(table) if tiling.table_gradient else None
    windows = _count(table.shape[0], tiling.chunk)
    to_hidden, to_table = lax.fori_loop(0, windows, chunk, (to_hidden, to_table))

    # [M, R, E] blocks as [N, E] tokens; targets and teacher have no gradient.
    of_tokens = to_hidden.reshape(-1, hidden.shape[1])[: len(hidden)]
    return of_tokens.astype(hidden.dtype), to_table, None, None, None


linear_xent.defvjp(_remember, _backward)


def _advance(tiling: Tiling, window: Window, tokens: TokenBlocks, old: Running) -> Running:
    """The running sums [R] with one more window."""
    logits = _logits(tiling, tokens.hidden, window.rows, window.fresh)

    # The largest logit, and its index: the first of equals, here and among windows.
    highest = logits.max(1)
    top = jnp.maximum(old.top, highest)
    index = jnp.where(logits == highest[:, None], window.numbers, jnp.iinfo(jnp.int32).max).min(1)
    best = jnp.where(highest > old.top, index, old.best)

    # The sum so far is relative to the largest so far, and brought down to the new one.
    total = old.total * jnp.exp(old.top - top) + jnp.exp(logits - top[:, None]).sum(1)
    target = old.target + jnp.where(_is_target(window, tokens), logits, 0).sum(1)
    new = old._replace(top=top, best=best, total=total, target=target)
    if tokens.teacher is None:
        return new
    return _advance_teacher(tiling, window, tokens.teacher, logits, old, new)


def _advance_teacher(
    tiling: Tiling,
    window: Window,
    teacher: jax.Array,
    logits: jax.Array,
    old: Running,
    new: Running,
) -> Running:
    """`new`, the running sums [R] of the student, with those of the teacher.

    Args:
      tiling: the temperature.
      window: rows of the tables.
      teacher: [R, E], its hidden states.
      logits: [R, C], the student's in this window.
      old: before this window.
      new: with this window, the student's.
    """
    t = tiling.temperature
    taught = _logits(tiling, teacher, window.taught_rows, window.fresh) / t
    taught_top = jnp.maximum(old.taught_top, taught.max(1))

    # What the teacher's sums so far shrink by, and what this window adds to them [R, C].
    decay = jnp.exp(old.taught_top - taught_top)
    share = jnp.exp(taught - taught_top[:, None])

    # The student's sum at the temperature, relative to its own largest logit.
    soft_decay = jnp.exp((old.top - new.top) / t)
    soft_share = jnp.exp((logits - new.top[:, None]) / t)

    # Rows of an earlier window have the logit -inf and the share 0, and 0 * -inf is no number.
    finite = jnp.where(window.fresh, logits / t, 0)
    return new._replace(
        soft_total=old.soft_total * soft_decay + soft_share.sum(1),
        taught_top=taught_top,
        taught_total=old.taught_total * decay + share.sum(1),
        cross=old.cross * decay + (share * finite).sum(1),
    )


def _logit_gradient(
    tiling: Tiling,
    window: Window,
    tokens: TokenBlocks,
    sums: LogSums,
    to_nll: jax.Array,
    to_distance: jax.Array,
) -> jax.Array:
    """The loss's gradient by a tile of products of hidden states and rows, [R, C].

    Args:
      tiling: the temperature.
      window: rows of the tables.
      tokens: a block of them.
      sums: their logsumexps [R].
      to_nll: [R], the loss's gradient by each token's nll.
      to_distance: [R], and by its distance.
    """
    # d nll / d l = softmax(l) - onehot(t), the softmax from its logsumexp.
    logits = _logits(tiling, tokens.hidden, window.rows, window.fresh)
    softmax = jnp.exp(logits - sums.plain[:, None])
    gradient = to_nll[:, None] * (softmax - _is_target(window, tokens))
    if tokens.teacher is None:
        return _through_cap(tiling, window, logits, gradient)

    # d distance / d l = (softmax(l / T) - q) / T, likewise.
    t = tiling.temperature
    taught = _logits(tiling, tokens.teacher, window.taught_rows, window.fresh) / t
    soft = jnp.exp(logits / t - sums.soft[:, None])
    taught_soft = jnp.exp(taught - sums.taught[:, None])
    gradient += to_distance[:, None] / t * (soft - taught_soft)
    return _through_cap(tiling, window, logits, gradient)


def _through_cap(
    tiling: Tiling, window: Window, logits: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient [R, C] by products, of that by capped logits."""
    if tiling.cap is None:
        return gradient
    # Rows of an earlier window have the logit -inf and the gradient 0, and 0 * inf is no number.
    finite = jnp.where(window.fresh, logits, 0)
    return gradient * (1 - jnp.square(finite / tiling.cap))


def _logits(tiling: Tiling, hidden: jax.Array, rows: jax.Array, fresh: jax.Array) -> jax.Array:
    """[R, C], with -inf for rows that an earlier window had."""
    products = jnp.dot(hidden, rows.T, preferred_element_type=accumulator(hidden.dtype))
    return jnp.where(fresh, capped(products, tiling.cap), -jnp.inf)


def _is_target(window: Window, tokens: TokenBlocks) -> jax.Array:
    """[R, C] bool: which row of the window is the token's target."""
    return (window.numbers == tokens.targets[:, None]) & window.fresh


def _blocks(tree: Any, rows: int) -> Any:
    """[N, ...] as [M, R, ...], the last block filled up with zeros."""

    def cut(x: jax.Array) -> jax.Array:
        count = _count(len(x), rows)
        padding = [(0, 0)] * x.ndim
        padding[0] = (0, count * rows - len(x))
        return jnp.pad(x, padding).reshape(count, rows, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _start(shape: tuple[int, ...], dtype: jnp.dtype) -> Running:
    """Before the first window: sums over nothing."""
    zero = jnp.zeros(shape, dtype)
    lowest = jnp.full(shape, -jnp.inf, dtype)
    return Running(
        top=lowest,
        best=jnp.full(shape, -1, jnp.int32),
        total=zero,
        target=zero,
        soft_total=zero,
        taught_top=lowest,
        taught_total=zero,
        cross=zero,
    )


def _sums(tiling: Tiling, end: Running) -> LogSums:
    """Logsumexps from the sums over the whole vocabulary."""
    soft = end.top / tiling.temperature + jnp.log(end.soft_total)
    taught = end.taught_top + jnp.log(end.taught_total)
    plain = end.top + jnp.log(end.total)
    return LogSums(plain, soft, taught)


def _count(size: int, part: int) -> int:
    """How many parts of this size there are; the last may be smaller."""
    return -(-size // part)
