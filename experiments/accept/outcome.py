"""What a stage finds, and its file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.bench.rows import Row
from snake_jax.errors import UserError

PASSED, FAILED, LEFT_OUT = "passed", "failed", "did not fit"


class Outcome(NamedTuple):
    """What a stage finds.

    Attributes:
      rows: numbers; one whose limit is not met makes the stage fail.
      failures: what did not run at all, a line each.
      notes: what a reader of the numbers must know.
    """

    rows: Sequence[Row]
    failures: Sequence[str] = ()
    notes: Sequence[str] = ()


class Result(NamedTuple):
    """How a stage ended.

    Attributes:
      stage: its name.
      status: PASSED, FAILED or LEFT_OUT.
      scale: of the sizes that it ran at.
      took_s: seconds, with the start of its process.
      outcome: what it found.
      machine: processor, device and versions; empty where it did not get so far.
    """

    stage: str
    status: str
    scale: str
    took_s: float
    outcome: Outcome
    machine: Mapping[str, Any] = {}


def unmet(outcome: Outcome) -> list[str]:
    """All that makes a stage fail, a line each."""
    lines = list(outcome.failures)
    for row in outcome.rows:
        if row.met is False:
            sign = "at most" if row.better == "lower" else "at least"
            told = f"{row.value:.4g} {row.unit}".strip()
            lines.append(f"{row.subject}, {row.name}: {told}, want {sign} {row.limit:.4g}")
    return lines


def status_of(outcome: Outcome) -> str:
    """PASSED, or FAILED of anything that is not as it should be."""
    return FAILED if unmet(outcome) else PASSED


def failed(stage: str, scale: str, took_s: float, line: str) -> Result:
    """The result of a stage that found nothing but why."""
    return Result(stage, FAILED, scale, took_s, Outcome((), (line,)))


def left_out(stage: str, scale: str, took_s: float, line: str) -> Result:
    """The result of a stage for which there was no time; the line says how that was."""
    return Result(stage, LEFT_OUT, scale, took_s, Outcome((), (), (line,)))


def last_line(text: str) -> str:
    """The last line that says anything: of a traceback that is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def line_of(error: BaseException) -> str:
    """An error as one line, of the length that a table takes."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300]


def file_of(folder: Path, stage: str) -> Path:
    """Where a stage's result lies."""
    return folder / "stages" / f"{stage}.json"


def write(folder: Path, result: Result) -> None:
    """Writes a result; a kill leaves the file before it or the whole new one."""
    file = file_of(folder, result.stage)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(as_json(result), indent=1) + "\n")
    os.replace(beside, file)


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON has it."""
    outcome = result.outcome
    return {
        "stage": result.stage,
        "status": result.status,
        "scale": result.scale,
        "took_s": round(result.took_s, 1),
        "machine": dict(result.machine),
        "failures": list(outcome.failures),
        "notes": list(outcome.notes),
        "rows": [row._asdict() for row in outcome.rows],
    }


def read(folder: Path, stage: str) -> Result | None:
    """What `write` wrote; None where the stage has not ended yet.

    Raises:
      UserError: the file is damaged.
    """
    file = file_of(folder, stage)
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        rows = [Row(**row) for row in found["rows"]]
        outcome = Outcome(rows, found["failures"], found["notes"])
        about = (found["stage"], found["status"], found["scale"], found["took_s"])
        return Result(*about, outcome, found["machine"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it, and its stage runs again") from None
