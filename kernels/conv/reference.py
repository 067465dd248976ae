"""The definition: XLA's own convolution and max pooling.

Every faster version is tested against it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def conv2d(x: jax.Array, w: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Cross-correlation of x [B,H,W,Cin] with w [Kh,Kw,Cin,Cout]: [B,Ho,Wo,Cout].

    `padding` in pixels per edge.
    """
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=DIMENSION_NUMBERS)


def max_pool(x: jax.Array, window: Pair, strides: Pair) -> jax.Array:
    """Largest value of each whole window of x [B,H,W,C]: [B,Ho,Wo,C].

    Of equals the first gets the gradient.
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        lowest = np.array(-np.inf, x.dtype)
    else:
        lowest = np.array(jnp.iinfo(x.dtype).min, x.dtype)
    # Not over images [B] nor channels [C].
    sides = (1, *window, 1)
    steps = (1, *strides, 1)
    return lax.reduce_window(x, lowest, lax.max, sides, steps, "VALID")
