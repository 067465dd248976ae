"""Stage `speed`: kernels beside the compiler's own operations and other libraries'."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from experiments.accept.outcome import Outcome, line_of
from experiments.accept.sizes import Sizes
from experiments.accept.stages import Given
from experiments.bench.kernels import conv, distill_xent, quant_matmul
from experiments.bench.rows import LOWER, Row
from snake_jax.costs import roofline
from snake_jax.kernels.distill_xent.shapes import XentShape
from snake_jax.kernels.quant_matmul.shapes import QuantShape

MOST_OVER_FASTEST = 1.25
"""What runs by default, over the fastest of our forms."""
NOTES = (
    "Medians of interleaved calls. `default` is the form that training takes on this device; over "
    f"the fastest of ours it is at most {MOST_OVER_FASTEST:g}. Peers have no goal.",
)
_PEERS = ("qwix", "tokamax", "dense weight", "torch", "product")


def run(given: Given) -> Outcome:
    """One shape at a time: what does not run leaves the others alone."""
    rows: list[Row] = []
    failures = []
    for name, measure in suites(given.sizes):
        try:
            rows += measure()
        except Exception as error:
            failures.append(f"{name}: {line_of(error)}")
    return Outcome(rows, failures, NOTES)


def suites(sizes: Sizes) -> Iterable[tuple[str, Callable[[], list[Row]]]]:
    """Every measurement with its name."""

    peaks = roofline.measured_peaks(sizes.repeats)

    def product(shape: QuantShape) -> list[Row]:
        rows = []
        for kind in quant_matmul.KINDS:
            timed = quant_matmul.timed(shape, kind, peaks, sizes.repeats)
            rows += _forms("quant_matmul", timed, _of_product, sizes.held)
        return rows

    def loss(shape: XentShape) -> list[Row]:
        timed = distill_xent.timed(shape, peaks, sizes.repeats)
        return _forms("distill_xent", timed, _of_loss, sizes.held)

    for product_shape in sizes.timed_products:
        yield f"quant_matmul, {product_shape.name}", functools.partial(product, product_shape)
    for loss_shape in sizes.timed_losses:
        yield f"distill_xent, {loss_shape.name}", functools.partial(loss, loss_shape)
    yield "conv2d", functools.partial(_convolutions, sizes)


def _of_product(row: Mapping[str, Any]) -> str:
    """The form that is the default for a product: see `quant_matmul`'s `auto`."""
    kernel = jax.default_backend() == "tpu" and row["kind"] == "nf4"
    return "mosaic_tpu" if kernel else "xla"


def _of_loss(row: Mapping[str, Any]) -> str:
    del row
    return "chunked"


def _forms(
    kernel: str,
    timed: Iterable[Mapping[str, Any]],
    default: Callable[[Mapping[str, Any]], str],
    held: bool,
) -> list[Row]:
    """Rows of one table: each form's time, and the default's over the fastest of ours."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in timed:
        words = [kernel, row["shape"], row.get("kind", ""), row.get("pass", "")]
        subject = ", ".join(word for word in words if word)
        groups.setdefault(subject, []).append(row)
    rows = []
    for subject, forms in groups.items():
        by_form = {form["form"]: form["median_ms"] for form in forms}
        rows += _compared(subject, by_form, default(forms[0]), held)
    return rows


def _compared(subject: str, by_form: Mapping[str, float], default: str, held: bool) -> list[Row]:
    """Of one shape; with a goal where times are held to one."""
    table = "Kernels, times"
    rows = []
    for form, median_ms in by_form.items():
        rows.append(Row(table, subject, form, median_ms, "ms"))
    ours = [median_ms for form, median_ms in by_form.items() if form not in _PEERS]
    over = by_form[default] / min(ours)
    goal = Row(table, subject, "default / fastest of ours", over)
    rows.append(goal._replace(better=LOWER, limit=MOST_OVER_FASTEST if held else None))
    for peer in _PEERS:
        if peer in by_form:
            share = by_form[default] / by_form[peer]
            rows.append(Row(table, subject, f"default / {peer}", share))
    return rows


def _convolutions(sizes: Sizes) -> list[Row]:
    """Every pass of every layer; `ours` is the default of CPUs alone."""
    result = conv.run(sizes.repeats, sizes.network, with_torch=False, size=512)
    default = "ours" if jax.default_backend() == "cpu" else "xla"
    rows = []
    for layer in result["layers"]:
        by_form = {}
        for side in ("ours", "xla", "product"):
            by_form[side] = layer[side]["median_ms"]
        subject = f"conv2d, {layer['layer']}, {layer['pass']}"
        rows += _compared(subject, by_form, default, sizes.held)
    return rows
