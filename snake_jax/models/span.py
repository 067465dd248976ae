"""A span head: which tokens of a text its answer begins and ends with.

Two numbers a position from its hidden state, as Hugging Face's models for question answering have
(`qa_outputs`): "BERT" (arXiv 1810.04805, section 4.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.models.serial import affine
from snake_jax.params import PyTree

_NEVER = -1e30


class Spans(NamedTuple):
    """Right answers as spans of tokens; `[B]` each.

    Attributes:
      start: index of the first token.
      stop: index of the last.
      weight: 1 where the answer is such a span, 0 where it stands nowhere in the text.
    """

    start: jax.Array
    stop: jax.Array
    weight: jax.Array


def init(key: jax.Array, width: int) -> PyTree:
    """A fresh head, `{"kernel": [width, 2], "bias": [2]}`."""
    return {"kernel": 0.02 * jax.random.normal(key, (width, 2)), "bias": jnp.zeros(2)}


def scores(head: PyTree, values: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How likely each token is to begin, and to end, the answer: logits `[B, T]` float32 each.

    Args:
      head: from `init`.
      values: `[B, T, width]`.
      allowed: `[B, T]` bool, the tokens of which answers consist: the context's.
    """
    both = affine(head, values.astype(jnp.float32))
    start = jnp.where(allowed, both[..., 0], _NEVER)
    stop = jnp.where(allowed, both[..., 1], _NEVER)
    return start, stop


def losses(logits: tuple[jax.Array, jax.Array], spans: Spans) -> jax.Array:
    """Mean cross-entropy of both ends, nats, of each row `[B]`; 0 where the weight is."""
    total = jnp.zeros(spans.weight.shape)
    for scores_of_end, right in zip(logits, (spans.start, spans.stop), strict=True):
        log_p = jax.nn.log_softmax(scores_of_end, axis=-1)
        total -= jnp.take_along_axis(log_p, right[:, None], axis=-1)[:, 0]
    return total / 2 * spans.weight


def best(logits: tuple[jax.Array, jax.Array], longest: int) -> tuple[jax.Array, jax.Array]:
    """First and last token `[B]` of the likeliest span of at most `longest` tokens."""
    start, stop = logits
    length = start.shape[-1]
    # The score of a span is the sum of its ends' logits: [B, T (start), T (stop)].
    sums = start[:, :, None] + stop[:, None, :]
    first = jnp.arange(length)[:, None]
    last = jnp.arange(length)[None, :]
    is_span = (first <= last) & (last < first + longest)
    flat = jnp.where(is_span, sums, 2 * _NEVER).reshape(len(start), -1)
    found = flat.argmax(-1)
    return found // length, found % length
