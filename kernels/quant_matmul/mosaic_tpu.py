"""For TPUs: tiles are dequantized in VMEM, and the low-rank product is added to their sums before
these are written.

XLA writes nf4 matrices out in bfloat16 first, by some 30 vector operations a register of values; a
gather within the register's lanes is one. int8 it dequantizes within the product, but a low-rank
product it writes and reads again.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import qwix
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from snake_jax.kernels.dequantize import look_up
from snake_jax.kernels.quant_matmul.reference import LowRank, OfStack

LANES, SUBLANES = 128, 8
LARGEST_SIDE = 1024
VMEM_BYTES = 64 * 2**20
"""More than the blocks of the largest tiles, twice each, and the dense tile in float32 take."""


class Tiles(NamedTuple):
    """Sides of a tile: of M, K and N."""

    rows: int
    inputs: int
    outputs: int


class Operand(NamedTuple):
    """A matrix in HBM, the shape of its blocks, and which of them a step (row, feature, part of the
    sum) takes.
    """

    array: Any
    block: tuple[int, int]
    place: Callable[[int, int, int], tuple[int, int]]
    stacked: bool = False

    @property
    def spec(self) -> pl.BlockSpec:
        """In Pallas' words; the grid's one scalar says which matrix of a stack is meant."""
        if self.stacked:
            return pl.BlockSpec(
                (None, *self.block), lambda i, j, k, index: (index[0], *self.place(i, j, k))
            )
        return pl.BlockSpec(self.block, lambda i, j, k, index: self.place(i, j, k))


def fits(x: jax.Array, weight: qwix.QArray) -> bool:
    """Whether there is a kernel for x [M, K] and the weight."""
    return (
        x.dtype in (jnp.bfloat16, jnp.float32) and x.size > 0 and tiles(len(x), weight) is not None
    )


def tiles(rows: int, weight: qwix.QArray) -> Tiles | None:
    """The tiles for x [rows, K] and an int8 or nf4 weight [K, N]; None where there are none.

    K and N must be multiples of 128, and an nf4 tile that is not all of K must have whole groups of
    8 scales.
    """
    inputs, outputs = weight.shape
    groups = len(weight.scale)
    block = inputs // groups
    stored = weight.qtype == "nf4" or (weight.qtype == jnp.int8 and groups == 1)
    if not stored or inputs % LANES or outputs % LANES or block % SUBLANES:
        return None
    side = _side(inputs, LANES if groups == 1 else math.lcm(SUBLANES * block, LANES))
    return None if side is None else Tiles(_even(rows), side, _side(outputs, LANES) or LANES)


def _side(size: int, multiple: int) -> int | None:
    """The whole, or its largest divisor that is a multiple of `multiple`."""
    if size <= LARGEST_SIDE:
        return size
    return max(
        (n for n in range(multiple, LARGEST_SIDE + 1, multiple) if size % n == 0), default=None
    )


def _even(rows: int) -> int:
    """Rows in as few parts as can be, all of one size; the last may hang over."""
    parts = -(-rows // LARGEST_SIDE)
    return min(rows, -(-rows // (parts * 2 * SUBLANES)) * 2 * SUBLANES)


def matmul(
    x: jax.Array,
    weight: qwix.QArray | OfStack,
    low_rank: LowRank | None,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """As `reference.matmul`, for a weight that has `tiles`; of a stack, its blocks are read where
    they lie.
    """
    if not isinstance(weight, OfStack):
        weight = OfStack(jax.tree.map(lambda w: w[None], weight), jnp.int32(0))
    matrix = weight.matrix
    grid, operands, result = _plan(x, matrix, low_rank, transposed)
    flops = 2 * len(x) * math.prod(matrix.shape) + (
        0 if low_rank is None else 2 * len(x) * low_rank.wide.size
    )
    cost = pl.CostEstimate(
        flops=flops, transcendentals=0, bytes_accessed=moved_bytes(x, matrix, low_rank, transposed)
    )
    stored = iter((weight.stack.qvalue, weight.stack.scale))
    return pl.pallas_call(
        functools.partial(_kernel, transposed),
        out_shape=result.array,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[operand.spec for operand in operands],
            out_specs=result.spec,
            scratch_shapes=[pltpu.VMEM(result.block, jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=cost,
        interpret=interpret,
        name="quant_matmul_transposed" if transposed else "quant_matmul",
    )(
        weight.at.reshape(1),
        *[next(stored) if operand.stacked else operand.array for operand in operands],
    )


def moved_bytes(
    x: jax.Array, weight: qwix.QArray, low_rank: LowRank | None, transposed: bool
) -> int:
    """What the grid moves between HBM and VMEM, counted: a block moves when its place is not the
    step's before.
    """
    grid, operands, result = _plan(x, weight, low_rank, transposed)
    return sum(_moves(grid, operand) * _block_bytes(operand) for operand in (*operands, result))


def steps(x: jax.Array, weight: qwix.QArray, low_rank: LowRank | None, transposed: bool) -> int:
    """How many tiles of the weight the kernel multiplies with."""
    return math.prod(_plan(x, weight, low_rank, transposed)[0])


def _moves(grid: tuple[int, int, int], operand: Operand) -> int:
    places = [operand.place(i, j, k) for i, j, k in itertools.product(*map(range, grid))]
    return 1 + sum(new != old for old, new in itertools.pairwise(places))


def _block_bytes(operand: Operand) -> int:
    return math.prod(operand.block) * jax.dtypes.itemsize_bits(operand.array.dtype) // 8


def _plan(
    x: jax.Array, weight: qwix.QArray, low_rank: LowRank | None, transposed: bool
) -> tuple[tuple[int, int, int], list[Operand], Operand]:
    """Grid (rows, features, what is summed over), operands and result."""
    sides = tiles(len(x), weight)
    assert sides is not None
    summed, features = (
        (sides.outputs, sides.inputs) if transposed else (sides.inputs, sides.outputs)
    )
    width = weight.shape[0 if transposed else 1]
    grid = -(-len(x) // sides.rows), width // features, x.shape[1] // summed

    def of_weight(i: int, j: int, k: int) -> tuple[int, int]:
        return (j, k) if transposed else (k, j)

    def of_scale(i: int, j: int, k: int) -> tuple[int, int]:
        along, across = of_weight(i, j, k)
        return (0 if len(weight.scale) == 1 else along), across

    scales = max(1, sides.inputs * len(weight.scale) // weight.shape[0])
    operands = [
        Operand(x, (sides.rows, summed), lambda i, j, k: (i, k)),
        Operand(weight.qvalue, (sides.inputs, sides.outputs), of_weight, stacked=True),
        Operand(weight.scale, (scales, sides.outputs), of_scale, stacked=True),
    ]
    if low_rank is not None:
        rank = low_rank.wide.shape[0]
        operands.append(Operand(low_rank.narrow, (sides.rows, rank), lambda i, j, k: (i, 0)))
        operands.append(Operand(low_rank.wide, (rank, features), lambda i, j, k: (0, j)))
    result = jax.ShapeDtypeStruct((len(x), width), x.dtype)
    return grid, operands, Operand(result, (sides.rows, features), lambda i, j, k: (i, j))


def _kernel(
    transposed: bool, _index: Any, x_ref: Any, codes_ref: Any, scale_ref: Any, *rest: Any
) -> None:
    """One tile's product into the sums: a block's first starts from the low-rank product, its last
    one writes.
    """
    *low_rank, out_ref, sums_ref = rest
    part = pl.program_id(2)

    @pl.when(part == 0)
    def _() -> None:
        sums_ref[...] = (
            jnp.zeros_like(sums_ref) if not low_rank else _dot(low_rank[0], low_rank[1][...], False)
        )

    sums_ref[...] += _dot(x_ref, _dense(codes_ref[...], scale_ref[...], x_ref.dtype), transposed)

    @pl.when(part == pl.num_programs(2) - 1)
    def _() -> None:
        out_ref[...] = sums_ref[...].astype(out_ref.dtype)


def _dot(x_ref: Any, w: jax.Array, transposed: bool) -> jax.Array:
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))
    return lax.dot_general(x_ref[...], w, contracted, preferred_element_type=jnp.float32)


def _dense(codes: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A tile [k, n] of values from its codes [k, n] and the scales [k / block, n] of its blocks."""
    values = (
        codes.astype(jnp.float32)
        if codes.dtype == jnp.int8
        else _looked_up(codes.astype(jnp.int32))
    )
    blocks = values.reshape(len(scale), -1, codes.shape[1])
    return (blocks * scale.astype(jnp.float32)[:, None]).reshape(codes.shape).astype(dtype)


def _looked_up(codes: jax.Array) -> jax.Array:
    """nf4's values: codes index a register that holds the 16 in its lanes."""
    table = look_up(lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1) % 16)
    table = jnp.broadcast_to(table[:1], (len(codes), LANES))
    columns = [codes[:, at : at + LANES] for at in range(0, codes.shape[1], LANES)]
    return jnp.concatenate(
        [jnp.take_along_axis(table, c, 1, mode="promise_in_bounds") for c in columns], 1
    )
