"""Convolution on CPUs, each pass in the form that is fast there: XLA's own, or a product.

XLA multiplies windows of an image while they are in cache, and writes no patches (`matmul` writes
and reads nine times the image). Its CPU compiler finds that form for the gradients in straight-line
code alone, not in a loop over batches, as training runs. So they are written in it: images
[B,H,W,C], kernels [Kh,Kw,Cin,Cout], neither strides in the kernel nor in the image.

    forward           y  = x * w
    weight gradient   dw = x' * g'    images and channels in each other's place

The input gradient stays the product of `matmul`, whose additions XLA fuses with the gradients of
ReLU and pooling around it. So does the forward pass of an image of few channels, whose windows do
not fill XLA's products, four columns of the result at once (`_forward_of_few`). And so does every
pass of an image of no more pixels than a kernel has taps (there XLA's own takes up to 70 times as
long), of strides, and of a kernel of one tap, which needs no patches.
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
_MOST_AT_ONCE, _MOST_CHANNELS_AT_ONCE = 4, 64
"""Columns of the result that one product computes, and their channels together: see
`_forward_of_few`."""


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
    if strides == (1, 1) and w.shape[1] > 1:
        return _forward_of_few(x, w, padding)
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


def _forward_of_few(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """The product of patches, n columns of the result at once: x [B,H,W,Cin] -> [B,Ho,Wo,Cout].

    A matrix of few columns, Cout, keeps a processor's units waiting, and patches hold every pixel
    Kh*Kw times. n columns that lie side by side see a window of Kh rows and Kw + n - 1 columns. So
    one product of that wider window with the kernel shifted n times,

        y[h, n v + j, o] = sum over i, s, c of x[h+i, n v + s, c] w[i, s - j, c, o],

    w being 0 beyond its columns, has n*Cout columns, and patches hold a pixel Kh*(Kw + n - 1)/n
    times. Of its multiplications a share of (n - 1)/(Kw + n - 1) is with those zeros. On a core
    of an AMD EPYC, batch 32, first layers are faster so: n = 4 the fastest of 1 to 16 from 4 to 16
    channels out, and n = 2 of 32.
    """
    kh, kw, channels, features = w.shape
    (left, right) = padding[1]
    columns = x.shape[2] + left + right - kw + 1
    most = min(_MOST_AT_ONCE, _MOST_CHANNELS_AT_ONCE // features)
    at_once = max((n for n in range(1, most + 1) if columns % n == 0), default=1)

    shifted = []
    for j in range(at_once):
        beyond = (j, at_once - 1 - j)
        shifted.append(jnp.pad(w, ((0, 0), beyond, (0, 0), (0, 0))))
    wide = jnp.stack(shifted, axis=3)  # [Kh,Kw+n-1,Cin,n,Cout]
    wide = wide.reshape(kh, kw + at_once - 1, channels, at_once * features)

    y = matmul.conv2d(x, wide, (1, at_once), padding)  # [B,Ho,Wo/n,n*Cout]
    return y.reshape(*y.shape[:2], columns, features)


def _weight_gradient(x: jax.Array, padding: Padding, g: jax.Array) -> jax.Array:
    """dw[i,s,c,o], the sum over images and windows of x[b,h+i,w+s,c] g[b,h,w,o]."""
    # That is a convolution of x with g as its kernel, the sum over images being the one over
    # channels: "images" c, "channels in" b, "channels out" o, windows (i, s).
    #
    # Few channels out make a narrow matrix there too. With n columns of g as further channels,
    # g[b,h,n v + j,o], and windows that skip n columns, each j has the same sums j columns on:
    #
    #     d[i,s,c,j,o] = sum over b, h, v of x[b,h+i,n v + s,c] g[b,h,n v + j,o]
    #     dw[i,s,c,o] = sum over j of d[i,s + j,c,j,o].
    #
    # On a core of an AMD EPYC, batch 32 and 64, n = 2 is faster of 6 and 8 channels out, about the
    # same of 16, and slower of 64; n = 4 is slower than it.
    batch, rows, columns, features = g.shape
    at_once = 2 if features < _FEW_CHANNELS and columns % 2 == 0 else 1
    kernel = g.reshape(batch, rows, columns // at_once, at_once * features)
    images = x.transpose(3, 1, 2, 0)  # [Cin,H,W,B]
    kernel = kernel.transpose(1, 2, 0, 3)  # [Ho,Wo/n,B,n*Cout]
    wide = _direct(images, kernel, padding, (1, at_once))  # [Cin,Kh,Kw+n-1,n*Cout]

    kw = wide.shape[2] - at_once + 1
    apart = wide.reshape(*wide.shape[:3], at_once, features)
    dw = sum(apart[:, :, j : j + kw, j] for j in range(at_once))
    return jnp.asarray(dw).transpose(1, 2, 0, 3)


def _direct(x: jax.Array, w: jax.Array, padding: Padding, apart: Pair = (1, 1)) -> jax.Array:
    """XLA's convolution, summed in float32 at least; the result is not cast back.

    Args:
      x: [B,H,W,Cin].
      w: [Kh,Kw,Cin,Cout].
      padding: in pixels.
      apart: pixels from one of the kernel's taps to the next, down and to the right.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        padding,
        rhs_dilation=apart,
        dimension_numbers=reference.DIMENSION_NUMBERS,
        preferred_element_type=wide,
    )


def _side(array: jax.Array, first: int = 1) -> Pair:
    """Two sizes, of an image's sides or of a kernel's."""
    return array.shape[first], array.shape[first + 1]
