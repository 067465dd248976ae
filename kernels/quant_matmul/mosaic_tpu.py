"""For TPUs: tiles are dequantized in VMEM, on the chip, and never written out dense.

The result [M, F] is cut into blocks [rows, features]; each is a sum over parts of the axis C that
products sum over (C and F are K and N of the weight [K, N], transposed N and K):

    out[i, j] = sum over k of x[i, k] @ dense(w[k, j])  +  narrow[i] @ wide[j]

- Grid (i, j, k): rows M / rows, features F / features, parts C / summed. k is the innermost, and
  the only one whose steps depend on each other.
- Blocks in VMEM at a step, with `inputs` and `outputs` the sides of a tile along K and N:
  x [rows, summed]; codes [inputs, outputs]; scales [inputs / block, outputs] or [1, outputs];
  with a low-rank product narrow [rows, r] and wide [r, features]; out [rows, features].
- Accumulator: [rows, features] float32 in VMEM (`sums_ref`), which stays there over the steps of k.
  The first starts it from the low-rank product, the last writes it out.

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
    """A matrix in HBM, in blocks.

    Attributes:
      array: the matrix, or its shape.
      block: the shape of a block.
      place: which block a step (row, feature, part of the sum) takes.
      stacked: whether the matrix is one of a stack `[L, ...]` that is passed whole.
    """

    array: Any
    block: tuple[int, int]
    place: Callable[[int, int, int], tuple[int, int]]
    stacked: bool = False

    @property
    def spec(self) -> pl.BlockSpec:
        """In Pallas' words; the grid's one scalar says which matrix of a stack is meant."""

        def place(i: Any, j: Any, k: Any, index: Any) -> tuple:
            return self.place(i, j, k)

        def place_in_stack(i: Any, j: Any, k: Any, index: Any) -> tuple:
            return (index[0], *self.place(i, j, k))

        if self.stacked:
            return pl.BlockSpec((None, *self.block), place_in_stack)
        return pl.BlockSpec(self.block, place)


def fits(x: jax.Array, weight: qwix.QArray) -> bool:
    """Whether there is a kernel for x [M, K] and the weight."""
    if x.dtype not in (jnp.bfloat16, jnp.float32) or x.size == 0:
        return False
    return tiles(len(x), weight) is not None


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

    # Scales are [groups, N], and a register has 8 rows: a part of K has whole registers of them.
    multiple = LANES if groups == 1 else math.lcm(SUBLANES * block, LANES)
    side = _side(inputs, multiple)
    if side is None:
        return None
    across = _side(outputs, LANES) or LANES
    return Tiles(_even(rows), side, across)


def _side(size: int, multiple: int) -> int | None:
    """The whole, or its largest divisor that is a multiple of `multiple`; None: there is none."""
    if size <= LARGEST_SIDE:
        return size
    divisors = [n for n in range(multiple, LARGEST_SIDE + 1, multiple) if size % n == 0]
    return max(divisors, default=None)


def _even(rows: int) -> int:
    """Rows in as few parts as can be, all of one size; the last may hang over."""
    parts = -(-rows // LARGEST_SIDE)
    multiple = 2 * SUBLANES  # rows of a register of bfloat16
    size = -(-rows // (parts * multiple)) * multiple
    return min(rows, size)


def matmul(
    x: jax.Array,
    weight: qwix.QArray | OfStack,
    low_rank: LowRank | None,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """As `reference.matmul`, for a weight that has `tiles`.

    Blocks of one of a stack are read where they lie: nothing is cut out before.
    """

    # A single matrix is a stack of one.
    def stack_of_one(w: jax.Array) -> jax.Array:
        return w[None]

    if not isinstance(weight, OfStack):
        weight = OfStack(jax.tree.map(stack_of_one, weight), jnp.int32(0))
    matrix = weight.matrix
    grid, operands, result = _blocked(x, matrix, low_rank, transposed)

    # What the compiler schedules by, since it cannot look into a kernel.
    flops = 2 * len(x) * math.prod(matrix.shape)
    if low_rank is not None:
        flops += 2 * len(x) * low_rank.wide.size
    moved = moved_bytes(x, matrix, low_rank, transposed)
    cost = pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved)

    # Which matrix of the stack is known before the grid starts (a prefetched scalar): specs of
    # blocks read it.
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=grid,
        in_specs=[operand.spec for operand in operands],
        out_specs=result.spec,
        scratch_shapes=[pltpu.VMEM(result.block, jnp.float32)],
    )
    # Blocks of the result are independent; the steps of a sum follow each other.
    params = pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
    )
    call = pl.pallas_call(
        functools.partial(_kernel, transposed),
        out_shape=result.array,
        grid_spec=grid_spec,
        compiler_params=params,
        cost_estimate=cost,
        interpret=interpret,
        name="quant_matmul_transposed" if transposed else "quant_matmul",
    )

    # The operands are x, codes, scales and the low-rank factors; codes and scales are passed
    # as the stack has them.
    arrays = [x, weight.stack.qvalue, weight.stack.scale]
    if low_rank is not None:
        arrays += [low_rank.narrow, low_rank.wide]
    return call(weight.at.reshape(1), *arrays)


def moved_bytes(
    x: jax.Array, weight: qwix.QArray, low_rank: LowRank | None, transposed: bool
) -> int:
    """Bytes that the grid moves between HBM and VMEM.

    Counted: a block moves when its place is not that of the step before.
    """
    grid, operands, result = _blocked(x, weight, low_rank, transposed)
    total = 0
    for operand in (*operands, result):
        # Counted in bits: codes of nf4 have half a byte.
        value_bits = jax.dtypes.itemsize_bits(operand.array.dtype)
        block_bytes = math.prod(operand.block) * value_bits // 8
        total += _moves(grid, operand) * block_bytes
    return total


def grid_steps(
    x: jax.Array, weight: qwix.QArray, low_rank: LowRank | None, transposed: bool
) -> int:
    """How many tiles of the weight the kernel multiplies with."""
    grid, _, _ = _blocked(x, weight, low_rank, transposed)
    return math.prod(grid)


def _moves(grid: tuple[int, int, int], operand: Operand) -> int:
    """How often a block of the operand moves, over all steps of the grid in their order."""
    steps = itertools.product(*map(range, grid))
    places = [operand.place(i, j, k) for i, j, k in steps]
    moves = 1  # before the first step
    for old, new in itertools.pairwise(places):
        if new != old:
            moves += 1
    return moves


def _blocked(
    x: jax.Array, weight: qwix.QArray, low_rank: LowRank | None, transposed: bool
) -> tuple[tuple[int, int, int], list[Operand], Operand]:
    """Grid (rows, features, parts of the sum), operands and result; see the head of the file."""
    sides = tiles(len(x), weight)
    assert sides is not None
    if transposed:
        summed, features, width = sides.outputs, sides.inputs, weight.shape[0]
    else:
        summed, features, width = sides.inputs, sides.outputs, weight.shape[1]
    grid = -(-len(x) // sides.rows), width // features, x.shape[1] // summed

    # Which block of x [M, C] a step takes, and which of the result [M, F].
    def of_x(i: int, j: int, k: int) -> tuple[int, int]:
        return i, k

    def of_result(i: int, j: int, k: int) -> tuple[int, int]:
        return i, j

    # A tile of the weight lies at (along K, along N).
    def of_weight(i: int, j: int, k: int) -> tuple[int, int]:
        return (j, k) if transposed else (k, j)

    # int8 has one scale for all of K.
    def of_scale(i: int, j: int, k: int) -> tuple[int, int]:
        along, across = of_weight(i, j, k)
        return (0 if len(weight.scale) == 1 else along), across

    # The low-rank factors [M, r] and [r, F] have all of r in a block.
    def of_narrow(i: int, j: int, k: int) -> tuple[int, int]:
        return i, 0

    def of_wide(i: int, j: int, k: int) -> tuple[int, int]:
        return 0, j

    # Scales of a tile along K.
    scales = max(1, sides.inputs * len(weight.scale) // weight.shape[0])
    operands = [
        Operand(x, (sides.rows, summed), of_x),
        Operand(weight.qvalue, (sides.inputs, sides.outputs), of_weight, stacked=True),
        Operand(weight.scale, (scales, sides.outputs), of_scale, stacked=True),
    ]
    if low_rank is not None:
        rank = low_rank.wide.shape[0]
        operands.append(Operand(low_rank.narrow, (sides.rows, rank), of_narrow))
        operands.append(Operand(low_rank.wide, (rank, features), of_wide))
    result = jax.ShapeDtypeStruct((len(x), width), x.dtype)
    return grid, operands, Operand(result, (sides.rows, features), of_result)


def _kernel(
    transposed: bool, _index: Any, x_ref: Any, codes_ref: Any, scale_ref: Any, *rest: Any
) -> None:
    """One step (i, j, k) of the grid: one tile's product into the sums of block (i, j).

    Args:
      transposed: whether the tile is multiplied with as its transpose.
      _index: [1], which matrix of the stack; only specs of blocks read it.
      x_ref: [rows, summed].
      codes_ref: [inputs, outputs] int8 or uint4.
      scale_ref: [scales of the tile along K, outputs].
      *rest: narrow [rows, r] and wide [r, features] where there is a low-rank product; out [rows,
        features]; sums [rows, features] float32, kept from step to step.
    """
    *low_rank, out_ref, sums_ref = rest
    part = pl.program_id(2)

    # A block's first step: sums start from the low-rank product, or from zero.
    @pl.when(part == 0)
    def _() -> None:
        if low_rank:
            narrow_ref, wide_ref = low_rank
            sums_ref[...] = _dot(narrow_ref, wide_ref[...], False)
        else:
            sums_ref[...] = jnp.zeros_like(sums_ref)

    # Every step: the tile is dequantized, multiplied with and forgotten.
    tile = _dense(codes_ref[...], scale_ref[...], x_ref.dtype)
    sums_ref[...] += _dot(x_ref, tile, transposed)

    # A block's last step: rounded once.
    @pl.when(part == pl.num_programs(2) - 1)
    def _() -> None:
        out_ref[...] = sums_ref[...].astype(out_ref.dtype)


def _dot(x_ref: Any, w: jax.Array, transposed: bool) -> jax.Array:
    """x [m, c] times w [c, f], or times the transpose of w [f, c]: [m, f] float32."""
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))
    return lax.dot_general(x_ref[...], w, contracted, preferred_element_type=jnp.float32)


def _dense(codes: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A tile [k, n] of values from its codes [k, n] and the scales [k / block, n] of its blocks."""
    if codes.dtype == jnp.int8:
        values = codes.astype(jnp.float32)
    else:
        values = _looked_up(codes.astype(jnp.int32))
    blocks = values.reshape(len(scale), -1, codes.shape[1])
    scaled = blocks * scale.astype(jnp.float32)[:, None]
    return scaled.reshape(codes.shape).astype(dtype)


def _looked_up(codes: jax.Array) -> jax.Array:
    """nf4's values [k, n] of codes [k, n]: they index a register that holds the 16 in its lanes.

    The gather is within a row of 128 lanes, so that codes come 128 columns at a time.
    """
    table = look_up(lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1) % 16)
    table = jnp.broadcast_to(table[:1], (len(codes), LANES))
    values = []
    for at in range(0, codes.shape[1], LANES):
        columns = codes[:, at : at + LANES]
        values.append(jnp.take_along_axis(table, columns, 1, mode="promise_in_bounds"))
    return jnp.concatenate(values, 1)
