"""The page of an acceptance: what passed, what failed, and the numbers, as Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.accept import outcome
from experiments.accept.outcome import FAILED, LEFT_OUT, PASSED, Result
from experiments.accept.stages import STAGES
from experiments.bench import table
from snake_jax.cli.accounting_tables import table as lines_of_table

NAMES = ("accept.md", "accept.json")
DESCRIBED = ("described.md", "described.json")


def exit_code(results: Sequence[Result]) -> int:
    """0: all passed; 1: something failed; 3: nothing failed, and not all of it fitted."""
    found = {result.status for result in results}
    if FAILED in found:
        return 1
    return 3 if LEFT_OUT in found else 0


def write(folder: Path, command: str, results: Sequence[Result]) -> list[Path]:
    """Both files, anew."""
    machine = _machine(results)
    content = {
        "command": command,
        "machine": machine,
        "exit_code": exit_code(results),
        "stages": [outcome.as_json(result) for result in results],
    }
    page, numbers = (folder / name for name in NAMES)
    numbers.write_text(json.dumps(content, indent=1) + "\n")
    page.write_text(markdown(command, machine, results))
    return [page, numbers]


def _machine(results: Sequence[Result]) -> Mapping[str, Any]:
    """Of the first stage that got so far as to say."""
    for result in results:
        if result.machine:
            return result.machine
    return {}


def markdown(command: str, machine: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The page."""
    device = machine.get("device", "a device that did not start")
    parts = [f"# Acceptance on {device}", f"`{command}`"]
    known = [f"{name} {value}" for name, value in machine.items() if value is not None]
    parts.append(", ".join(known))

    # First what a reader wants to know: which stages passed.
    about = {stage.name: stage.about for stage in STAGES}
    body = []
    for result in results:
        body.append([result.stage, about[result.stage], result.status, f"{result.took_s:.0f} s"])
    parts.append(lines_of_table(["stage", "passes where", "", "took"], body))

    lines = []
    for result in results:
        for line in outcome.unmet(result.outcome):
            lines.append(f"- **{result.stage}**: {line}")
    if lines:
        parts += ["## What failed", "\n".join(lines)]
    for result in results:
        parts += _section(result)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(result: Result) -> list[str]:
    """A stage's numbers; a word on one that did not fit."""
    parts = [f"## {result.stage}"]
    if result.status == LEFT_OUT:
        return [*parts, f"Did not fit: {result.outcome.notes[0]}."]
    if result.outcome.rows:
        parts.append(table.markdown(result.outcome.rows))
    elif result.status == PASSED:
        parts.append("No number.")
    parts += result.outcome.notes
    return parts


def write_described(folder: Path, command: str, result: Result) -> list[Path]:
    """Both files of programs that were compiled for a chip that need not be there.

    Args:
      folder: for them.
      command: that compiled them.
      result: a row for each program, its subject `STAGE: PROGRAM`; its stage is the chip's name.
    """
    rows = [row for row in result.outcome.rows if row.name == "reserved"]
    machine = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    parts = [f"# Programs compiled for {result.stage}", f"`{command}`", machine]

    # First how many there are of each stage, and what the greatest of them takes.
    by_stage: dict[str, list[float]] = {}
    for row in rows:
        by_stage.setdefault(row.subject.split(": ")[0], []).append(row.value)
    body = []
    for stage, reserved in by_stage.items():
        body.append([stage, str(len(reserved)), f"{max(reserved):,.0f} MB"])
    parts.append(lines_of_table(["stage", "compiled", "the greatest reserves"], body))
    parts.append(f"{len(rows)} compiled, {len(result.outcome.failures)} refused.")
    if result.outcome.failures:
        parts.append("\n".join(f"- {line}" for line in result.outcome.failures))
    parts.append(table.markdown(rows))

    folder.mkdir(parents=True, exist_ok=True)
    page, numbers = (folder / name for name in DESCRIBED)
    content = {"command": command, **outcome.as_json(result)}
    numbers.write_text(json.dumps(content, indent=1) + "\n")
    page.write_text("\n\n".join(parts) + "\n")
    return [page, numbers]
