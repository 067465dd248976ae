"""For GPUs: a tile of the matrix is dequantized in registers.

Asked for by name; no GPU has measured it yet.

- Grid (i, j): a program makes one block [rows, features] of the result [M, F]. Operands stay in the
  GPU's memory whole; a program loads what it multiplies.
- Its loop goes over parts of the axis C that is summed over: x [rows, summed] times a tile of the
  weight, [INPUTS, OUTPUTS] along [K, N], dequantized in registers.
- Accumulator: [rows, features] float32 in registers, carried by the loop; the low-rank product is
  added after it, and the sum is rounded once.
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
    """Whether there is a kernel for x [M, K] and the weight.

    That is for int8 or nf4 of whole tiles, nf4 in blocks of 64.
    """
    inputs, outputs = weight.shape
    if weight.qtype == "nf4":
        scales = inputs // INPUTS
    elif weight.qtype == jnp.int8:
        scales = 1
    else:
        return False
    whole_tiles = inputs % INPUTS == 0 and outputs % OUTPUTS == 0
    known_dtype = x.dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
    return whole_tiles and len(weight.scale) == scales and known_dtype and x.size > 0


def matmul(
    x: jax.Array,
    weight: qwix.QArray | OfStack,
    low_rank: LowRank | None,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """As `reference.matmul`, for a weight that `fits`."""
    if isinstance(weight, OfStack):
        weight = weight.cut_out()

    # F, and the block of the result that a program makes, [rows, features].
    if transposed:
        width, features = weight.shape[0], INPUTS
    else:
        width, features = weight.shape[1], OUTPUTS
    enough_rows = pl.next_power_of_2(len(x))
    rows = min(MOST_ROWS, max(LEAST_ROWS, enough_rows))

    # The last axis whole, so that two codes are one byte to the compiler.
    codes = weight.qvalue.reshape(weight.shape[0], -1, OUTPUTS)
    is_nf4 = weight.qtype == "nf4"
    call = pl.pallas_call(
        functools.partial(_kernel, transposed, rows, is_nf4),
        out_shape=jax.ShapeDtypeStruct((len(x), width), x.dtype),
        grid=(pl.cdiv(len(x), rows), width // features),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="quant_matmul_transposed" if transposed else "quant_matmul",
    )
    return call(x, codes, weight.scale, *_padded(low_rank))


def _padded(low_rank: LowRank | None) -> tuple[jax.Array, ...]:
    """Zeros up to a rank that is a power of two, as all sizes of tiles are."""
    if low_rank is None:
        return ()
    rank = low_rank.wide.shape[0]
    padded_rank = max(LEAST_ROWS, pl.next_power_of_2(rank))
    more = padded_rank - rank
    narrow = jnp.pad(low_rank.narrow, ((0, 0), (0, more)))
    wide = jnp.pad(low_rank.wide, ((0, more), (0, 0)))
    return narrow, wide


def _kernel(
    transposed: bool,
    rows: int,
    is_nf4: bool,
    x_ref: Any,
    codes_ref: Any,
    scale_ref: Any,
    *rest: Any,
) -> None:
    """One program (i, j): the block [rows, features] of the result.

    Args:
      transposed: whether tiles are multiplied with as their transposes.
      rows: of a block.
      is_nf4: or int8.
      x_ref: [M, C].
      codes_ref: [K, N / OUTPUTS, OUTPUTS].
      scale_ref: [K / INPUTS, N], or [1, N] for int8.
      *rest: narrow [M, r] and wide [r, F] where there is a low-rank product; out [M, F].
    """
    *low_rank, out_ref = rest
    place = pl.program_id(1)
    features, summed = (INPUTS, OUTPUTS) if transposed else (OUTPUTS, INPUTS)

    # The block's rows; the last block may hang over, where nothing is loaded or stored.
    here = pl.ds(pl.program_id(0) * rows, rows)
    numbers = pl.program_id(0) * rows + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
    inside = numbers < x_ref.shape[0]

    # One part of the sum: x [rows, summed] times a tile of the weight, [summed, features].
    def add(part: jax.Array, sums: jax.Array) -> jax.Array:
        columns = pl.ds(part * summed, summed)
        x = plgpu.load(x_ref.at[here, columns], mask=inside, other=0)
        k, n = (place, part) if transposed else (part, place)
        w = _dense(codes_ref, scale_ref, k, n, is_nf4).astype(x.dtype)
        if transposed:
            w = w.T
        return sums + _dot(x, w)

    zeros = jnp.zeros((rows, features), jnp.float32)
    sums = lax.fori_loop(0, x_ref.shape[1] // summed, add, zeros)

    # The low-rank product [rows, r] times [r, features].
    across = pl.ds(place * features, features)
    if low_rank:
        narrow_ref, wide_ref = low_rank
        narrow = plgpu.load(narrow_ref.at[here, :], mask=inside, other=0)
        wide = plgpu.load(wide_ref.at[:, across])
        sums += _dot(narrow, wide)
    plgpu.store(out_ref.at[here, across], sums.astype(out_ref.dtype), mask=inside)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """A product in float32 sums."""
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


def _dense(codes_ref: Any, scale_ref: Any, k: jax.Array, n: jax.Array, is_nf4: bool) -> jax.Array:
    """The tile k, n of the weight, [INPUTS, OUTPUTS] float32."""
    rows = pl.ds(k * INPUTS, INPUTS)
    codes = plgpu.load(codes_ref.at[rows, n, :])
    # nf4 has a row of scales for each tile along K, int8 one for all.
    scale_row = k * is_nf4
    columns = pl.ds(n * OUTPUTS, OUTPUTS)
    scale = plgpu.load(scale_ref.at[scale_row, columns]).astype(jnp.float32)
    values = look_up(codes) if is_nf4 else codes.astype(jnp.float32)
    return values * scale[None, :]
