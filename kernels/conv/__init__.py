"""Convolution and max pooling that are fast on CPUs and XLA's own everywhere else."""

import operator
from collections.abc import Callable, Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.conv import canonical, matmul, reference
from snake_jax.kernels.conv.reference import Padding, Pair

LOWERINGS = ("auto", "xla", "matmul")


def conv2d(
    x: jax.Array,
    w: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[Sequence[int]] = "SAME",
    lowering: str = "auto",
) -> jax.Array:
    """Cross-correlation of x [B,H,W,Cin] with w [Kh,Kw,Cin,Cout] -> [B,Ho,Wo,Cout].

    Args:
      x: images.
      w: of x's dtype, floating.
      strides: pixels from window to window, down and to the right.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
      lowering: "xla" (the compiler's own convolution), "matmul" (patches times a matrix) or "auto"
        (on CPUs the faster of both, pass by pass; xla elsewhere; chosen when compiled).

    Raises:
      ValueError: shapes, strides, padding or a lowering that do not fit.
    """
    strides = _pair("conv2d: strides", strides, least=1)
    _check_conv(x, w)
    pads = _padding(x, w, strides, padding)

    def convolution_of(module: ModuleType) -> Callable[..., jax.Array]:
        def convolution(x: jax.Array, w: jax.Array) -> jax.Array:
            return module.conv2d(x, w, strides, pads)

        return convolution

    return _choose(lowering, "conv2d", convolution_of, x, w)


def max_pool(
    x: jax.Array,
    window: Sequence[int] = (2, 2),
    strides: Sequence[int] | None = None,
    lowering: str = "auto",
) -> jax.Array:
    """Largest value of each whole window of x [B,H,W,C] -> [B,Ho,Wo,C].

    A tie's gradient goes to the window's first largest element in every lowering.

    Args:
      x: images.
      window: pixels down and to the right.
      strides: from window to window; None: as the window, so that they lie side by side.
      lowering: see `conv2d`.

    Raises:
      ValueError: shapes, window, strides or a lowering that do not fit.
    """
    window = _pair("max_pool: window", window, least=1)
    if strides is None:
        strides = window
    strides = _pair("max_pool: strides", strides, least=1)
    if x.ndim != 4:
        raise ValueError(f"max_pool: x must be [B,H,W,C], got shape {x.shape}")
    if x.shape[1] < window[0] or x.shape[2] < window[1]:
        raise ValueError(f"max_pool: window {window} is larger than x of shape {x.shape}")

    def pooling_of(module: ModuleType) -> Callable[..., jax.Array]:
        def pooling(x: jax.Array) -> jax.Array:
            return module.max_pool(x, window, strides)

        return pooling

    return _choose(lowering, "max_pool", pooling_of, x)


def _choose(
    lowering: str,
    name: str,
    function_of: Callable[[ModuleType], Callable[..., jax.Array]],
    *args: jax.Array,
) -> jax.Array:
    """The function of the lowering's module; of both under `auto`, chosen when compiled."""
    if lowering not in LOWERINGS:
        raise ValueError(f"{name}: lowering {lowering!r} is not one of {', '.join(LOWERINGS)}")
    if lowering == "auto":
        # Chosen for the platform that is compiled for, which need not be the one that traces.
        on_cpu = function_of(canonical)
        elsewhere = function_of(reference)
        return lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)
    module = matmul if lowering == "matmul" else reference
    return function_of(module)(*args)


def _pair(name: str, values: Sequence[int], least: int) -> Pair:
    """Two integers of at least `least`; raises ValueError for others."""
    # Integers of NumPy are taken too, floats are not.
    try:
        pair = tuple(operator.index(v) for v in values)
    except TypeError:
        pair = ()
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} must be two integers of at least {least}, got {values}")
    return pair


def _check_conv(x: jax.Array, w: jax.Array) -> None:
    """Raises ValueError where shapes or dtypes do not fit."""
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(
            f"conv2d: x must be [B,H,W,Cin] and w [Kh,Kw,Cin,Cout], got shapes {x.shape} and "
            f"{w.shape}"
        )
    if x.shape[3] != w.shape[2]:
        raise ValueError(
            f"conv2d: x {x.shape} has {x.shape[3]} channels, w {w.shape} takes {w.shape[2]}"
        )
    if x.dtype != w.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"conv2d: x and w must be of one floating dtype, got {x.dtype} and {w.dtype}"
        )


def _padding(
    x: jax.Array, w: jax.Array, strides: Pair, padding: str | Sequence[Sequence[int]]
) -> Padding:
    """Pixels per edge, checked: every output dimension has at least one element."""
    # Named paddings in pixels; what is neither a name nor pairs stays empty.
    edges: Sequence[Sequence[int]] = padding if isinstance(padding, list | tuple) else ()
    if padding in ("SAME", "VALID"):
        edges = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, str(padding))
    if len(edges) != 2:
        raise ValueError(
            f"conv2d: padding {padding!r} is not SAME, VALID or ((top, bottom), (left, right))"
        )
    rows = _pair("conv2d: padding", edges[0], least=0)
    columns = _pair("conv2d: padding", edges[1], least=0)
    pads = (rows, columns)

    # At least one window must fit, down and to the right.
    for size, edge, taps in zip(x.shape[1:3], pads, w.shape[:2], strict=True):
        padded_size = size + sum(edge)
        if padded_size < taps:
            raise ValueError(
                f"conv2d: w of shape {w.shape} is larger than x of shape {x.shape} padded by {pads}"
            )
    return pads
