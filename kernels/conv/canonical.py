"""Convolution on CPUs, each pass in the form that is fast there: XLA's own, or a product.

XLA multiplies windows of an image while they are in cache, and writes no patches (`matmul` writes
and reads nine times the image). Its CPU compiler finds that form for the gradients in straight-line
code alone, not in a loop over batches, as training runs. So they are written in it: images
[B,H,W,C], kernels [Kh,Kw,Cin,Cout], neither strides in the kernel nor in the image.

    forward           y  = x * w
    weight gradient   dw = x' * g'    images and channels in each other's place

The input gradient stays the product of `matmul`, whose additions XLA fuses with the gradients of
ReLU and pooling around it. So does the forward pass of an image of few channels, whose windows do
not fill XLA's products, a tile of pixels of the result at once (`_forward_of_few`). And so does
every pass of an image of no more pixels than a kernel has taps (there XLA's own takes up to 70
times as long), of strides, and of a kernel of one tap, which needs no patches.
"""

from functools import partial, reduce

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
_LARGE_KERNEL = 5
"""Taps along a side from which on the weight gradient is summed over tiles."""
_TILES: tuple[Pair, ...] = ((4, 2), (2, 2), (2, 1), (1, 2))
_MOST_CHANNELS_OF_TILE = 128
"""Rows and columns of the result that one product computes, the first that fit, and their channels
together: see `_forward_of_few`."""


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
    if strides == (1, 1) and w.shape[0] * w.shape[1] > 1:
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
        return _weight_gradient(x, _side(w, 0), padding, g).astype(w.dtype)

    dx, dw = matmul.backward(strides, padding, saved, g)
    x, w = saved
    if is_direct(_side(x), _side(w, 0), strides):
        dw = weight_gradient(x, w, g)
    return dx, dw


conv2d.defvjp(_save, _backward)


def _forward_of_few(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """The product of patches, a tile of the result at once: x [B,H,W,Cin] -> [B,Ho,Wo,Cout].

    A matrix of few columns, Cout, keeps a processor's units waiting, and patches hold every pixel
    Kh*Kw times. A tile of r rows and c columns of the result sees a window of Kh + r - 1 rows and
    Kw + c - 1 columns. So one product of that wider window with the kernel shifted r*c times,

        y[r u + i, c v + j, o] = sum over p, q, s of x[r u + p, c v + q, s] w[p - i, q - j, s, o],

    w being 0 beyond its taps, has r*c*Cout columns, and patches hold a pixel as often as windows
    overlap, (Kh + r - 1)(Kw + c - 1)/(r c) times. The rest of its multiplications are with zeros.

    On a core of an Intel Xeon first layers to 6, 8 and 16 channels are the fastest, or nearly so,
    with a tile of 4 x 2, to 32 with one of 2 x 2 and to 64 with one of 2 x 1.
    """
    kh, kw, _, features = w.shape
    (top, bottom), (left, right) = padding
    height = x.shape[1] + top + bottom - kh + 1
    width = x.shape[2] + left + right - kw + 1
    rows, columns = _tile(height, width, features)

    shifted = []
    for i in range(rows):
        for j in range(columns):
            below, beside = (i, rows - 1 - i), (j, columns - 1 - j)
            shifted.append(jnp.pad(w, (below, beside, (0, 0), (0, 0))))
    wide = jnp.stack(shifted, axis=3)  # [Kh+r-1,Kw+c-1,Cin,r*c,Cout]
    wide = wide.reshape(*wide.shape[:3], rows * columns * features)

    y = matmul.conv2d(x, wide, (rows, columns), padding)  # [B,Ho/r,Wo/c,r*c*Cout]
    y = y.reshape(*y.shape[:3], rows, columns, features)
    return y.swapaxes(2, 3).reshape(y.shape[0], height, width, features)


def _tile(height: int, width: int, features: int) -> Pair:
    """Rows and columns of a tile that a result of these sides and channels is made of."""
    for rows, columns in _TILES:
        whole = height % rows == 0 and width % columns == 0
        if whole and rows * columns * features <= _MOST_CHANNELS_OF_TILE:
            return rows, columns
    return 1, 1


def _weight_gradient(x: jax.Array, kernel: Pair, padding: Padding, g: jax.Array) -> jax.Array:
    """dw[i,s,c,o], the sum over images and windows of x[b,h+i,w+s,c] g[b,h,w,o]."""
    # That is a convolution of x with g as its kernel, the sum over images being the one over
    # channels: "images" c, "channels in" b, "channels out" o, windows (i, s).
    #
    # Few channels out make a narrow matrix there too. With the pixels of a tile of g as further
    # channels, g[b, r u + k, n v + j, o], and windows that skip as many, each (k, j) has the same
    # sums k rows and j columns on:
    #
    #     d[i,s,c,k,j,o] = sum over b, u, v of x[b, r u + i, n v + s, c] g[b, r u + k, n v + j, o]
    #     dw[i,s,c,o] = sum over k, j of d[i + k, s + j, c, k, j, o].
    batch, height, width, features = g.shape
    rows, columns = _tile_of_gradient(kernel, height, width, features)
    tiles = g.reshape(batch, height // rows, rows, width // columns, columns, features)
    tiles = tiles.transpose(1, 3, 0, 2, 4, 5)  # [Ho/r,Wo/n,B,r,n,Cout]
    taps = tiles.reshape(*tiles.shape[:3], rows * columns * features)
    images = x.transpose(3, 1, 2, 0)  # [Cin,H,W,B]
    wide = _direct(images, taps, padding, (rows, columns))  # [Cin,Kh+r-1,Kw+n-1,r*n*Cout]

    kh, kw = kernel
    apart = wide.reshape(*wide.shape[:3], rows, columns, features)
    parts = []
    for k in range(rows):
        for j in range(columns):
            parts.append(apart[:, k : k + kh, j : j + kw, k, j])
    dw = reduce(jnp.add, parts)
    return dw.transpose(1, 2, 0, 3)


def _tile_of_gradient(kernel: Pair, height: int, width: int, features: int) -> Pair:
    """Rows and columns of a tile of g.

    On a core of an Intel Xeon one of 2 x 4 is the fastest to 6 channels by 5 x 5. By 3 x 3 a tile's
    window is larger beside the kernel: two columns are faster on an AMD EPYC and as fast here, and
    more are slower. To 16 channels and more single pixels are the fastest.
    """
    if features >= _FEW_CHANNELS:
        return 1, 1
    if min(kernel) >= _LARGE_KERNEL and height % 2 == 0 and width % 4 == 0:
        return 2, 4
    return 1, 2 if width % 2 == 0 else 1


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
