"""Convolution as patches times a matrix, for CPUs: near a matrix product's speed at any shape.

Where XLA's own is faster, `canonical` takes that.

Three products, where patches(x) holds the B*Ho*Wo windows of x, each flattened to Kh*Kw*Cin
columns:

    forward           y       = patches(x) @ w
    input gradient    dx      = patches^T(g @ w^T)
    weight gradient   dw      = patches(x)^T @ g

Here patches^T adds every column back to the pixel that it came from.

Measured with VGG-11, batch 32, float32, two Zen 5 cores, jax 0.10.2, PyTorch 2.13. `python -m
experiments.bench` measures passes (`conv`) and steps (`step`) again; docs/performance.md has a run
on an idle machine:

- XLA's own convolution runs at 60 to 360 GFLOP/s until the kernel has more taps than the image has
  pixels: conv7 and conv8, 3x3 on 2x2, run at 3, and are 0.78 s of its step of 0.88 s. Inside a loop
  or a condition, as training runs, it leaves the gradients' convolutions in a slow form: 8.7 s of
  CPU time a step against 1.7 in straight-line code.
- A whole step inside a `lax.scan` over batches, as training runs, takes PyTorch's time within 3 %.
  A lone call takes longer: it pays for page faults on fresh temporary memory, a scan once for all
  its steps.
- The input gradient as a convolution of g with the flipped kernel needs 9*Cout columns and a copy
  of the weights: 34 ms for conv2 and 12 ms for conv3 where the form above takes 5 and 3.4, a
  product and one loop of additions, which XLA fuses with the gradients of ReLU and pooling around
  it.
- The weight gradient of a small kernel as g^T @ patches(x), the wider matrix on the right: a round
  of FedAvg with the little `cnn`, and a step of VGG-11 at a quarter of its width, take less CPU
  time than with patches(x)^T @ g. At full width it is slower where a window has fewer columns than
  there are channels out (conv1), and of wide layers turning the result costs what the product
  gains.
- Patches by slices and a concatenate, by a gather, by a sum of padded slices, by updates in place
  or in two stages (rows, then columns) are within 5 % of each other in a whole step, a split over
  the batch too. The plain one stays.
- Under vmap, where every node has weights of its own, the nodes' products are a loop: the patches
  of 16 nodes at once leave the cache, and a round of FedAvg with the little `cnn` takes 1.9 instead
  of 1.35 times that of node after node.
- Saved for the backward pass are x and w, not the patches, nine times x. In straight-line code XLA
  still finds the two patches(x) equal and keeps one; across a scan or a cond only x is kept.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from snake_jax.kernels.conv import reference
from snake_jax.kernels.conv.reference import Padding, Pair

_SMALL_KERNEL = 1 << 16
"""Numbers in a kernel whose gradient is computed turned round, at most."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, w: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    """Same as `reference.conv2d`: x [B,H,W,Cin], w [Kh,Kw,Cin,Cout] -> [B,Ho,Wo,Cout].

    Products are summed in float32.
    """

    @sequential_vmap
    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        # [B,Ho,Wo,Kh*Kw*Cin] times [Kh*Kw*Cin,Cout].
        patches = _patches(x, w.shape[:2], strides, padding)
        matrix = w.reshape(-1, w.shape[-1])
        return _product(patches, matrix, 3, 0).astype(x.dtype)

    return forward(x, w)


def _save(
    x: jax.Array, w: jax.Array, strides: Pair, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The forward pass of a gradient: the result, and (x, w) for `backward`."""
    return conv2d(x, w, strides, padding), (x, w)


def backward(
    strides: Pair, padding: Padding, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """From g, the result's gradient [B,Ho,Wo,Cout], to those of x and w.

    Both are written; jit removes the one that nobody asks for.
    """

    @sequential_vmap
    def input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return _input_gradient(x, w, strides, padding, g)

    @sequential_vmap
    def weight_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return _weight_gradient(x, w, strides, padding, g)

    return input_gradient(*saved, g), weight_gradient(*saved, g)


conv2d.defvjp(_save, backward)


def _input_gradient(
    x: jax.Array, w: jax.Array, strides: Pair, padding: Padding, g: jax.Array
) -> jax.Array:
    """patches^T(g @ w^T): [B,H,W,Cin]."""

    def patches(x: jax.Array) -> jax.Array:
        return _patches(x, w.shape[:2], strides, padding)

    # With P = patches(x) [B,Ho,Wo,Kh*Kw*Cin] and y = P @ w, the gradient of P is g @ w^T. Patches
    # are linear in x, so that their transpose takes it to dx: each column is added to its pixel.
    matrix = w.reshape(-1, w.shape[-1])
    columns = _product(g, matrix, 3, 1)
    pixels = jax.ShapeDtypeStruct(x.shape, columns.dtype)
    (dx,) = jax.linear_transpose(patches, pixels)(columns)
    return dx.astype(x.dtype)


def _weight_gradient(
    x: jax.Array, w: jax.Array, strides: Pair, padding: Padding, g: jax.Array
) -> jax.Array:
    """patches(x)^T @ g: [Kh,Kw,Cin,Cout]."""
    # With M windows of all images as rows of one matrix, y [M,Cout] = P [M,Kh*Kw*Cin] @ w, so that
    # dL/dw = P^T @ g [M,Cout].
    patches = _patches(x, w.shape[:2], strides, padding)
    windows = patches.reshape(-1, patches.shape[-1])
    gradients = g.reshape(-1, g.shape[-1])
    if w.size > _SMALL_KERNEL or w.shape[-1] > windows.shape[-1]:
        dw = _product(windows, gradients, 0, 0)
        return dw.reshape(w.shape).astype(w.dtype)

    # Of a small one the wider matrix stands on the right: dL/dw^T = g^T @ P. The barrier keeps the
    # compiler from turning the product round again.
    turned = lax.optimization_barrier(_product(gradients, windows, 0, 0))
    return turned.T.reshape(w.shape).astype(w.dtype)


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """Contracts one axis of each, summing in float32 at least; the result is not cast back."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    contracted = ((axis_a,), (axis_b,))
    no_batch = ((), ())
    return lax.dot_general(a, b, (contracted, no_batch), preferred_element_type=wide)


def _patches(x: jax.Array, kernel: tuple[int, ...], strides: Pair, padding: Padding) -> jax.Array:
    """Every window of x [B,H,W,C], flattened in the order of the kernel: [B,Ho,Wo,Kh*Kw*C]."""
    (kh, kw), (sh, sw) = kernel, strides
    rows, columns = padding
    edges = [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)

    # Where the last window begins.
    b, h, w, c = x.shape
    last_row = (h - kh) // sh * sh
    last_column = (w - kw) // sw * sw

    # A tap (i, j) of all windows, [B,Ho,Wo,C], is a slice of the image with the windows' strides.
    taps = []
    for i in range(kh):
        for j in range(kw):
            end = (b, i + last_row + 1, j + last_column + 1, c)
            taps.append(lax.slice(x, (0, i, j, 0), end, (1, sh, sw, 1)))
    return jnp.concatenate(taps, axis=-1)


def max_pool(x: jax.Array, window: Pair, strides: Pair) -> jax.Array:
    """Same as `reference.max_pool`, x [B,H,W,C] -> [B,Ho,Wo,C].

    Fast where windows lie side by side.
    """
    if window != strides:
        return reference.max_pool(x, window, strides)
    return _pool_tiles(x, window)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool_tiles(x: jax.Array, window: Pair) -> jax.Array:
    """Max pooling with strides as wide as the window: [B,H,W,C] to [B,Ho,Wo,C]."""
    return jnp.max(_tiles(x, window), axis=(2, 4))


def _pool_save(x: jax.Array, window: Pair) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The forward pass of a gradient: the result y, and (x, y) for `_pool_backward`."""
    y = _pool_tiles(x, window)
    return y, (x, y)


def _pool_backward(
    window: Pair, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    """Each window's gradient to its first largest element, as XLA's select-and-scatter does."""
    x, y = saved
    kh, kw = window
    tiles = _tiles(x, window)  # [B,Ho,Kh,Wo,Kw,C]

    # Tap after tap of all windows [B,Ho,Wo,C]: the first that equals the largest value takes the
    # gradient, and its window is no longer free.
    free = jnp.ones(y.shape, bool)
    taps = []
    for i in range(kh):
        for j in range(kw):
            hit = free & (tiles[:, :, i, :, j] == y)
            free = free & ~hit
            taps.append(jnp.where(hit, g, jnp.zeros((), g.dtype)))

    # Back to the order of `tiles`, and from there to pixels.
    rows = []
    for i in range(kh):
        taps_of_row = taps[i * kw : (i + 1) * kw]
        rows.append(jnp.stack(taps_of_row, axis=3))
    to_tiles = jnp.stack(rows, axis=2)

    def tiles_of(x: jax.Array) -> jax.Array:
        return _tiles(x, window)

    # To cut into tiles is linear: its transpose puts every tile's gradient back to its pixels.
    pixels = jax.ShapeDtypeStruct(x.shape, g.dtype)
    (to_pixels,) = jax.linear_transpose(tiles_of, pixels)(to_tiles)
    return (to_pixels,)


def _tiles(x: jax.Array, window: Pair) -> jax.Array:
    """[B,H,W,C] -> [B,Ho,Kh,Wo,Kw,C], leaving out what does not fill a whole window."""
    b, h, w, c = x.shape
    kh, kw = window
    ho, wo = h // kh, w // kw
    whole_windows = x[:, : ho * kh, : wo * kw]
    return whole_windows.reshape(b, ho, kh, wo, kw, c)


_pool_tiles.defvjp(_pool_save, _pool_backward)
