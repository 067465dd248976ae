"""Causal attention over rows of one or several texts, over a cache, and rotary positions."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.models.linear import PyTree

SCORE_BYTES = 64 * 2**20
"""Where XLA writes down attention scores, float32 `[B, N, T, T]`, at most so many bytes of them at
a time.
"""

# `(query [B, T, N, H], key [B, T, K, H], value [B, T, K, H]) -> ([B, T, N, H], state)`: what a
# block is given to attend with. Training keeps no state; generation keeps keys and values.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


class Cache(NamedTuple):
    """Keys and values of one block, by position: `[B, S, K, H]` each."""

    keys: jax.Array
    values: jax.Array


def attend_causally(segments: jax.Array | None) -> Attend:
    """Each token sees itself and those before it in its row, of its segment where `segments` `[B,
    T]` is given.
    """
    return lambda query, key, value: (_causal(query, key, value, segments), None)


def attend_and_keep(cache: Cache) -> Attend:
    """As `attend_causally` on rows of one text each; the state is the cache with them at its
    beginning.
    """

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
        new = Cache(
            *(old.at[:, : x.shape[1]].set(x) for old, x in zip(cache, (key, value), strict=True))
        )
        return _causal(query, key, value, None), new

    return attend


def attend_to_cache(cache: Cache, positions: jax.Array) -> Attend:
    """One new token a row, at `positions` `[B]`, sees what the cache holds up to it; the state is
    the cache with it.
    """

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
        rows = jnp.arange(positions.shape[0])
        new = Cache(
            *(
                old.at[rows, positions].set(x[:, 0])
                for old, x in zip(cache, (key, value), strict=True)
            )
        )
        seen = jnp.arange(new.keys.shape[1]) <= positions[:, None]
        return jax.nn.dot_product_attention(query, *new, mask=seen[:, None, None, :]), new

    return attend


def _causal(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array | None
) -> jax.Array:
    """`[B, T, N, H]`; K key heads serve N query heads, N / K neighbours each."""
    mask = None if segments is None else _alike(segments)
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=True)

    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        parts = _parts(query.shape, key.shape[2])
        return (
            attend(query, key, value, mask=mask)
            if parts == (1, 1)
            else _in_parts(query, key, value, segments, parts)
        )

    def flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attend(query, key, value, mask=mask, implementation="cudnn")

    if not _flash_fits(query):
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=flash, default=plain)


def _alike(segments: jax.Array) -> jax.Array:
    """`[B, 1, T, T]`. Padding (segment 0) sees padding: with itself at least, no softmax is over
    nothing.
    """
    return segments[:, None, :, None] == segments[:, None, None, :]


def _parts(shape: tuple[int, ...], key_heads: int) -> tuple[int, int]:
    """Into how many parts batch and key heads are divided, so that a part's scores are within
    `SCORE_BYTES`.
    """
    batch, length, heads, _ = shape
    row = 4 * heads * length * length
    if batch * row <= SCORE_BYTES:
        return 1, 1
    groups = next(
        g
        for g in range(1, key_heads + 1)
        if key_heads % g == 0 and (row <= g * SCORE_BYTES or g == key_heads)
    )
    return batch, groups


def _in_parts(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    parts: tuple[int, int],
) -> jax.Array:
    """Part after part; the backward pass computes a part's scores again, so that they are never all
    there.
    """
    batch, groups = parts

    def divided(x: jax.Array) -> jax.Array:
        x = x.reshape(batch, x.shape[1], groups, x.shape[2] // groups, x.shape[3])
        return x.swapaxes(1, 2).reshape(batch * groups, 1, x.shape[1], x.shape[3], x.shape[4])

    @jax.checkpoint
    def part(given: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value, *segment = given
        mask = _alike(segment[0]) if segment else None
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True)

    given = [divided(x) for x in (query, key, value)]
    given += [] if segments is None else [jnp.repeat(segments, groups, axis=0)[:, None]]
    attended = jax.lax.map(part, tuple(given))
    length, heads, width = query.shape[1:]
    attended = attended.reshape(batch, groups, length, heads // groups, width).swapaxes(1, 2)
    return attended.reshape(query.shape)


def _flash_fits(query: jax.Array) -> bool:
    """Whether cuDNN's flash attention can be traced here (that needs cuDNN) and takes this dtype
    and these shapes.
    """
    _, length, _, width = query.shape
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return (
        jax.default_backend() == "gpu"
        and half
        and length % 2 == 0
        and width % 8 == 0
        and width <= 128
    )


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotary position embedding of `[B, T, N, H]` at `positions` `[B, T]` with `frequencies` `[H /
    2]`.

    "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv 2104.09864, section
    3.2.2), with dimension i paired with i + H / 2, as the published weights are laid out. Angles
    are float32 whatever the dtype of x.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)
