"""A soft prefix: vectors that stand before a text's first token, as an encoder gives them.

"Prefix-Tuning" (arXiv 2101.00190) and prompt tuning learn such vectors; in SCCT a small language
model computes them from the input (equations 4 and 5 of the paper: m goes into the large model).
The paper says nothing of unlike widths, so a linear projection stands between.

A prefix's vectors enter at the first block, in the place of what the embedding gives. Rows are
padded at the end, and the text of a row follows its last vector: positions count on from there.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.models.language import Hidden, LanguageModel
from snake_jax.models.serial import affine
from snake_jax.params import PyTree


class Prefix(NamedTuple):
    """What stands before texts.

    Attributes:
      values: `[B, P, D]`, padded at the end.
      lengths: `[B]` int32, vectors of each row that are no padding.
    """

    values: jax.Array
    lengths: jax.Array


def init_projection(key: jax.Array, width: int, model: LanguageModel, size: float) -> PyTree:
    """A fresh projection from vectors of another width, `{"kernel": [width, D], "bias": [D]}`.

    Of vectors with unit variance it makes ones of root mean square `size`.

    Args:
      key: of its values.
      width: of what comes in: an encoder's.
      model: whose blocks what comes out enters.
      size: that the vectors there have, see `token_size`.
    """
    shape = (width, model.architecture.hidden_size)
    kernel = size / math.sqrt(width) * jax.random.normal(key, shape)
    return {"kernel": kernel, "bias": jnp.zeros(shape[1])}


def project(projection: PyTree, values: jax.Array) -> jax.Array:
    """`[B, T, width]` to `[B, T, D]`: a soft prefix of a language model."""
    return affine(projection, values)


def token_size(model: LanguageModel, params: PyTree) -> float:
    """The root mean square of what the embedding gives, over all tokens at position 0."""
    ids = jnp.arange(model.vocab_size, dtype=jnp.int32)[:, None]
    hidden = model.embed(params["embed"], model.tokens(ids), jnp.dtype("float32"))
    return float(jnp.sqrt(jnp.square(hidden.values).mean()))


def before(prefix: Prefix, hidden: Hidden) -> Hidden:
    """The prefix and behind it the texts, row by row without a gap: `[B, P + T, D]`.

    Args:
      prefix: of the same rows.
      hidden: embedded texts `[B, T, D]`, padded at the end, whose positions follow the prefix:
        those of row b begin at `prefix.lengths[b]`.

    Returns:
      Values, positions from 0 and no segments: what pads a row stands at its end, where causal
      attention lets nobody see it.
    """
    rows, length, width = hidden.values.shape
    room = prefix.values.shape[1] + length
    values = jnp.zeros((rows, room, width), hidden.values.dtype)
    values = values.at[:, : prefix.values.shape[1]].set(prefix.values.astype(values.dtype))
    # A text begins in the prefix's padding; only padding is written over.
    columns = hidden.positions
    each = jnp.arange(rows)[:, None]
    values = values.at[each, columns].set(hidden.values)
    positions = jnp.broadcast_to(jnp.arange(room, dtype=jnp.int32), (rows, room))
    return Hidden(values, positions)
