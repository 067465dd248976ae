"""Reading run folders: what a run did, visit by visit, and the curves that follow from it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snake_jax.errors import UserError

Record = dict[str, Any]


class Run(NamedTuple):
    """One run folder. `metrics` has a record per visit or round, each of that visit alone; `summary` ends a run."""

    path: Path
    config: Record
    metrics: list[Record]
    summary: Record | None
    name: str


class Axis(NamedTuple):
    """What an accuracy curve can be drawn against: a label, a unit and the metrics fields that add up to it."""

    label: str
    unit: str
    fields: tuple[str, ...]


AXES = {
    "iterations": Axis("iterations", "", ("iterations",)),
    "examples": Axis("examples seen", "", ("examples",)),
    "bytes": Axis("bytes sent, up and down", "B", ("bytes_up", "bytes_down")),
    "flops": Axis("training work", "FLOP", ("train_flops",)),
    "seconds": Axis("training time", "s", ("train_s",)),
}


def read_run(path: str | Path) -> Run:
    """The run in folder `path`, finished or still going.

    Raises:
      UserError: no such folder, nothing measured yet, or a file that is no JSON (named with its line).
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the --workdir of a run")
    metrics = _read_lines(path / "metrics.jsonl")
    if not metrics:
        raise UserError(f"{path / 'metrics.jsonl'}: nothing measured; the run has not finished its first visit")
    summary = _read_object(path / "summary.json")
    return Run(path, _read_object(path / "config.json") or {}, metrics, summary, path.resolve().name)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Several runs, under names that tell them apart: as much of the end of each path as that takes."""
    runs = [read_run(path) for path in paths]
    tails = [run.path.resolve().parts for run in runs]
    if len(set(tails)) < len(tails):
        raise UserError(f"{', '.join(map(str, paths))}: the same run twice")
    depth = next(n for n in range(1, max(map(len, tails)) + 1) if len({tail[-n:] for tail in tails}) == len(tails))
    return [run._replace(name="/".join(tail[-depth:])) for run, tail in zip(runs, tails, strict=True)]


def cumulative(run: Run, field: str) -> np.ndarray:
    """`[visits]` running total of a field after each visit; null counts as nothing."""
    return np.cumsum([record.get(field) or 0 for record in run.metrics], dtype=np.float64)


def along(run: Run, axis: str) -> np.ndarray:
    """`[visits]` position on one of AXES after each visit."""
    if axis not in AXES:
        raise UserError(f"axis {axis}: not one of {', '.join(AXES)}")
    return np.sum([cumulative(run, field) for field in AXES[axis].fields], axis=0)


def curve(run: Run, axis: str, field: str = "accuracy") -> tuple[np.ndarray, np.ndarray]:
    """(position on `axis`, value of `field`) at the visits where the field was measured."""
    values = np.array([_number(record.get(field)) for record in run.metrics])
    known = np.isfinite(values)
    return along(run, axis)[known], values[known]


def cost_to_reach(run: Run, accuracy: float, axis: str) -> float | None:
    """Position on `axis` of the first evaluation at or above `accuracy`; None where there was none."""
    x, y = curve(run, axis)
    reached = np.flatnonzero(y >= accuracy)
    return float(x[reached[0]]) if reached.size else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _read_lines(path: Path) -> list[Record]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A running job may be in the middle of writing its last line.
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read_object(path: Path) -> Record | None:
    return _parse(path.read_text(), str(path)) if path.exists() else None


def _parse(text: str, where: str) -> Record:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg}); remove the damaged line or run again") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object was expected; remove the line or run again")
    return record
