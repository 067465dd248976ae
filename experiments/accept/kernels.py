"""Stage `kernels`: every form of every kernel beside its reference, in the device's precisions."""

import jax

from experiments.accept.outcome import Outcome, line_of
from experiments.accept.stages import Given
from experiments.accept.values import Comparison, comparisons, exact, off
from experiments.bench.rows import LOWER, Row

TABLE = "Off the exact values, of the greatest"
TIMES_OWN = 4.0
ROUNDING = 2e-6
"""What a few roundings of float32 are off, of any operation."""
_UNIT = 2.0**-24
"""The most that one rounding of float32 is off."""
NOTES = (
    "Exact: the reference in float32, products in full precision. A form may be off by "
    f"{TIMES_OWN:g} times what the compiler's own operation is off in the same precision, or by "
    f"{ROUNDING:g}, or what a sum in another order may be. Values and gradients.",
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


def allowed(own: float, terms: int) -> float:
    """What a form may be off, of the greatest value.

    A sum of n numbers in another order has other roundings: n of them, each at most a unit of a
    partial sum, that have nothing to do with one another. So they add up to sqrt(n) units.

    Args:
      own: what the compiler's own operation is off.
      terms: n, of the longest sum.
    """
    return max(TIMES_OWN * own, ROUNDING, _UNIT * terms**0.5)


def compared(comparison: Comparison, failures: list[str]) -> list[Row]:
    """A row for each form; what fails is added to `failures`."""
    arrays = comparison.make()
    expected = exact(comparison, arrays)
    own = off(jax.jit(comparison.own)(*arrays), expected)
    subject = comparison.subject
    rows = [Row(TABLE, subject, "compiler's own", own)]
    limit = allowed(own, comparison.terms)
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
