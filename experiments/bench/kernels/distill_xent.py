"""Compares `linear_xent` with its definition and with tokamax's fused loss.

They are compiled for TPUs, and timed where it runs. What is compared is what they all do: the
summed loss and its gradient in the hidden states, the table a constant.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.bench.kernels import described
from experiments.bench.kernels.distill_xent_tables import report
from snake_jax.costs import roofline
from snake_jax.costs.timing import interleaved, machine, sample_summary
from snake_jax.errors import UserError
from snake_jax.kernels.distill_xent import linear_xent, tile
from snake_jax.kernels.distill_xent.shapes import LARGE, MIDDLE, XentShape
from snake_jax.params import num_bytes

__all__ = ["report", "run", "timed"]

Form = Callable[..., tuple[jax.Array, jax.Array]]
TOKAMAX_KERNELS = "tokamax._src.ops.linear_softmax_cross_entropy_loss.pallas_mosaic_tpu_kernel"
TOKAMAX_BLOCKS = {"v5e": (1024, 512, 512), "v6e": (1024, 512, 2048)}
"""Of tokens, width and vocabulary: what tokamax 0.0.12 takes by default on these chips."""


def run(
    repeats: int = 15, chips: Sequence[str] = described.CHIPS, shapes: Sequence[XentShape] = LARGE
) -> dict[str, Any]:
    """Measures everything; the result is what --json prints.

    Rows of what is not here are missing.
    """
    header = machine()
    peaks = roofline.measured_peaks(repeats, (_dtype(),))

    # A CPU would take minutes for the large shapes.
    timed_shapes = (MIDDLE,) if jax.default_backend() == "cpu" else shapes
    measured = []
    for shape in timed_shapes:
        measured += timed(shape, peaks, repeats)

    # The compiler for TPUs is optional, and its rows are all there or none is.
    rows: list[dict[str, Any]] = []
    missing = None
    try:
        found = []
        for chip in chips:
            for shape in shapes:
                found += _compiled(chip, shape)
        rows = found
    except UserError as error:
        missing = str(error)
    return {
        "suite": "distill_xent",
        "machine": header,
        "tokamax": importlib.util.find_spec("tokamax") is not None,
        "peaks": peaks._asdict(),
        "timed": measured,
        "published_peaks": described.PEAKS,
        "compiled": rows,
        "not_compiled": missing,
    }


def _ours(lowering: str) -> Form:
    def loss(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
        return linear_xent(hidden, table, targets, lowering=lowering).nll.sum()

    return jax.value_and_grad(loss)


def _tokamax(
    hidden: jax.Array, table: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Its own choice for the device here; it takes the table as `[E, V]`."""
    tokamax = importlib.import_module("tokamax")

    def loss(hidden: jax.Array) -> jax.Array:
        return tokamax.linear_softmax_cross_entropy_loss(hidden, targets, table, reduction="sum")

    return jax.value_and_grad(loss)(hidden)


def _tokamax_kernel(
    chip: str, hidden: jax.Array, table: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Its TPU kernels, called directly: its API asks the device here which chip it is."""
    kernels = importlib.import_module(TOKAMAX_KERNELS)
    tokens, width, vocabulary = TOKAMAX_BLOCKS[chip]
    sizes = {"b_block_size": tokens, "h_block_size": width, "v_block_size": vocabulary}
    loss, sums = kernels.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(
        hidden, targets, table, reduction="sum", **sizes
    )
    gradients = kernels.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu(
        jnp.float32(1), sums, hidden, targets, table, reduction="sum", **sizes
    )
    return loss, gradients[0]


def timed(shape: XentShape, peaks: roofline.Peaks, repeats: int) -> list[dict[str, Any]]:
    """Every form on one shape, in turns: a row for each."""
    hidden, table, targets = _arguments(shape, _dtype())
    given = (hidden, table, targets)
    forms: dict[str, tuple[Form, Any]] = {
        "definition": (_ours("xla"), given),
        "chunked": (_ours("chunked"), given),
    }
    if importlib.util.find_spec("tokamax"):
        flags.FLAGS.mark_as_parsed()  # else it reads this program's own flags as its settings
        forms["tokamax"] = (_tokamax, (hidden, table.T, targets))

    # Compiled before the first is timed.
    programs: dict[str, Any] = {}
    calls = {}
    for name, (form, arguments) in forms.items():
        programs[name] = jax.jit(form).lower(*arguments).compile()
        calls[name] = functools.partial(programs[name], *arguments)

    # A product for the loss, and one for its gradient.
    flops = 2 * _flops(shape)
    least_ms = 1e3 * peaks.least_s(flops, _floor_bytes(shape, hidden, table))
    rows = []
    for name, samples in interleaved(calls, repeats, budget_s=10.0).items():
        taken = sample_summary(samples)
        memory = programs[name].memory_analysis()
        rows.append(
            {
                "shape": shape.name,
                "form": name,
                **taken,
                "least_ms": least_ms,
                "of_roofline": least_ms / taken["median_ms"],
                "temporary_bytes": memory.temp_size_in_bytes,
            }
        )
    return rows


def _dtype() -> Any:
    """What models compute in on this device."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def _arguments(shape: XentShape, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden_key, table_key, targets_key = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(hidden_key, (shape.tokens, shape.width), dtype)
    table = jax.random.normal(table_key, (shape.vocabulary, shape.width), dtype)
    table = (table / shape.width**0.5).astype(dtype)
    targets = jax.random.randint(targets_key, (shape.tokens,), 0, shape.vocabulary)
    return hidden, table, targets


def _compiled(chip: str, shape: XentShape) -> list[dict[str, Any]]:
    hidden, table, targets = jax.eval_shape(functools.partial(_arguments, shape, jnp.bfloat16))
    turned = jax.ShapeDtypeStruct(table.shape[::-1], table.dtype)
    forms: dict[str, tuple[Form, Any]] = {
        "definition": (_ours("xla"), table),
        "chunked": (_ours("chunked"), table),
    }
    if importlib.util.find_spec("tokamax"):
        forms["tokamax"] = (functools.partial(_tokamax_kernel, chip), turned)

    # The least that the chip could take, by its arithmetic or by its memory.
    flops_s, bytes_s = described.PEAKS[chip]
    floor_bytes = _floor_bytes(shape, hidden, table)
    least_s = max(2 * _flops(shape) / flops_s, floor_bytes / bytes_s)
    rows = []
    for name, (form, given) in forms.items():
        found = described.described(chip, form, (hidden, given, targets))
        row = {
            "chip": chip,
            "shape": shape.name,
            "form": name,
            "floor_bytes": floor_bytes,
            "least_ms": 1e3 * least_s,
            "fits": found is not None,
        }
        if found is not None:
            row |= _counted(shape, name, found)
        rows.append(row)
    return rows


def _counted(shape: XentShape, form: str, found: described.Described) -> dict[str, Any]:
    """Temporaries, and for our forms where float32 logits lie, whole or as a tile."""
    if form == "tokamax":
        return {"temporary_bytes": found.temporary_bytes}
    chunk, tokens = tile(shape.tokens, shape.vocabulary, shape.width, 2)
    whole = described.placed(found.program, "f32", (shape.tokens, shape.vocabulary))
    tiles = described.placed(found.program, "f32", (tokens, chunk))
    logits = {"whole_logits": whole._asdict(), "tiles_of_logits": tiles._asdict()}
    return {"temporary_bytes": found.temporary_bytes, **logits}


def _flops(shape: XentShape) -> int:
    """Of one product of all tokens with the table."""
    return 2 * shape.tokens * shape.width * shape.vocabulary


def _floor_bytes(shape: XentShape, hidden: Any, table: Any) -> int:
    """Both operands read once for the loss and once for the gradient, the gradient written."""
    return 3 * num_bytes(hidden) + 2 * num_bytes(table)
