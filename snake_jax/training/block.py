"""One block of a stack: forward, its pullback, and what is kept of it between the two.

**What is kept between the passes** (`recompute`). A block's pullback, the function from the
gradient of its output to those of its input and weights, needs values of its forward pass. `block`
keeps only the input, `[B, T, D]`, and linearises the block again in the backward pass. `none` keeps
those values themselves. The pullback that `jax.vjp` returns is a pytree whose leaves they are, so
its leaves are stored in the forward pass (`forward_and_keep`), and put back into a pullback of the
same structure in the backward pass (`restored_pullback`).

**Weights are never kept.** Some leaves of a pullback are the block's weights: the input gradient of
`x @ w` is `g @ w^T`. Kept, they would be N - k dense copies of stored weights, and what int8 or nf4
saves would be lost. The backward pass has the stored weights at hand and thaws them again instead.
Leaves that are weights are recognised by identity (`leaf is weight`): while a function is traced,
`jax.vjp` keeps the very object that it was given. Values cannot be compared, they do not exist yet,
and by shape an activation could be taken for a weight. Both passes trace the same function with the
same shapes, so both find the same leaves in the same order. A leaf computed *from* a weight (a
transpose, say) is not recognised, and kept: that costs memory, never correctness.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.params import PyTree

RECOMPUTE = ("block", "none")


def at(tree: PyTree, index: jax.Array) -> PyTree:
    """One block of a stack of them: `[...]` cut out of every `[N, ...]` array."""

    def cut_out(stacked: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(stacked, index, keepdims=False)

    return jax.tree.map(cut_out, tree)


class SharedBlock(NamedTuple):
    """What all blocks have in common; hashable, and equal wherever the same program is meant.

    Attributes:
      thaw: stored weights of one block to those computed with, a base or an own part alike.
      apply: `(base, own, values, context, key, place) -> values`: thawed weights (the base as
        `Beside` where a part of the own part does not train), `[B, T, D]`, what every block reads
        besides (positions, segments), a key or None, and which block of the model it is.
      blocks: N, how many there are.
      offset: which block of the model is the first of these, where the model is cut: keys and the
        base go by a block's number in the model, all else by its number among the N.
      take: `(stack, index)` to the stored weights of one block.
    """

    thaw: Callable[[PyTree], PyTree]
    apply: Callable[[PyTree, PyTree, jax.Array, PyTree, jax.Array | None, jax.Array], jax.Array]
    blocks: int
    take: Callable[[PyTree, jax.Array], PyTree] = at
    offset: int = 0


class Beside(NamedTuple):
    """What a block that trains reads and does not train.

    Attributes:
      base: of the block, `{}` where there is none.
      columns: of its own part, what does not train: adapters' columns beyond the node's rank.
    """

    base: PyTree
    columns: PyTree


class FrozenBlocks(NamedTuple):
    """What the blocks read and the step does not train.

    Attributes:
      base: `[N, ...]` leaves, the base of all blocks of the model; `{}` where there is none.
      own: `[N - k, ...]` leaves, the own parts of the blocks that do not train, in order.
      first: scalar int32, which block is the first of the k that train.
      columns: `[k, ...]` leaves, see `Beside`; None: all of the own parts of those k trains.
    """

    base: PyTree
    own: PyTree
    first: jax.Array
    columns: PyTree = None


class Static(NamedTuple):
    """What is known when the program is compiled; hashable.

    Attributes:
      block: what all blocks have in common.
      trained: k, how many blocks train.
      recompute: one of `RECOMPUTE`.
      input_gradient: whether the backward pass goes on below the trained blocks.
    """

    block: SharedBlock
    trained: int
    recompute: str
    input_gradient: bool


class Read(NamedTuple):
    """Arrays that the blocks read and that get no gradient; see `stack.run`."""

    frozen: FrozenBlocks
    context: PyTree
    key: jax.Array | None
    start: jax.Array


def forward_block(
    block: SharedBlock, read: Read, i: jax.Array, own: PyTree, x: jax.Array, trains: bool
) -> jax.Array:
    """Block i with this stored own part: `[B, T, D]` to `[B, T, D]`."""
    base = _thawed_base(block, read, i, trains)
    thawed_own = block.thaw(own)
    place = i + block.offset
    return block.apply(base, thawed_own, x, read.context, _block_key(block, read, i), place)


def _thawed_base(block: SharedBlock, read: Read, i: jax.Array, trains: bool) -> PyTree:
    """What block i reads and does not train."""
    place = i + block.offset
    base = block.thaw(block.take(read.frozen.base, place))
    if not trains or read.frozen.columns is None:
        return base
    return Beside(base, block.thaw(at(read.frozen.columns, place - read.frozen.first)))


def _linearise(
    static: Static, read: Read, i: jax.Array, own: PyTree, x: jax.Array, trains: bool
) -> tuple[jax.Array, Callable, PyTree]:
    """A block's output, its pullback, and its thawed weights `(base, own)`.

    With y = f(base, own, x), the pullback takes dL/dy `[B, T, D]` to

        (dL/d own, dL/dx) = ((dy / d own)^T dL/dy, (dy / dx)^T dL/dy)     where the block trains
        (dL/dx,)          = ((dy / dx)^T dL/dy,)                          where it does not

    dL/d own has the shapes of the thawed own part, dL/dx is `[B, T, D]`. Two functions are
    differentiated, not one whose weight gradient is thrown away: what is not asked for is not even
    traced, and keeps nothing.
    """
    block = static.block
    # Thawed outside of what is differentiated: so they are objects that can be told among the
    # pullback's leaves, see the head of the file.
    key = _block_key(block, read, i)
    place = i + block.offset
    thawed_base = _thawed_base(block, read, i, trains)
    thawed_own = block.thaw(own)

    def of_own_and_input(own: PyTree, x: jax.Array) -> jax.Array:
        return block.apply(thawed_base, own, x, read.context, key, place)

    def of_input(x: jax.Array) -> jax.Array:
        return block.apply(thawed_base, thawed_own, x, read.context, key, place)

    if trains:
        output, pullback = jax.vjp(of_own_and_input, thawed_own, x)
    else:
        output, pullback = jax.vjp(of_input, x)
    return output, pullback, (thawed_base, thawed_own)


def forward_and_keep(
    static: Static, read: Read, i: jax.Array, own: PyTree, x: jax.Array, trains: bool
) -> tuple[jax.Array, list[jax.Array]]:
    """A block's output `[B, T, D]`, and what the forward pass keeps of it.

    That is its input under `recompute=block`; under `none` the leaves of its pullback that are not
    weights, in their order.
    """
    if static.recompute == "block":
        return forward_block(static.block, read, i, own, x, trains), [x]
    output, pullback, weights = _linearise(static, read, i, own, x, trains)
    residuals = jax.tree.leaves(pullback)
    return output, [residual for residual in residuals if not _is_one_of(residual, weights)]


def restored_pullback(
    static: Static,
    read: Read,
    i: jax.Array,
    own: PyTree,
    kept: list[jax.Array],
    gradient: jax.Array,
    trains: bool,
) -> Callable:
    """A block's pullback, from its stored own part and what `forward_and_keep` kept of it.

    `gradient` `[B, T, D]` is read for its shape alone.
    """
    if static.recompute == "block":
        _, pullback, _ = _linearise(static, read, i, own, kept[0], trains)
        return pullback

    # Traced once more for the pullback's structure and for its weights. The forward pass in it, on
    # zeros, is dead code: all leaves that hang on its input are replaced by what was kept, so that
    # the compiler drops it.
    _, pullback, weights = _linearise(static, read, i, own, jnp.zeros_like(gradient), trains)
    leaves, structure = jax.tree.flatten(pullback)
    remaining = iter(kept)
    filled = []
    for leaf in leaves:
        is_weight = _is_one_of(leaf, weights)
        filled.append(leaf if is_weight else next(remaining))
    return jax.tree.unflatten(structure, filled)


def _is_one_of(leaf: jax.Array, weights: PyTree) -> bool:
    """Whether a pullback's leaf is itself one of the thawed weights, see the head of the file."""
    return any(leaf is weight for weight in jax.tree.leaves(weights))


def _block_key(block: SharedBlock, read: Read, i: jax.Array) -> jax.Array | None:
    """The key that block i draws from: by its place, so in both passes the same."""
    if read.key is None:
        return None
    return jax.random.fold_in(read.key, i + block.offset)
