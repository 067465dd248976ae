"""Compares the forms of `quant_matmul` with qwix and a dense product.

They are compiled for TPUs, and timed where it runs.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import qwix

from experiments.bench.kernels import described
from experiments.bench.kernels.quant_matmul_tables import report
from snake_jax.costs import roofline
from snake_jax.costs.timing import interleaved, machine, sample_summary
from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.quant_matmul import mosaic_tpu, quant_matmul, reference
from snake_jax.kernels.quant_matmul.reference import LowRank
from snake_jax.kernels.quant_matmul.shapes import LARGE, MIDDLE, QuantShape
from snake_jax.params import num_bytes
from snake_jax.training.quantization import freeze

__all__ = ["report", "run", "timed"]

KINDS = ("int8", "nf4")
RANKS = (0, 16)
DIRECTIONS = {"forward": False, "input gradient": True}
LEAST_TRAINED_ROWS = 64  # fewer are generated, without a gradient
LOWERINGS = {"cpu": ("xla",), "gpu": ("xla", "triton"), "tpu": ("xla", "mosaic_tpu")}


def run(
    repeats: int = 15, chips: Sequence[str] = described.CHIPS, shapes: Sequence[QuantShape] = LARGE
) -> dict[str, Any]:
    """Measures everything; the result is what --json prints.

    Without a TPU compiler only the device here is timed.
    """
    header = machine()
    peaks = roofline.measured_peaks(repeats)

    # A CPU would take minutes for the large shapes.
    timed_shapes = (MIDDLE,) if jax.default_backend() == "cpu" else shapes
    measured = []
    for shape in timed_shapes:
        for kind in KINDS:
            measured += timed(shape, kind, peaks, repeats)

    # The compiler for TPUs is optional, and its rows are all there or none is.
    rows: list[dict[str, Any]] = []
    missing = None
    try:
        with described.dumped_schedules() as schedules:
            found = []
            for chip in chips:
                for shape in shapes:
                    found += _compiled(chip, shape, schedules)
        rows = found
    except UserError as error:
        missing = str(error)
    return {
        "suite": "quant_matmul",
        "machine": header,
        "peaks": peaks._asdict(),
        "timed": measured,
        "published_peaks": described.PEAKS,
        "compiled": rows,
        "not_compiled": missing,
    }


def stored(shape: QuantShape, kind: str) -> qwix.QArray:
    """A random weight as a node stores it."""
    drawn = jax.random.normal(jax.random.key(0), (shape.inputs, shape.outputs))
    weight = drawn / math.sqrt(shape.inputs)
    return freeze({"kernel": weight}, kind)["kernel"]


def timed(
    shape: QuantShape, kind: str, peaks: roofline.Peaks, repeats: int
) -> list[dict[str, Any]]:
    """Every form beside qwix and a dense product, in turns: a row for each pass and form."""
    weight = jax.jit(functools.partial(stored, shape, kind))()
    rows = []
    for direction, transposed in DIRECTIONS.items():
        width = shape.outputs if transposed else shape.inputs
        x = jax.random.normal(jax.random.key(1), (shape.rows, width), jnp.bfloat16)

        # Compiled before the first is timed, beside a product with the weight as it was.
        calls = {}
        for name, form in _forms(shape, weight, transposed).items():
            program = jax.jit(form).lower(x, weight).compile()
            calls[name] = functools.partial(program, x, weight)
        plain = jax.jit(functools.partial(_plain, transposed=transposed))(weight)
        calls["dense weight"] = functools.partial(jax.jit(jnp.dot), x, plain)

        floor_bytes = _floor_bytes(shape, weight, x, None)
        least_ms = 1e3 * peaks.least_s(shape.flops, floor_bytes)
        for form_name, samples in interleaved(calls, repeats, budget_s=3.0).items():
            taken = sample_summary(samples)
            rows.append(
                {
                    "shape": shape.name,
                    "kind": kind,
                    "pass": direction,
                    "form": form_name,
                    **taken,
                    "least_ms": least_ms,
                    "of_roofline": least_ms / taken["median_ms"],
                }
            )
    return rows


def _plain(weight: qwix.QArray, transposed: bool) -> jax.Array:
    """The weight in bfloat16, `[K, N]`, or `[N, K]` for the product of the backward pass."""
    kernel = dense(weight, jnp.bfloat16)
    return kernel.T if transposed else kernel


def _forms(
    shape: QuantShape, weight: qwix.QArray, transposed: bool
) -> dict[str, Callable[..., jax.Array]]:
    """(x or its gradient's cotangent, weight) to the product, by the name of the form."""

    def ours(lowering: str) -> Callable[..., jax.Array]:
        def forward(x: jax.Array, w: qwix.QArray) -> jax.Array:
            return quant_matmul(x, w, lowering=lowering)

        def gradient(g: jax.Array, w: qwix.QArray) -> jax.Array:
            x = jnp.zeros((shape.rows, shape.inputs), g.dtype)
            _, backward = jax.vjp(functools.partial(forward, w=w), x)
            (input_gradient,) = backward(g)
            return input_gradient

        return gradient if transposed else forward

    forms = {lowering: ours(lowering) for lowering in LOWERINGS[jax.default_backend()]}
    # qwix has no backward pass of its own.
    if not transposed:
        forms["qwix"] = _qwix
    return forms


def _qwix(x: jax.Array, weight: qwix.QArray) -> jax.Array:
    return qwix.dot_general(x, weight, (((1,), (0,)), ((), ())))


def _compiled(chip: str, shape: QuantShape, schedules: Path) -> list[dict[str, Any]]:
    rows = []
    for kind in KINDS:
        weight = jax.eval_shape(functools.partial(stored, shape, kind))
        for rank in RANKS:
            for direction, transposed in DIRECTIONS.items():
                # Text is generated without a backward pass.
                if transposed and shape.rows < LEAST_TRAINED_ROWS:
                    continue
                about = {
                    "chip": chip,
                    "shape": shape.name,
                    "kind": kind,
                    "rank": rank,
                    "pass": direction,
                }
                for row in _forms_compiled(chip, shape, weight, rank, transposed, schedules):
                    rows.append(about | row)
    return rows


def _forms_compiled(
    chip: str, shape: QuantShape, weight: qwix.QArray, rank: int, transposed: bool, schedules: Path
) -> list[dict[str, Any]]:
    if transposed:
        width, across = shape.outputs, shape.inputs
    else:
        width, across = shape.inputs, shape.outputs
    # Shapes stand for the arrays: for the chip a program is only compiled.
    x: Any = jax.ShapeDtypeStruct((shape.rows, width), jnp.bfloat16)
    low_rank = None
    if rank:
        low: Any = jax.ShapeDtypeStruct((shape.rows, rank), jnp.bfloat16)
        up: Any = jax.ShapeDtypeStruct((rank, across), jnp.bfloat16)
        low_rank = LowRank(low, up)
    forms: dict[str, Callable[..., jax.Array]] = {
        "xla": functools.partial(reference.matmul, transposed=transposed),
        "mosaic_tpu": functools.partial(mosaic_tpu.matmul, transposed=transposed),
    }
    if not rank and not transposed:
        forms["qwix"] = _qwix_without_adapters

    # The least that the chip could take, by its arithmetic or by its memory.
    flops_s, bytes_s = described.PEAKS[chip]
    floor_bytes = _floor_bytes(shape, weight, x, low_rank)
    least_s = max(shape.flops / flops_s, floor_bytes / bytes_s)
    floor = {"floor_bytes": floor_bytes, "least_ms": 1e3 * least_s}
    rows = []
    for name, form in forms.items():
        steps = 1
        if name == "mosaic_tpu":
            steps = mosaic_tpu.grid_steps(x, weight, low_rank, transposed)
        found = described.described(chip, form, (x, weight, low_rank), schedules, steps)
        rows.append({"form": name, "fits": found is not None, **floor, **_counted(found)})
    return rows


def _qwix_without_adapters(x: jax.Array, weight: qwix.QArray, low_rank: None) -> jax.Array:
    del low_rank
    return _qwix(x, weight)


def _counted(found: described.Described | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {name: getattr(found, name) for name in ("temporary_bytes", "accessed_bytes", "cycles")}


def _floor_bytes(shape: QuantShape, weight: qwix.QArray, x: Any, low_rank: LowRank | None) -> int:
    """Every operand read and the result written once."""
    both_sides = 2 * shape.rows * (shape.inputs + shape.outputs)
    return both_sides + num_bytes((weight, low_rank))
