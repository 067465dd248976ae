"""Causal attention over rows of one or several texts, over a cache, and rotary positions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.models.linear import PyTree

# `(query [B, T, N, H], key [B, T, K, H], value [B, T, K, H]) -> ([B, T, N, H], state)`: what a block is given to attend
# with. Training keeps no state; generation keeps keys and values.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


class Cache(NamedTuple):
    """Keys and values of one block, by position: `[B, S, K, H]` each."""

    keys: jax.Array
    values: jax.Array


def attend_causally(segments: jax.Array | None) -> Attend:
    """Each token sees itself and those before it in its row, of its segment where `segments` `[B, T]` is given."""
    # Padding (segment 0) sees padding: with every token seeing itself at least, no softmax is over nothing.
    mask = None if segments is None else segments[:, None, :, None] == segments[:, None, None, :]
    return lambda query, key, value: (_causal(query, key, value, mask), None)


def attend_and_keep(cache: Cache) -> Attend:
    """As `attend_causally` on rows of one text each; the state is the cache with them at its beginning."""

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
        new = Cache(*(old.at[:, : x.shape[1]].set(x) for old, x in zip(cache, (key, value), strict=True)))
        return _causal(query, key, value, None), new

    return attend


def attend_to_cache(cache: Cache, positions: jax.Array) -> Attend:
    """One new token a row, at `positions` `[B]`, sees what the cache holds up to it; the state is the cache with it."""

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
        rows = jnp.arange(positions.shape[0])
        new = Cache(*(old.at[rows, positions].set(x[:, 0]) for old, x in zip(cache, (key, value), strict=True)))
        seen = jnp.arange(new.keys.shape[1]) <= positions[:, None]
        return jax.nn.dot_product_attention(query, *new, mask=seen[:, None, None, :]), new

    return attend


def _causal(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`[B, T, N, H]`; K key heads serve N query heads, N / K neighbours each."""

    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True)

    def flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, implementation="cudnn")

    if not _flash_fits(query):
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=flash, default=plain)


def _flash_fits(query: jax.Array) -> bool:
    """Whether cuDNN's flash attention can be traced here (that needs cuDNN) and takes this dtype and these shapes."""
    _, length, _, width = query.shape
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and length % 2 == 0 and width % 8 == 0 and width <= 128


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotary position embedding of `[B, T, N, H]` at `positions` `[B, T]` with `frequencies` `[H / 2]`.

    "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv 2104.09864, section 3.2.2), with dimension i
    paired with i + H / 2, as the published weights are laid out. Angles are float32 whatever the dtype of x.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
