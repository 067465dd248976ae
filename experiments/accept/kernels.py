"""Stage `kernels`: every form of every kernel beside its reference, in the device's precisions."""

import jax

from experiments.accept.outcome import Outcome, line_of
from experiments.accept.stages import Given
from experiments.accept.values import Comparison, comparisons, exact, off
from experiments.bench.rows import LOWER, Row

TABLE = "Off the exact values, of the greatest"
TIMES_OWN = 4.0
ROUNDING = 2e-6
"""A sum in another order is off by some roundings of float32."""
NOTES = (
    "Exact: the reference in float32, products in full precision. A form may be off by "
    f"{TIMES_OWN:g} times what the compiler's own operation is off in the same precision, or by "
    f"{ROUNDING:g}. Values and gradients.",
)


def run(given: Given) -> Outcome:
    """One that does not run leaves the others alone."""
    rows: list[Row] = []
    failures: list[str] = []
    for comparison in comparisons(given.sizes, jax.default_backend()):
        try:
            rows += compared(comparison, failures)
        except Exception as error:
            failures.append(f"{comparison.subject}: {line_of(error)}")
    return Outcome(rows, failures, NOTES)


def compared(comparison: Comparison, failures: list[str]) -> list[Row]:
    """A row for each form; what fails is added to `failures`."""
    arrays = comparison.make()
    expected = exact(comparison, arrays)
    own = off(jax.jit(comparison.own)(*arrays), expected)
    subject = comparison.subject
    rows = [Row(TABLE, subject, "compiler's own", own)]
    limit = max(TIMES_OWN * own, ROUNDING)
    for name, form in comparison.forms.items():
        if form is comparison.own:
            continue
        try:
            found = off(jax.jit(form)(*arrays), expected)
        except Exception as error:
            failures.append(f"{subject}, {name}: {line_of(error)}")
            continue
        share = found / limit
        rows.append(Row(TABLE, subject, f"{name} / allowed", share, better=LOWER, limit=1.0))
    return rows
