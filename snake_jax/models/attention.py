"""Attention over rows of one or several texts, causal or both ways, over a cache, and rotary
positions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.models.linear import PyTree

SCORE_BYTES = 64 * 2**20
"""At most so many bytes of attention scores, float32 `[B, N, T, T]`, where XLA writes them down."""

# `(query [B, T, N, H], key [B, T, K, H], value [B, T, K, H]) -> ([B, T, N, H], state)`: what a
# block is given to attend with. Training keeps no state; generation keeps keys and values. A fourth
# argument, `Scores`, is given by blocks that have a window or a cap, and by them alone.
Attend = Callable[..., tuple[jax.Array, PyTree]]


class Scores(NamedTuple):
    """What becomes of a block's attention scores.

    Attributes:
      window: a token sees so many tokens, itself included; an array where layers differ; None: all.
      cap: scores are `cap * tanh(score / cap)`; None: as they are.
    """

    window: jax.Array | int | None = None
    cap: float | None = None


_PLAIN = Scores()


class Cache(NamedTuple):
    """Keys and values of one block, by position: `[B, S, K, H]` each."""

    keys: jax.Array
    values: jax.Array


def attend_causally(segments: jax.Array | None) -> Attend:
    """Each token sees itself and those before it in its row; no state is kept.

    Args:
      segments: `[B, T]`, a token sees those of its own segment alone; None: all of the row.
    """

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array, scores: Scores = _PLAIN
    ) -> tuple[jax.Array, None]:
        return _causal(query, key, value, segments, scores), None

    return attend


def attend_both_ways(segments: jax.Array | None) -> Attend:
    """Each token sees all tokens of its segment, those after it too; no state is kept.

    Args:
      segments: `[B, T]`, 0 is padding; None: each row is one text.
    """

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
        mask = None if segments is None else _same_segment(segments)
        return jax.nn.dot_product_attention(query, key, value, mask=mask), None

    return attend


def attend_and_keep(cache: Cache) -> Attend:
    """As `attend_causally` on rows of one text each.

    The state is the cache `[B, S, K, H]` with the T tokens' keys and values at its beginning.
    """

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array, scores: Scores = _PLAIN
    ) -> tuple[jax.Array, Cache]:
        length = key.shape[1]
        keys = cache.keys.at[:, :length].set(key)
        values = cache.values.at[:, :length].set(value)
        return _causal(query, key, value, None, scores), Cache(keys, values)

    return attend


def attend_to_cache(cache: Cache, positions: jax.Array) -> Attend:
    """One new token a row, at `positions` `[B]`, sees what the cache holds up to it and itself.

    The state is the cache `[B, S, K, H]` with the token's keys and values.
    """

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array, scores: Scores = _PLAIN
    ) -> tuple[jax.Array, Cache]:
        rows = jnp.arange(positions.shape[0])
        keys = cache.keys.at[rows, positions].set(key[:, 0])
        values = cache.values.at[rows, positions].set(value[:, 0])
        places = jnp.arange(keys.shape[1])
        seen = places <= positions[:, None]
        if scores.window is not None:
            seen &= positions[:, None] - places < scores.window
        # The mask is `[B, N or 1, queries, S]`.
        mask = seen[:, None, None, :]
        attended = _masked(query, keys, values, mask, scores.cap)
        return attended, Cache(keys, values)

    return attend


def _causal(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    scores: Scores,
) -> jax.Array:
    """`[B, T, N, H]`; K key heads serve N query heads, N / K neighbours each."""
    mask = None
    if segments is not None:
        mask = _same_segment(segments)
    mask = _within_window(mask, query.shape[1], scores.window)
    attend = functools.partial(_masked, cap=scores.cap, is_causal=True)

    # XLA's own, which writes the scores down: in parts where they are large.
    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        parts = _parts(query.shape, key.shape[2])
        if parts == (1, 1):
            return attend(query, key, value, mask=mask)
        return _in_parts(query, key, value, segments, parts, scores)

    def flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=True, implementation="cudnn"
        )

    if scores.cap is not None or not _flash_fits(query):
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=flash, default=plain)


def _masked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    cap: float | None,
    is_causal: bool = False,
) -> jax.Array:
    """Attention of T queries to S keys, `[B, T, N, H]`.

    Args:
      query: `[B, T, N, H]`.
      key: `[B, S, K, H]`.
      value: likewise.
      mask: `[B or 1, 1, T, S]` bool, what each query sees; None: all.
      cap: see `Scores`.
      is_causal: whether a query sees no key behind it.
    """
    if cap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal)

    # `[B, K, N / K, T, S]` float32: the neighbours that share a key head stand together.
    batch, length, heads, width = query.shape
    key_heads = key.shape[2]
    grouped = query.reshape(batch, length, key_heads, heads // key_heads, width)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = cap * jnp.tanh(scores / np.float32(cap * np.sqrt(width)))

    # Capped first, masked then: what is not seen has no weight whatever the cap.
    seen = jnp.ones((1, 1, length, key.shape[1]), bool) if mask is None else mask
    if is_causal:
        seen &= jnp.tri(length, key.shape[1], dtype=bool)
    scores = jnp.where(seen[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    attended = jnp.einsum("bkgts,bskh->btkgh", weights, value)
    return attended.reshape(query.shape)


def _within_window(
    mask: jax.Array | None, length: int, window: jax.Array | int | None
) -> jax.Array | None:
    """The mask, where there is a window also of tokens no further back: `[B or 1, 1, T, T]`.

    Tokens of a segment stand side by side, so that places in the row tell how far apart they are.
    """
    if window is None:
        return mask
    places = jnp.arange(length)
    near = places[:, None] - places < window
    if mask is None:
        return near[None, None]
    return mask & near


def _same_segment(segments: jax.Array) -> jax.Array:
    """`[B, 1, T, T]` bool: whether query and key are of one segment.

    Padding (segment 0) sees padding: with itself at least, no softmax is over nothing.
    """
    of_query = segments[:, None, :, None]
    of_key = segments[:, None, None, :]
    return of_query == of_key


def _parts(shape: tuple[int, ...], key_heads: int) -> tuple[int, int]:
    """Into how many parts batch and key heads are divided: a part's scores fit in `SCORE_BYTES`.

    Args:
      shape: of the queries, `[B, T, N, H]`.
      key_heads: K.

    Returns:
      `(1, 1)` where all scores fit at once; else (B, the fewest groups of key heads that do, at
      most K).
    """
    batch, length, heads, _ = shape
    row_bytes = 4 * heads * length * length
    if batch * row_bytes <= SCORE_BYTES:
        return 1, 1
    for groups in range(1, key_heads):
        if key_heads % groups == 0 and row_bytes <= groups * SCORE_BYTES:
            return batch, groups
    return batch, key_heads


def _in_parts(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    parts: tuple[int, int],
    scores: Scores,
) -> jax.Array:
    """Attention part after part, `[B, T, N, H]`.

    The backward pass computes a part's scores again (`jax.checkpoint`), so that they are never all
    there.

    Args:
      query: `[B, T, N, H]`.
      key: `[B, T, K, H]`.
      value: likewise.
      segments: `[B, T]` or None.
      parts: (B, G), one row and one of G groups of heads make a part.
      scores: what becomes of them.
    """
    batch, groups = parts

    def divided(x: jax.Array) -> jax.Array:
        """`[B, T, heads, H]` as `[B * G, 1, T, heads / G, H]`: parts, each of one row."""
        _, length, heads, width = x.shape
        grouped = x.reshape(batch, length, groups, heads // groups, width)
        by_group = grouped.swapaxes(1, 2)
        return by_group.reshape(batch * groups, 1, length, heads // groups, width)

    @jax.checkpoint
    def part(given: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value, *segment = given
        mask = _same_segment(*segment) if segment else None
        mask = _within_window(mask, query.shape[1], scores.window)
        return _masked(query, key, value, mask, scores.cap, is_causal=True)

    given = [divided(x) for x in (query, key, value)]
    if segments is not None:
        # `[B * G, 1, T]`: all groups of a row have its segments.
        given.append(jnp.repeat(segments, groups, axis=0)[:, None])
    attended = jax.lax.map(part, tuple(given))

    # Back from parts to rows, as `divided` the other way round.
    length, heads, width = query.shape[1:]
    by_group = attended.reshape(batch, groups, length, heads // groups, width)
    return by_group.swapaxes(1, 2).reshape(query.shape)


def _flash_fits(query: jax.Array) -> bool:
    """Whether cuDNN's flash attention can be traced here and takes this dtype and these shapes."""
    if jax.default_backend() != "gpu":
        return False  # to trace it needs cuDNN
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    _, length, _, width = query.shape
    return length % 2 == 0 and width % 8 == 0 and width <= 128


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array | np.ndarray) -> jax.Array:
    """Rotary position embedding of `[B, T, N, H]`: each pair of dimensions is turned by an angle.

    Args:
      x: `[B, T, N, H]`.
      positions: `[B, T]`.
      frequencies: `[R / 2]`, radians a position; the first R of the H dimensions are turned.

    "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv 2104.09864, section
    3.2.2), with dimension i paired with i + R / 2, as the published weights are laid out. Angles
    are float32 whatever the dtype of x.
    """
    # What is not turned is put back behind what is.
    turned = 2 * frequencies.shape[0]
    if turned < x.shape[-1]:
        rest = x[..., turned:]
        return jnp.concatenate([rotate(x[..., :turned], positions, frequencies), rest], axis=-1)

    # `[B, T, 1, R / 2]`: the same for all heads.
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos = jnp.cos(angles)
    sin = jnp.sin(angles)

    # (first, second) turned by its angle: the product with [[cos, -sin], [sin, cos]].
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin
    return jnp.concatenate([turned_first, turned_second], axis=-1).astype(x.dtype)
