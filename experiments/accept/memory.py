"""Stage `memory`: what a device holds at most in a step, beside what was compiled for it."""

from experiments.accept import alone
from experiments.accept.outcome import Outcome, line_of
from experiments.accept.stages import Given
from experiments.bench.rows import LOWER, Row

TABLE = "Measured and compiled peak"
MOST_OVER = 1.1
"""The measured peak over the compiled one: libraries keep some memory for themselves."""
UNTOLD = "This device does not tell what it held at most."


def run(given: Given) -> Outcome:
    """Every step, from the least memory, since a device remembers the most that it ever held."""
    rows: list[Row] = []
    failures = []
    notes = []
    for step in given.sizes.memory:
        try:
            seen = alone.seen(step, 1)
        except Exception as error:
            failures.append(f"{step.subject}: {line_of(error)}")
            continue
        rows.append(Row(TABLE, step.subject, "compiled", seen.compiled_bytes / 1e6, "MB"))
        if seen.held_bytes is None:
            notes.append(f"{step.subject}: not told, or more was held before.")
            continue
        rows.append(Row(TABLE, step.subject, "measured", seen.held_bytes / 1e6, "MB"))
        share = seen.held_bytes / seen.compiled_bytes
        limit = MOST_OVER if given.sizes.held else None
        rows.append(
            Row(TABLE, step.subject, "measured / compiled", share, better=LOWER, limit=limit)
        )
    if given.sizes.held and not any(row.name == "measured" for row in rows):
        failures.append(UNTOLD)
    return Outcome(rows, failures, notes)
