"""A stack of alike blocks of which a few neighbours train: one program, whichever they are.

A block's stored weights are in two parts: its *own* part, which a visit may train, and a *base*
that no visit ever does. With LoRA the own part is the adapters and the base the pretrained weights;
without, there is no base. (snake_learning_magazine, "Local Training" and "Computation Savings"; the
papers train one transformer block a node, section "Fine-Tuning of LLMs".)

**Forward.** Block i of N maps `x[i]` `[B, T, D]` to `x[i + 1]` `[B, T, D]`. The k blocks from
`first` on train, `first <= i < first + k`. Three loops run one after the other:

    below     start <= i < first          frozen, own part in `frozen.own[i]`
    trained   first <= i < first + k      own part in `trained[i - first]`
    above     first + k <= i < N          frozen, own part in `frozen.own[i - k]`

They are three because own parts lie in two arrays that cannot be one: `trained`, `[k, ...]` leaves
in full precision, which are differentiated, and `frozen.own`, `[N - k, ...]` leaves that may be
quantized. And each kind of block is treated otherwise in the backward pass.

**Dynamic bounds.** `first` is an array, not a Python number: else a model of N blocks would have a
program, and a compilation, for each place of the trained ones. So the two frozen loops are
`fori_loop`s whose bounds are known only when they run (XLA's `while`). The trained loop always has
k steps: a `scan`.

**Why the derivative is written by hand.** JAX does not differentiate a loop with dynamic bounds
backwards: it could not say how much room its steps need for what they keep. Here one can: the two
frozen loops have N - k steps *together*, wherever `first` lies, so that `[N - k, ...]` buffers hold
what all frozen blocks keep, block i at its slot (`_slot`).

**Backward.** With L the loss and `g[i] = dL/dx[i]` `[B, T, D]`, the chain rule gives from the top
down, starting at the given `g[N]`,

    g[i]        = (d x[i + 1] / d x[i])^T    g[i + 1]       input gradient
    dL/d own[i] = (d x[i + 1] / d own[i])^T  g[i + 1]       weight gradient

    above     i = N - 1 ... first + k         input gradients only
    trained   i = first + k - 1 ... first     both
    below     i = first - 1 ... start         input gradients, if `input_gradient`; else nothing

This is where training a few blocks saves: no block below the trained ones is passed backwards, and
no frozen block has a weight gradient.

"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.params import PyTree
from snake_jax.training.block import (
    RECOMPUTE,
    Beside,
    FrozenBlocks,
    Read,
    SharedBlock,
    Static,
    at,
    forward_and_keep,
    forward_block,
    restored_pullback,
)

__all__ = (
    "RECOMPUTE",
    "Beside",
    "FrozenBlocks",
    "SharedBlock",
    "at",
    "below",
    "run",
    "stack_trees",
)


class _Saved(NamedTuple):
    """What the forward pass hands to the backward pass.

    Attributes:
      trained: `[k, ...]` leaves, as given to `run`.
      read: as given to `run`.
      kept_frozen: `[N - k, ...]` arrays, what each frozen block keeps, at its slot.
      kept_trained: `[k, ...]` arrays, what each trained block keeps.
    """

    trained: PyTree
    read: Read
    kept_frozen: list[jax.Array]
    kept_trained: list[jax.Array]


def stack_trees(subtrees: list[PyTree]) -> PyTree:
    """N trees of one structure as one, whose leaves have a leading axis: `[N, ...]`."""

    def stack(*leaves: jax.Array) -> jax.Array:
        return jnp.stack(leaves)

    return jax.tree.map(stack, *subtrees)


def run(
    block: SharedBlock,
    trained: PyTree,
    frozen: FrozenBlocks,
    values: jax.Array,
    context: PyTree = None,
    key: jax.Array | None = None,
    *,
    start: jax.Array | int = 0,
    recompute: str = "block",
    input_gradient: bool = False,
) -> jax.Array:
    """All blocks in order; differentiable in `trained`, and in `values` where `input_gradient`.

    Args:
      block: what they have in common.
      trained: `[k, ...]` leaves, the own parts of the k blocks that train.
      frozen: the rest.
      values: `[B, T, D]`, the input of block `start`.
      context: arrays that every block reads, not differentiated.
      key: for dropout; a block draws from it by its place.
      start: the first block to run, at most the first that trains: 0 unless the lower ones were run
        before (`below`).
      recompute: `block` keeps the input of each block that the backward pass comes to and computes
        the block again; `none` keeps what its backward pass reads, but never weights: those are
        thawed again.
      input_gradient: whether the backward pass goes on to `values`.

    Returns:
      `[B, T, D]`, the output of the last block.
    """
    num_trained = jax.tree.leaves(trained)[0].shape[0]
    static = Static(block, num_trained, recompute, input_gradient)
    read = Read(frozen, context, key, jnp.int32(start))
    return _run(static, trained, read, values)


def below(
    block: SharedBlock, frozen: FrozenBlocks, values: jax.Array, context: PyTree = None
) -> jax.Array:
    """The blocks below the trained ones, without dropout, up to the input of block `frozen.first`.

    Args:
      block: what the blocks have in common.
      frozen: their weights, and which block is the first that trains.
      values: `[B, T, D]`, the input of block 0.
      context: arrays that every block reads.

    Returns:
      `[B, T, D]`.
    """
    read = Read(frozen, context, None, jnp.int32(0))

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        return _forward_frozen(block, read, i, i, x)

    return lax.fori_loop(0, frozen.first, step, values)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static: Static, trained: PyTree, read: Read, values: jax.Array) -> jax.Array:
    """The forward pass where nobody asks for a gradient: nothing is kept."""
    block = static.block
    first = read.frozen.first

    def frozen_step(i: jax.Array, x: jax.Array) -> jax.Array:
        slot = _slot(static, read, i)
        return _forward_frozen(block, read, i, slot, x)

    def trained_step(x: jax.Array, of: tuple[jax.Array, PyTree]) -> tuple[jax.Array, None]:
        i, own = of
        return forward_block(block, read, i, own, x, trains=True), None

    # `x[start]` to `x[first]`, to `x[first + k]`, to `x[N]`.
    values = _frozen_loop(static, read.start, first, frozen_step, values)
    trained_blocks = (first + jnp.arange(static.trained), trained)
    values, _ = lax.scan(trained_step, values, trained_blocks)
    return _frozen_loop(static, first + static.trained, block.blocks, frozen_step, values)


def _run_forward(
    static: Static, trained: PyTree, read: Read, values: jax.Array
) -> tuple[jax.Array, _Saved]:
    """The forward pass of a gradient: as `_run`, and it keeps what the backward pass comes to."""
    block = static.block
    first = read.frozen.first

    def frozen_step(
        i: jax.Array, carry: tuple[jax.Array, list[jax.Array]]
    ) -> tuple[jax.Array, list[jax.Array]]:
        x, kept = carry
        slot = _slot(static, read, i)
        own = block.take(read.frozen.own, slot)
        y, residuals = forward_and_keep(static, read, i, own, x, trains=False)

        def write(buffer: jax.Array, residual: jax.Array) -> jax.Array:
            return lax.dynamic_update_index_in_dim(buffer, residual, slot, 0)

        return y, jax.tree.map(write, kept, residuals)

    def unkept_step(i: jax.Array, x: jax.Array) -> jax.Array:
        return _forward_frozen(block, read, i, i, x)

    def trained_step(
        x: jax.Array, of: tuple[jax.Array, PyTree]
    ) -> tuple[jax.Array, list[jax.Array]]:
        i, own = of
        return forward_and_keep(static, read, i, own, x, trains=True)

    # Below the trained blocks the backward pass comes only with `input_gradient`. Without, these
    # blocks keep nothing; their slots of the buffers stay zero and are never read.
    kept = _empty_buffers(static, read, values)
    if static.input_gradient:
        values, kept = _frozen_loop(static, read.start, first, frozen_step, (values, kept))
    else:
        values = _frozen_loop(static, read.start, first, unkept_step, values)

    # The trained blocks. A scan stacks what its steps keep: `[k, ...]`.
    trained_blocks = (first + jnp.arange(static.trained), trained)
    values, kept_trained = lax.scan(trained_step, values, trained_blocks)

    # Above the backward pass always comes.
    above = first + static.trained
    values, kept = _frozen_loop(static, above, block.blocks, frozen_step, (values, kept))
    return values, _Saved(trained, read, kept, kept_trained)


def _run_backward(
    static: Static, saved: _Saved, gradient: jax.Array
) -> tuple[PyTree, None, jax.Array]:
    """From `g[N]` `[B, T, D]` to the gradients of `trained` (`[k, ...]`), `read` and `values`.

    None stands for zeros: nothing in `read` is differentiated.
    """
    trained, read, kept_frozen, kept_trained = saved
    first = read.frozen.first

    def frozen_step_from(
        upper: jax.Array | int,
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """A step of a loop that goes down from block `upper - 1`; `fori_loop` counts upwards."""

        def frozen_step(step: jax.Array, gradient: jax.Array) -> jax.Array:
            # g[i + 1] to g[i] of a frozen block: its input gradient alone.
            i = upper - 1 - step
            slot = _slot(static, read, i)
            own = static.block.take(read.frozen.own, slot)
            kept = at(kept_frozen, slot)
            pullback = restored_pullback(static, read, i, own, kept, gradient, trains=False)
            (to_input,) = pullback(gradient)
            return to_input

        return frozen_step

    # Above the trained blocks: `g[N]` to `g[first + k]`.
    blocks = static.block.blocks
    num_above = blocks - first - static.trained
    gradient = _frozen_loop(static, 0, num_above, frozen_step_from(blocks), gradient)

    # The trained blocks: `g[first + k]` to `g[first]`, and their weight gradients on the way.
    gradient, to_trained = _trained_backward(static, read, trained, kept_trained, gradient)

    # Below: `g[first]` to `g[start]`, or an end.
    if not static.input_gradient:
        return to_trained, None, jnp.zeros_like(gradient)
    num_below = first - read.start
    gradient = _frozen_loop(static, 0, num_below, frozen_step_from(first), gradient)
    return to_trained, None, gradient


_run.defvjp(_run_forward, _run_backward)


def _trained_backward(
    static: Static,
    read: Read,
    trained: PyTree,
    kept_trained: list[jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """From `g[first + k]` `[B, T, D]` to `g[first]`, and dL/d own `[k, ...]` of the k blocks.

    `trained` and `kept_trained` are `[k, ...]`: own parts, and what the forward pass kept.
    """

    def step(
        gradient: jax.Array, of: tuple[jax.Array, PyTree, list[jax.Array]]
    ) -> tuple[jax.Array, PyTree]:
        # g[i + 1] to g[i] and dL/d own[i].
        i, own, kept = of
        pullback = restored_pullback(static, read, i, own, kept, gradient, trains=True)
        to_thawed, to_input = pullback(gradient)
        # The pullback ends at thawed weights; from there to the stored ones it is a cast's:
        # dL/d own = (d thawed / d own)^T dL/d thawed.
        _, thaw_pullback = jax.vjp(static.block.thaw, own)
        (to_own,) = thaw_pullback(to_thawed)
        return to_input, to_own

    def without_axis(leaf: jax.Array) -> jax.Array:
        return leaf[0]

    def with_axis(leaf: jax.Array) -> jax.Array:
        return leaf[None]

    blocks = (read.frozen.first + jnp.arange(static.trained), trained, kept_trained)
    if static.trained > 1:
        return lax.scan(step, gradient, blocks, reverse=True)

    # One block alone. Without `input_gradient` nobody reads `g[first]`. In straight-line code the
    # products that lead to it alone are dead code, which the compiler leaves out. A scan would
    # carry it from step to step, and what a loop carries is computed.
    gradient, to_only = step(gradient, jax.tree.map(without_axis, blocks))
    return gradient, jax.tree.map(with_axis, to_only)


def _frozen_loop(
    static: Static,
    begin: jax.Array | int,
    end: jax.Array | int,
    step: Callable[[jax.Array, PyTree], PyTree],
    carry: PyTree,
) -> PyTree:
    """`step` over frozen blocks; where all blocks train there is none, and nothing to trace."""
    if static.trained == static.block.blocks:
        return carry
    return lax.fori_loop(begin, end, step, carry)


def _slot(static: Static, read: Read, i: jax.Array) -> jax.Array:
    """Where frozen block i lies among the N - k frozen ones: those above have k before them."""
    return jnp.where(i < read.frozen.first, i, i - static.trained)


def _forward_frozen(
    block: SharedBlock, read: Read, i: jax.Array, slot: jax.Array, x: jax.Array
) -> jax.Array:
    """Frozen block i, whose own part lies at `slot`: `[B, T, D]` to `[B, T, D]`."""
    return forward_block(block, read, i, block.take(read.frozen.own, slot), x, trains=False)


def _empty_buffers(static: Static, read: Read, values: jax.Array) -> list[jax.Array]:
    """`[N - k, ...]` zeros for what the frozen blocks keep; `[]` where all blocks train."""
    count = static.block.blocks - static.trained
    if count == 0:
        return []

    # All frozen blocks keep arrays of the same shapes: those of block 0, not computed.
    def kept_of_one(values: jax.Array) -> list[jax.Array]:
        zero = jnp.int32(0)
        own = static.block.take(read.frozen.own, zero)
        _, residuals = forward_and_keep(static, read, zero, own, values, trains=False)
        return residuals

    shapes = jax.eval_shape(kept_of_one, values)
    return [jnp.zeros((count, *shape.shape), shape.dtype) for shape in shapes]
