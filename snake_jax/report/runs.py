"""Reads run folders: what a run did, visit by visit, and the curves that follow from it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snake_jax.errors import UserError
from snake_jax.report.merits import Merit, Record, merit_of_lines


class Run(NamedTuple):
    """What one run folder holds.

    Attributes:
      path: of the folder.
      config: of config.json, empty where there is none.
      metrics: the lines of metrics.jsonl. Each is about one visit or round alone.
      summary: of summary.json, which is written when the run ends; None before.
      name: that tells it from the other runs of a report.
    """

    path: Path
    config: Record
    metrics: list[Record]
    summary: Record | None
    name: str


class Axis(NamedTuple):
    """What a curve can be drawn against.

    Attributes:
      label: as people read it.
      unit: as `units.human` takes it.
      fields: of a line of metrics.jsonl; the position is their running total.
    """

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
# Runs on text count tokens as well.
TOKEN_AXES = {**AXES, "tokens": Axis("tokens seen", "", ("tokens",))}


def counts_tokens(run: Run) -> bool:
    """Whether the run trained on text, which its lines tell."""
    return has_measured(run, "tokens")


def axes_of(run: Run) -> dict[str, Axis]:
    """What the run's curves can be drawn against."""
    return TOKEN_AXES if counts_tokens(run) else AXES


def has_measured(run: Run, field: str) -> bool:
    """Whether some line of the run has a value in the field."""
    return any(record.get(field) is not None for record in run.metrics)


def merit_of(run: Run) -> Merit:
    """The run's figure of merit."""
    return merit_of_lines(run.metrics)


def common_merit(runs: Sequence[Run]) -> Merit:
    """The figure of merit that all runs share.

    Raises:
      UserError: they have different ones.
    """
    first = merit_of(runs[0])
    for run in runs:
        other = merit_of(run)
        if other != first:
            raise UserError(
                f"{runs[0].name} is measured by its {first.name} and {run.name} by its "
                f"{other.name}: they have no common measure; give runs of one kind"
            )
    return first


def read_run(path: str | Path) -> Run:
    """The run in folder `path`, finished or still going.

    Raises:
      UserError: no such folder, nothing measured yet, or a file that is no JSON (named with its
        line).
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the --workdir of a run")
    metrics = _read_lines(path / "metrics.jsonl")
    if not metrics:
        raise UserError(
            f"{path / 'metrics.jsonl'}: nothing measured; the run has not finished its first visit"
        )
    config = _read_object(path / "config.json") or {}
    summary = _read_object(path / "summary.json")
    return Run(path, config, metrics, summary, path.resolve().name)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Several runs, each named by as much of the end of its path as tells it from the others.

    Raises:
      UserError: one folder is given twice, or what `read_run` raises.
    """
    runs = [read_run(path) for path in paths]
    parts = [run.path.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise UserError(f"{', '.join(map(str, paths))}: the same run twice")
    # Longer and longer ends, until no two are alike.
    depth = 1
    ends = [path[-depth:] for path in parts]
    while len(set(ends)) < len(ends):
        depth += 1
        ends = [path[-depth:] for path in parts]
    named = []
    for run, end in zip(runs, ends, strict=True):
        named.append(run._replace(name="/".join(end)))
    return named


def config_of(run: Run) -> Record:
    """The configuration, which summary.json has a copy of."""
    return run.config or (run.summary or {}).get("config") or {}


def settings_of(run: Run) -> Record:
    """All that the run says of itself as a whole: its summary, and its configuration over that."""
    return {**(run.summary or {}), **config_of(run)}


def from_summary(run: Run, key: str, otherwise: Any = None) -> Any:
    """A value of summary.json.

    Args:
      run: to read.
      key: of the summary.
      otherwise: what is given where the run is not finished, or has no such value.
    """
    value = (run.summary or {}).get(key)
    return otherwise if value is None else value


def cumulative(run: Run, field: str) -> np.ndarray:
    """`[visits]` running total of a field after each visit; null counts as nothing."""
    amounts = [record.get(field) or 0 for record in run.metrics]
    return np.cumsum(amounts, dtype=np.float64)


def total(run: Run, field: str) -> float:
    """Sum of a field over the run so far."""
    return float(cumulative(run, field)[-1])


def along(run: Run, axis: str) -> np.ndarray:
    """`[visits]` position on an axis after each visit.

    Raises:
      UserError: `axis` is none of `axes_of(run)`.
    """
    axes = axes_of(run)
    if axis not in axes:
        raise UserError(f"axis {axis}: not one of {', '.join(axes)}")
    totals = [cumulative(run, field) for field in axes[axis].fields]
    return np.sum(totals, axis=0)


def curve(run: Run, axis: str, field: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The visits at which a field was measured.

    Args:
      run: to read.
      axis: one of `axes_of(run)`.
      field: of the lines; by default the figure of merit's.

    Returns:
      `[evaluations]` positions on the axis, and `[evaluations]` values of the field.
    """
    if field is None:
        field = merit_of(run).field
    values = np.array([_number(record.get(field)) for record in run.metrics])
    known = np.isfinite(values)
    return along(run, axis)[known], values[known]


def curve_from_start(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """As `curve`, led by what the model was before training where that is known."""
    x, y = curve(run, axis)
    start = before(run)
    if start is None:
        return x, y
    x_from_start = np.concatenate([[0.0], x])
    y_from_start = np.concatenate([[start], y])
    return x_from_start, y_from_start


def cost_to_reach(run: Run, target: float, axis: str) -> float | None:
    """Position of the first evaluation at least as good as `target`; None without one.

    Args:
      run: to read.
      target: of its figure of merit.
      axis: one of `axes_of(run)`.
    """
    x, y = curve(run, axis)
    good = y <= target if merit_of(run).lower_is_better else y >= target
    reached = np.flatnonzero(good)
    return float(x[reached[0]]) if reached.size else None


def before(run: Run) -> float | None:
    """The figure of merit of the model that training began with, where the summary records it."""
    key = merit_of(run).before
    return None if key is None else from_summary(run, key)


def final(run: Run) -> float | None:
    """The figure of merit of the finished model, or at the last evaluation of an unfinished run."""
    merit = merit_of(run)
    return from_summary(run, merit.final, last(run, merit.field))


def best(run: Run) -> float | None:
    """The figure of merit at the best evaluation."""
    merit = merit_of(run)
    _, values = curve(run, "iterations")
    if not values.size:
        return from_summary(run, merit.best)
    extreme = values.min() if merit.lower_is_better else values.max()
    return from_summary(run, merit.best, float(extreme))


def last(run: Run, field: str) -> float | None:
    """A field at the last visit that measured it; None where none did."""
    _, values = curve(run, "iterations", field)
    return float(values[-1]) if values.size else None


def throughput(run: Run) -> float | None:
    """Tokens a second of training, over the whole run; None where either was not measured."""
    seconds = total(run, "train_s")
    if not seconds or not counts_tokens(run):
        return None
    return total(run, "tokens") / seconds


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _read_lines(path: Path) -> list[Record]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    # A running job may be in the middle of writing its last line.
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            records.append(_parse(line, f"{path}, line {number}"))
    return records


def _read_object(path: Path) -> Record | None:
    return _parse(path.read_text(), str(path)) if path.exists() else None


def _parse(text: str, where: str) -> Record:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: broken JSON ({error.msg}); remove the damaged line or run again"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object was expected; remove the line or run again")
    return record
