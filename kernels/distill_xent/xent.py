"""What every version computes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Xent(NamedTuple):
    """For each token: `nll` [N] and `distance` [N] in float32, `hit` [N] bool.

    For float64 input the first two are float64.
    """

    nll: jax.Array
    distance: jax.Array
    hit: jax.Array


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """What products of `dtype` are summed in: float32, or float64 where the input is."""
    return jnp.promote_types(dtype, jnp.float32)


def capped(logits: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(logits / cap)`; the logits themselves without a cap.

    "Gemma 2" (arXiv 2408.00118, section 2).
    """
    if cap is None:
        return logits
    return cap * jnp.tanh(logits / cap)
