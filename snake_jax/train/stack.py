"""A stack of alike blocks of which a few neighbours train: one program, whichever they are.

Which blocks train is an array argument, so a model of any depth compiles once. The forward pass
runs three loops: the blocks below the trained ones, the trained ones, those above. The backward
pass, written by hand, runs from the top down to the trained blocks and ends there: the blocks above
them give input gradients only, the trained ones a weight gradient too, those below nothing.
(snake_learning_magazine, "Local Training" and "Computation Savings"; the papers train one
transformer block a node, section "Fine-Tuning of LLMs".)

A block's stored weights are in two parts: its *own* part, which a visit may train, and a *base*
that no visit ever does. With LoRA the own part is the adapters and the base the pretrained weights;
without, there is no base.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.params import PyTree

RECOMPUTE = ("block", "none")


def at(tree: PyTree, index: jax.Array) -> PyTree:
    """One block of a stack of them: every array cut out."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


class Block(NamedTuple):
    """What all blocks have in common; hashable, and equal wherever the same program is meant.

    Attributes:
      thaw: stored weights of one block to those computed with, a base or an own part alike.
      apply: `(base, own, values, context, key) -> values`: thawed weights, `[B, T, D]`, what every
        block reads besides (positions, segments), and a key or None.
      blocks: N, how many there are.
      take: `(stack, index)` to the stored weights of one block.
    """

    thaw: Callable[[PyTree], PyTree]
    apply: Callable[[PyTree, PyTree, jax.Array, PyTree, jax.Array | None], jax.Array]
    blocks: int
    take: Callable[[PyTree, jax.Array], PyTree] = at


class Frozen(NamedTuple):
    """What the blocks read and the step does not train.

    Attributes:
      base: `[N, ...]` leaves, the base of all blocks; `{}` where there is none.
      own: `[N - k, ...]` leaves, the own parts of the blocks that do not train, in order.
      first: scalar int32, which block is the first of the k that train.
    """

    base: PyTree
    own: PyTree
    first: jax.Array


class _Static(NamedTuple):
    block: Block
    trained: int
    recompute: str
    input_gradient: bool


class _Read(NamedTuple):
    frozen: Frozen
    context: PyTree
    key: jax.Array | None
    start: jax.Array


def stacked(subtrees: list[PyTree]) -> PyTree:
    """Trees of one structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *subtrees)


def run(
    block: Block,
    trained: PyTree,
    frozen: Frozen,
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
    static = _Static(block, jax.tree.leaves(trained)[0].shape[0], recompute, input_gradient)
    return _run(static, trained, _Read(frozen, context, key, jnp.int32(start)), values)


def below(block: Block, frozen: Frozen, values: jax.Array, context: PyTree = None) -> jax.Array:
    """The blocks below the trained ones, without dropout: `[B, T, D]` to the input of block
    `frozen.first`.
    """
    read = _Read(frozen, context, None, jnp.int32(0))
    body = lambda i, x: _forward_block(block, read, i, block.take(frozen.own, i), x)  # noqa: E731
    return lax.fori_loop(0, frozen.first, body, values)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static: _Static, trained: PyTree, read: _Read, values: jax.Array) -> jax.Array:
    """Without a gradient nothing is kept."""
    first, block = read.frozen.first, static.block

    def frozen_block(i: jax.Array, x: jax.Array) -> jax.Array:
        return _forward_block(
            block, read, i, static.block.take(read.frozen.own, _slot(static, read, i)), x
        )

    def trained_block(x: jax.Array, own: tuple[jax.Array, PyTree]) -> tuple[jax.Array, None]:
        return _forward_block(block, read, *own, x), None

    values = _loop(static, read.start, first, frozen_block, values)
    values, _ = lax.scan(trained_block, values, (first + jnp.arange(static.trained), trained))
    return _loop(static, first + static.trained, block.blocks, frozen_block, values)


def _run_forward(
    static: _Static, trained: PyTree, read: _Read, values: jax.Array
) -> tuple[jax.Array, Any]:
    first, block = read.frozen.first, static.block

    def frozen_block(i: jax.Array, carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        x, kept = carry
        slot = _slot(static, read, i)
        y, residuals = _residuals(
            static, read, i, static.block.take(read.frozen.own, slot), x, False
        )
        return y, jax.tree.map(
            lambda all, one: lax.dynamic_update_index_in_dim(all, one, slot, 0), kept, residuals
        )

    def unkept_block(i: jax.Array, x: jax.Array) -> jax.Array:
        return _forward_block(block, read, i, static.block.take(read.frozen.own, i), x)

    def trained_block(x: jax.Array, own: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        return _residuals(static, read, *own, x, True)

    kept = _room(static, read, values)
    if static.input_gradient:
        values, kept = _loop(static, read.start, first, frozen_block, (values, kept))
    else:
        values = _loop(static, read.start, first, unkept_block, values)
    values, kept_trained = lax.scan(
        trained_block, values, (first + jnp.arange(static.trained), trained)
    )
    values, kept = _loop(static, first + static.trained, block.blocks, frozen_block, (values, kept))
    return values, (trained, read, kept, kept_trained)


def _run_backward(
    static: _Static, saved: Any, gradient: jax.Array
) -> tuple[PyTree, None, jax.Array]:
    trained, read, kept, kept_trained = saved
    first, count = read.frozen.first, static.block.blocks

    def down(upper: jax.Array | int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def frozen_block(step: jax.Array, gradient: jax.Array) -> jax.Array:
            i = upper - 1 - step
            slot = _slot(static, read, i)
            return _pull(
                static,
                read,
                i,
                static.block.take(read.frozen.own, slot),
                at(kept, slot),
                gradient,
                False,
            )[1]

        return frozen_block

    def trained_block(
        gradient: jax.Array, of: tuple[jax.Array, PyTree, PyTree]
    ) -> tuple[jax.Array, PyTree]:
        own, below = _pull(static, read, *of, gradient, True)
        return below, own

    gradient = _loop(static, 0, count - first - static.trained, down(count), gradient)
    each = (first + jnp.arange(static.trained), trained, kept_trained)
    if (
        static.trained == 1
    ):  # no loop, so that the compiler leaves out an input gradient that nobody reads
        gradient, weights = trained_block(gradient, jax.tree.map(lambda leaf: leaf[0], each))
        weights = jax.tree.map(lambda leaf: leaf[None], weights)
    else:
        gradient, weights = lax.scan(trained_block, gradient, each, reverse=True)
    if static.input_gradient:
        return weights, None, _loop(static, 0, first - read.start, down(first), gradient)
    return weights, None, jnp.zeros_like(gradient)


_run.defvjp(_run_forward, _run_backward)


def _loop(static: _Static, begin: Any, end: Any, body: Callable, carry: PyTree) -> PyTree:
    """Over blocks that do not train; there is nothing to trace where all do."""
    return lax.fori_loop(begin, end, body, carry) if static.trained < static.block.blocks else carry


def _slot(static: _Static, read: _Read, i: jax.Array) -> jax.Array:
    """Where block i, which does not train, lies among those that do not."""
    return jnp.where(i < read.frozen.first, i, i - static.trained)


def _key(read: _Read, i: jax.Array) -> jax.Array | None:
    return None if read.key is None else jax.random.fold_in(read.key, i)


def _forward_block(block: Block, read: _Read, i: jax.Array, own: PyTree, x: jax.Array) -> jax.Array:
    base = block.take(read.frozen.base, i)
    return block.apply(block.thaw(base), block.thaw(own), x, read.context, _key(read, i))


def _linearised(
    static: _Static, read: _Read, i: jax.Array, own: PyTree, x: jax.Array, trains: bool
) -> tuple[jax.Array, Callable, PyTree]:
    """A block's output, its pullback to `(own, x)` or `(x,)`, and its thawed weights."""
    block, key = static.block, _key(read, i)
    weights = (block.thaw(block.take(read.frozen.base, i)), block.thaw(own))
    if trains:
        output, pullback = jax.vjp(
            lambda w, x: block.apply(weights[0], w, x, read.context, key), weights[1], x
        )
    else:
        output, pullback = jax.vjp(lambda x: block.apply(*weights, x, read.context, key), x)
    return output, pullback, weights


def _residuals(
    static: _Static, read: _Read, i: jax.Array, own: PyTree, x: jax.Array, trains: bool
) -> tuple[jax.Array, list[jax.Array]]:
    """A block's output and what its backward pass is given."""
    if static.recompute == "block":
        return _forward_block(static.block, read, i, own, x), [x]
    output, pullback, weights = _linearised(static, read, i, own, x, trains)
    return output, [leaf for leaf in jax.tree.leaves(pullback) if not _is_one_of(leaf, weights)]


def _pull(
    static: _Static,
    read: _Read,
    i: jax.Array,
    own: PyTree,
    kept: list[jax.Array],
    gradient: jax.Array,
    trains: bool,
) -> tuple[PyTree, jax.Array]:
    """Gradients of a block's own part (None where it does not train) and of its input."""
    if static.recompute == "block":
        _, pullback, _ = _linearised(static, read, i, own, kept[0], trains)
    else:
        # The forward pass traced here is dead code: everything in the pullback that hangs on its
        # input is replaced.
        _, pullback, weights = _linearised(static, read, i, own, jnp.zeros_like(gradient), trains)
        leaves, structure = jax.tree.flatten(pullback)
        rest = iter(kept)
        pullback = jax.tree.unflatten(
            structure, [leaf if _is_one_of(leaf, weights) else next(rest) for leaf in leaves]
        )
    if not trains:
        return None, pullback(gradient)[0]
    thawed, below = pullback(gradient)
    return jax.vjp(static.block.thaw, own)[1](thawed)[0], below


def _is_one_of(leaf: jax.Array, weights: PyTree) -> bool:
    return any(leaf is weight for weight in jax.tree.leaves(weights))


def _room(static: _Static, read: _Read, values: jax.Array) -> PyTree:
    """Zeros for what the blocks that do not train keep, each at its place among them."""
    own, count = read.frozen.own, static.block.blocks - static.trained
    if not count:
        return []

    def one(values: jax.Array) -> list[jax.Array]:
        return _residuals(
            static, read, jnp.int32(0), static.block.take(own, jnp.int32(0)), values, False
        )[1]

    return jax.tree.map(
        lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), jax.eval_shape(one, values)
    )
