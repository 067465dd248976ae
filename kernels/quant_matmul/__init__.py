"""Activations times a frozen quantized matrix, with the low-rank product of LoRA beside it."""

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from snake_jax.kernels.dequantize import is_quantized
from snake_jax.kernels.quant_matmul import reference
from snake_jax.kernels.quant_matmul.reference import LowRank, OfStack, product

if TYPE_CHECKING:
    import qwix

__all__ = ("LOWERINGS", "LowRank", "OfStack", "quant_matmul")

LOWERINGS = ("auto", "xla", "mosaic_tpu", "triton")
_ON_CHIP = {"mosaic_tpu": "tpu", "triton": "cuda"}


def quant_matmul(
    x: jax.Array,
    weight: "qwix.QArray | OfStack",
    adapter: tuple[jax.Array, jax.Array] | None = None,
    *,
    lowering: str = "auto",
) -> jax.Array:
    """x [..., K] @ weight [K, N], plus (x @ a) @ b with an adapter: [..., N] in x's dtype.

    The adapter is a [K, r], b [r, N]. The weight is a constant: gradients go to `x` and to the
    adapter, theirs in their own dtype. Products are of x's dtype, summed in float32. ("LoRA", arXiv
    2106.09685, section 4.1; "QLoRA", arXiv 2305.14314, section 3.)

    Args:
      x: floating.
      weight: int8 with a scale for each output channel, or nf4 with a scale for each block along K,
        as `snake_jax.training.quantization.freeze` stores a kernel; or one of a stack of such,
        [L, K, N], which a kernel for TPUs reads in its place.
      adapter: (a, b), floating.
      lowering: "xla" (the matrix dequantized in a form that the compiler fuses where it can),
        "mosaic_tpu" or "triton" (dequantized tile by tile on the chip), or "auto": on TPUs
        mosaic_tpu where sizes have tiles, for nf4 and for int8 with an adapter, else xla, chosen
        when compiled. Away from its platform a kernel is interpreted: slow, for tests.

    Raises:
      ValueError: shapes, dtypes or a lowering that do not fit.
    """
    # Wrong arguments are refused before anything is traced.
    matrix = weight.matrix if isinstance(weight, OfStack) else weight
    _check(x, matrix, adapter)
    if lowering not in LOWERINGS:
        raise ValueError(
            f"quant_matmul: lowering {lowering!r} is not one of {', '.join(LOWERINGS)}"
        )
    rows = x.reshape(-1, x.shape[-1])
    if lowering in _ON_CHIP and not _kernel(lowering).fits(rows, matrix):
        raise ValueError(
            f"quant_matmul: {lowering} has no tiles for {matrix.qvalue.dtype} {matrix.shape} and "
            f"{x.dtype}"
        )

    # One product of [M, K] with [K, N], whatever axes x has before its last.
    y = _quant_matmul(lowering, rows, weight, adapter)
    return y.reshape(*x.shape[:-1], matrix.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quant_matmul(lowering: str, x: jax.Array, weight: Any, adapter: Any) -> jax.Array:
    """x [M, K]: [M, N]."""
    y, _ = _remember(lowering, x, weight, adapter)
    return y


class _Saved(NamedTuple):
    """What the forward pass hands to the backward pass.

    Attributes:
      x: [M, K].
      weight: [K, N] as stored, or one of a stack.
      adapter: a [K, r] and b [r, N], or None.
      narrow: x @ a, [M, r]; None without an adapter.
    """

    x: jax.Array
    weight: Any
    adapter: tuple[jax.Array, jax.Array] | None
    narrow: jax.Array | None


def _remember(lowering: str, x: jax.Array, weight: Any, adapter: Any) -> tuple[jax.Array, _Saved]:
    """The forward pass: x [M, K] @ W + (x @ a) @ b, with the narrow product kept."""
    if adapter is None:
        y = _matmul(lowering, x, weight, None, False)
        return y, _Saved(x, weight, None, None)
    a, b = adapter
    a = a.astype(x.dtype)
    b = b.astype(x.dtype)
    narrow = product(x, a, 1, 0).astype(x.dtype)
    y = _matmul(lowering, x, weight, LowRank(narrow, b), False)
    return y, _Saved(x, weight, adapter, narrow)


def _backward(lowering: str, saved: _Saved, g: jax.Array) -> tuple[jax.Array, None, Any]:
    """From g, the result's gradient [M, N], with n = x @ a [M, r] and its gradient n' = g @ b^T:

    x'  = g @ W^T + n' @ a^T     [M, K]      again a product with a low-rank one beside it
    a'  = x^T @ n'               [K, r]
    b'  = n^T @ g                [r, N]
    """
    x, weight, adapter, narrow = saved
    if adapter is None or narrow is None:
        return _matmul(lowering, g, weight, None, True), None, None
    a, b = adapter
    to_narrow = product(g, b.astype(x.dtype), 1, 1).astype(x.dtype)
    a_transposed = a.astype(x.dtype).T
    to_x = _matmul(lowering, g, weight, LowRank(to_narrow, a_transposed), True)
    to_a = product(x, to_narrow, 0, 0).astype(a.dtype)
    to_b = product(narrow, g, 0, 0).astype(b.dtype)
    return to_x, None, (to_a, to_b)


_quant_matmul.defvjp(_remember, _backward)


def _matmul(
    lowering: str,
    x: jax.Array,
    weight: "qwix.QArray | OfStack",
    low_rank: LowRank | None,
    transposed: bool,
) -> jax.Array:
    """x [M, C] times the weight [K, N] or its transpose, plus the low-rank product: [M, F].

    What each lowering computes is `reference.matmul`.
    """
    plain = functools.partial(reference.matmul, transposed=transposed)
    given = (x, weight, low_rank)

    # Asked for by name: the kernel on its platform, interpreted elsewhere.
    if lowering in _ON_CHIP:
        own = functools.partial(_kernel(lowering).matmul, transposed=transposed)
        interpreted = functools.partial(own, interpret=True)
        platform = {_ON_CHIP[lowering]: own}
        return lax.platform_dependent(*given, **platform, default=interpreted)

    # Chosen: the TPU's kernel where it has tiles and is the faster one.
    matrix = weight.matrix if isinstance(weight, OfStack) else weight
    pays = matrix.qtype == "nf4" or low_rank is not None
    if lowering != "auto" or not pays:
        return plain(*given)
    mosaic_tpu = _kernel("mosaic_tpu")
    if not mosaic_tpu.fits(x, matrix):
        return plain(*given)
    tpu = functools.partial(mosaic_tpu.matmul, transposed=transposed)
    return lax.platform_dependent(*given, tpu=tpu, default=plain)


def _kernel(lowering: str) -> ModuleType:
    """The module of a kernel for a chip, imported on first use: Pallas takes its time."""
    return importlib.import_module(f"{__name__}.{lowering}")


def _check(
    x: jax.Array, weight: "qwix.QArray", adapter: tuple[jax.Array, jax.Array] | None
) -> None:
    """Raises ValueError where shapes or dtypes do not fit."""
    if not is_quantized(weight) or weight.ndim != 2 or weight.zero_point is not None:
        raise ValueError(
            f"quant_matmul: weight must be a symmetric quantized [K, N], got "
            f"{type(weight).__name__}"
        )
    inputs, outputs = weight.shape
    groups, columns = weight.scale.shape
    if columns != outputs or inputs % groups:
        raise ValueError(
            f"quant_matmul: scales must be [groups, {outputs}] with groups of {inputs} equal "
            f"parts, got {weight.scale.shape}"
        )
    if x.ndim < 1 or x.shape[-1] != inputs or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"quant_matmul: x must be floating [..., {inputs}], got {x.dtype} {x.shape}"
        )
    if adapter is not None:
        a, b = adapter
        if a.ndim != 2 or a.shape[0] != inputs or b.shape != (a.shape[1], outputs):
            raise ValueError(
                f"quant_matmul: adapter must be [{inputs}, r] and [r, {outputs}], got {a.shape} "
                f"and {b.shape}"
            )
