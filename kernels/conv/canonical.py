"""Convolution on CPUs, each pass in the form that is fast there: XLA's own, or a product.

XLA multiplies windows of an image while they are in cache, and writes no patches (`matmul` writes
and reads nine times the image). Its CPU compiler finds that form for the gradients in straight-line
code alone, not in a loop over batches, as training runs. So they are written in it: images
[B,H,W,C], kernels [Kh,Kw,Cin,Cout], neither strides in the kernel nor in the image.

    forward           y  = x * w
    weight gradient   dw = x' * g'    images and channels in each other's place

The input gradient stays the product of `matmul`, whose additions XLA fuses with the gradients of
ReLU and pooling around it. So does the forward pass of an image of few channels, whose windows do
not fill the products, and every pass of an image of no more pixels than a kernel has taps (there
XLA's own takes up to 70 times as long), of strides, and of a kernel of one tap, which needs no
patches.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from snake_jax.kernels.conv import matmul, reference
from snake_jax.kernels.conv.matmul import max_pool
from snake_jax.kernels.conv.reference import Padding, Pair

__all__ = ["conv2d", "is_direct", "max_pool"]

_FEW_CHANNELS = 16
"""Of fewer the product of patches is the faster forward pass."""


def is_direct(image: Pair, kernel: Pair, strides: Pair) -> bool:
    """Whether the weight gradient, and forward unless channels are few, are XLA's own convolution.

    Args:
      image: [H,W] of x.
      kernel: [Kh,Kw].
      strides: of the windows.
    """
    taps = kernel[0] * kernel[1]
    pixels = image[0] * image[1]
    return strides == (1, 1) and 1 < taps < pixels


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, w: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Same as `reference.conv2d`: x [B,H,W,Cin], w [Kh,Kw,Cin,Cout] -> [B,Ho,Wo,Cout].

    Products are summed in float32.
    """

    # Nodes under vmap one after the other: with weights of their own XLA makes of them a
    # convolution in groups, which is slow.
    @sequential_vmap
    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        return _direct(x, w, padding).astype(x.dtype)

    channels = x.shape[-1]
    if is_direct(_side(x), _side(w, 0), strides) and channels >= _FEW_CHANNELS:
        return forward(x, w)
    return matmul.conv2d(x, w, strides, padding)


def _save(
    x: jax.Array, w: jax.Array, strides: Pair, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The forward pass of a gradient: the result, and (x, w) for `_backward`."""
    return conv2d(x, w, strides, padding), (x, w)


def _backward(
    strides: Pair, padding: Padding, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """From g, the result's gradient [B,Ho,Wo,Cout], to those of x and w.

    Both are written; jit removes the one that nobody asks for.
    """

    @sequential_vmap
    def weight_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return _weight_gradient(x, padding, g).astype(w.dtype)

    dx, dw = matmul.backward(strides, padding, saved, g)
    x, w = saved
    if is_direct(_side(x), _side(w, 0), strides):
        dw = weight_gradient(x, w, g)
    return dx, dw


conv2d.defvjp(_save, _backward)


def _weight_gradient(x: jax.Array, padding: Padding, g: jax.Array) -> jax.Array:
    """dw[i,j,c,o], the sum over images and windows of x[b,h+i,w+j,c] g[b,h,w,o]."""
    # That is a convolution of x with g as its kernel, the sum over images being the one over
    # channels: "images" c, "channels in" b, "channels out" o, windows (i, j).
    images = x.transpose(3, 1, 2, 0)  # [Cin,H,W,B]
    kernel = g.transpose(1, 2, 0, 3)  # [Ho,Wo,B,Cout]
    dw = _direct(images, kernel, padding)  # [Cin,Kh,Kw,Cout]
    return dw.transpose(1, 2, 0, 3)


def _direct(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """XLA's convolution, summed in float32 at least; the result is not cast back."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        padding,
        dimension_numbers=reference.DIMENSION_NUMBERS,
        preferred_element_type=wide,
    )


def _side(array: jax.Array, first: int = 1) -> Pair:
    """Two sizes, of an image's sides or of a kernel's."""
    return array.shape[first], array.shape[first + 1]
