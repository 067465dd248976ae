"""For GPUs: a tile of the matrix is dequantized in registers. Asked for by name; no GPU has
measured it yet.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from snake_jax.kernels.dequantize import look_up
from snake_jax.kernels.quant_matmul.reference import LowRank, OfStack

INPUTS, OUTPUTS = 64, 128
"""Sides of a tile of the weight: in nf4 one row of scales."""
LEAST_ROWS, MOST_ROWS = 16, 128


def fits(x: jax.Array, weight: qwix.QArray) -> bool:
    """Whether there is a kernel for x [M, K] and the weight: int8 or nf4 of whole tiles, nf4 in
    blocks of 64.
    """
    inputs, outputs = weight.shape
    scales = {"nf4": inputs // INPUTS}.get(weight.qtype, 1)
    stored = weight.qtype == "nf4" or weight.qtype == jnp.int8
    whole = inputs % INPUTS == 0 and outputs % OUTPUTS == 0 and len(weight.scale) == scales
    return stored and whole and x.dtype in (jnp.bfloat16, jnp.float16, jnp.float32) and x.size > 0


def matmul(
    x: jax.Array,
    weight: qwix.QArray | OfStack,
    low_rank: LowRank | None,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """As `reference.matmul`, for a weight that `fits`."""
    weight = weight.cut_out() if isinstance(weight, OfStack) else weight
    width, tile = (weight.shape[0], INPUTS) if transposed else (weight.shape[1], OUTPUTS)
    rows = min(MOST_ROWS, max(LEAST_ROWS, pl.next_power_of_2(len(x))))
    # The last axis whole, so that two codes are one byte to the compiler.
    codes = weight.qvalue.reshape(weight.shape[0], -1, OUTPUTS)
    return pl.pallas_call(
        functools.partial(_kernel, transposed, rows, weight.qtype == "nf4"),
        out_shape=jax.ShapeDtypeStruct((len(x), width), x.dtype),
        grid=(pl.cdiv(len(x), rows), width // tile),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="quant_matmul_transposed" if transposed else "quant_matmul",
    )(x, codes, weight.scale, *_padded(low_rank))


def _padded(low_rank: LowRank | None) -> tuple[jax.Array, ...]:
    """Zeros up to a rank that is a power of two, as all sizes of tiles are."""
    if low_rank is None:
        return ()
    rank = low_rank.wide.shape[0]
    more = max(LEAST_ROWS, pl.next_power_of_2(rank)) - rank
    return jnp.pad(low_rank.narrow, ((0, 0), (0, more))), jnp.pad(
        low_rank.wide, ((0, more), (0, 0))
    )


def _kernel(
    transposed: bool,
    rows: int,
    is_nf4: bool,
    x_ref: Any,
    codes_ref: Any,
    scale_ref: Any,
    *rest: Any,
) -> None:
    *low_rank, out_ref = rest
    place = pl.program_id(1)
    features, summed = (INPUTS, OUTPUTS) if transposed else (OUTPUTS, INPUTS)
    here = pl.ds(pl.program_id(0) * rows, rows)
    inside = (
        pl.program_id(0) * rows + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
    ) < x_ref.shape[0]

    def add(part: jax.Array, sums: jax.Array) -> jax.Array:
        x = plgpu.load(x_ref.at[here, pl.ds(part * summed, summed)], mask=inside, other=0)
        k, n = (place, part) if transposed else (part, place)
        w = _dense(codes_ref, scale_ref, k, n, is_nf4).astype(x.dtype)
        return sums + _dot(x, w.T if transposed else w)

    sums = lax.fori_loop(0, x_ref.shape[1] // summed, add, jnp.zeros((rows, features), jnp.float32))
    across = pl.ds(place * features, features)
    if low_rank:
        narrow, wide = low_rank
        sums += _dot(
            plgpu.load(narrow.at[here, :], mask=inside, other=0), plgpu.load(wide.at[:, across])
        )
    plgpu.store(out_ref.at[here, across], sums.astype(out_ref.dtype), mask=inside)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


def _dense(codes_ref: Any, scale_ref: Any, k: jax.Array, n: jax.Array, is_nf4: bool) -> jax.Array:
    """The tile k, n of the weight in float32."""
    codes = plgpu.load(codes_ref.at[pl.ds(k * INPUTS, INPUTS), n, :])
    scale = plgpu.load(scale_ref.at[k * is_nf4, pl.ds(n * OUTPUTS, OUTPUTS)]).astype(jnp.float32)
    return (look_up(codes) if is_nf4 else codes.astype(jnp.float32)) * scale[None, :]
