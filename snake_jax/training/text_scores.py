"""How well a language model says held-out text: likelihood, hits, and whole texts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.params import Params, PyTree
from snake_jax.training import stack, text_step
from snake_jax.training.sharding import token_losses
from snake_jax.training.text_step import LanguageStep, TextBatch


class Score(NamedTuple):
    """Sums over tokens: negative log-likelihood, hits of the likeliest token, and weights; over
    texts: those whose every token with a loss is hit, and those that have one.
    """

    nll: jax.Array
    hits: jax.Array
    tokens: jax.Array
    exact: jax.Array
    texts: jax.Array


def evaluate(step: LanguageStep) -> Callable[[PyTree, PyTree, Params, TextBatch], Score]:
    """The function `(base, own, ends, rows) -> Score` of the whole model on `[B, T]`; jit it.

    `base` and `own` are `[N, ...]` stacks of all blocks' parts as in `stack.FrozenBlocks`, `ends`
    embedding and head.
    """

    def function(base: PyTree, own: PyTree, ends: Params, rows: TextBatch) -> Score:
        # No block trains: all N lie below the first that does.
        every = stack.FrozenBlocks(base, own, jnp.int32(step.model.num_blocks))
        entered = text_step.embedded(step, ends, rows)
        context = (rows.positions, rows.segments)
        values = stack.below(step.block, every, entered, context)
        hidden = text_step.finished(step, ends, rows, values)
        table, cap = step.model.table(ends), step.model.architecture.logit_cap
        losses = token_losses(step.mesh, hidden, table, rows.targets, cap=cap)
        weight = rows.weight.ravel()
        exact, texts = exact_texts(rows, losses.hit.reshape(rows.ids.shape))
        nll, hits = (weight * losses.nll).sum(), (weight * losses.hit).sum()
        return Score(nll, hits, weight.sum(), exact, texts)

    return function


def exact_texts(rows: TextBatch, hit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many texts have all their tokens with a loss hit, and how many have such tokens: scalars.

    A text that is hit throughout is what greedy decoding writes after its prompt: its first token
    is the likeliest, and with that one in place so is the next.

    Args:
      rows: `[B, T]`.
      hit: `[B, T]`, whether a target is the likeliest token.
    """
    count, length = rows.ids.shape
    segments = rows.segments
    if segments is None:
        segments = jnp.zeros((count, length), jnp.int32)
    # A row has at most T texts beside its padding, so each text has a number of its own.
    numbers = segments + (length + 1) * jnp.arange(count)[:, None]
    has_loss = rows.weight > 0
    missed = has_loss & ~hit.astype(bool)

    def per_text(tokens: jax.Array) -> jax.Array:
        flat = tokens.ravel().astype(jnp.int32)
        return jax.ops.segment_max(flat, numbers.ravel(), count * (length + 1)) > 0

    asked = per_text(has_loss)
    return (asked & ~per_text(missed)).sum(), asked.sum()
