"""Reading run folders: what a run did, visit by visit, and the curves that follow from it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snake_jax.errors import UserError
from snake_jax.report.units import percent, significant

Record = dict[str, Any]


class Run(NamedTuple):
    """One run folder. `metrics` has a record per visit or round, each of that visit alone;
    `summary` ends a run.
    """

    path: Path
    config: Record
    metrics: list[Record]
    summary: Record | None
    name: str


class Axis(NamedTuple):
    """What a curve can be drawn against: a label, a unit and the metrics fields that add up to
    it.
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
_TOKENS = {"tokens": Axis("tokens seen", "", ("tokens",))}


class Merit(NamedTuple):
    """The figure of merit of a run: one number that says how good its model is, and how that number
    is read.

    Attributes:
      field: of a line of metrics.jsonl.
      final: of summary.json, of the finished model.
      best: of summary.json, of the best evaluation.
      target: of summary.json and config.json, what `cost_to_reach` is asked for.
      split: what it is measured on.
      unit: `%` is a share, two of which differ by points; values without a unit differ by a factor.
      lower_is_better: and otherwise higher.
      show: as people read it.
      said: as a phrase around what `show` gives.
      axes: what its curves can be drawn against.
      pictured: those of `axes` that a picture shows by itself.
    """

    field: str
    final: str
    best: str
    target: str
    split: str
    unit: str
    lower_is_better: bool
    show: Callable[[float], str]
    said: str
    axes: Mapping[str, Axis]
    pictured: tuple[str, ...]

    @property
    def label(self) -> str:
        """Of an axis or a column: `test accuracy`."""
        return f"{self.split} {self.field}"


ACCURACY = Merit(
    field="accuracy",
    final="final_accuracy",
    best="best_accuracy",
    target="target_accuracy",
    split="test",
    unit="%",
    lower_is_better=False,
    show=percent,
    said="{} accuracy",
    axes=AXES,
    pictured=tuple(AXES),
)
# Of a language model: exp of the mean negative log-likelihood of a token.
PERPLEXITY = Merit(
    field="perplexity",
    final="perplexity_after",
    best="best_perplexity",
    target="target_perplexity",
    split="held-out",
    unit="",
    lower_is_better=True,
    show=significant,
    said="perplexity {}",
    axes={**AXES, **_TOKENS},
    # Tokens in place of examples: rows of a text are cut and packed, and say little.
    pictured=("iterations", "tokens", "bytes", "flops", "seconds"),
)


def merit(run: Run) -> Merit:
    """Perplexity where the run's lines have such a field, evaluated yet or not; accuracy
    elsewhere.
    """
    return merit_of_lines(run.metrics)


def merit_of_lines(lines: Sequence[Record]) -> Merit:
    """As `merit`, of lines alone."""
    return PERPLEXITY if any(PERPLEXITY.field in line for line in lines) else ACCURACY


def common_merit(runs: Sequence[Run]) -> Merit:
    """The one of all runs.

    Raises:
      UserError: some have perplexity and some accuracy.
    """
    first = merit(runs[0])
    for run in runs:
        if (other := merit(run)) != first:
            raise UserError(
                f"{runs[0].name} is measured by its {first.field} and {run.name} by its "
                f"{other.field}: "
                "they have no common measure; give runs of one kind"
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
    summary = _read_object(path / "summary.json")
    return Run(
        path, _read_object(path / "config.json") or {}, metrics, summary, path.resolve().name
    )


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Several runs, under names that tell them apart: as much of the end of each path as that
    takes.
    """
    runs = [read_run(path) for path in paths]
    tails = [run.path.resolve().parts for run in runs]
    if len(set(tails)) < len(tails):
        raise UserError(f"{', '.join(map(str, paths))}: the same run twice")
    depth = next(
        n
        for n in range(1, max(map(len, tails)) + 1)
        if len({tail[-n:] for tail in tails}) == len(tails)
    )
    return [
        run._replace(name="/".join(tail[-depth:])) for run, tail in zip(runs, tails, strict=True)
    ]


def cumulative(run: Run, field: str) -> np.ndarray:
    """`[visits]` running total of a field after each visit; null counts as nothing."""
    return np.cumsum([record.get(field) or 0 for record in run.metrics], dtype=np.float64)


def along(run: Run, axis: str) -> np.ndarray:
    """`[visits]` position on one of the axes of the run's merit after each visit."""
    axes = merit(run).axes
    if axis not in axes:
        raise UserError(f"axis {axis}: not one of {', '.join(axes)}")
    return np.sum([cumulative(run, field) for field in axes[axis].fields], axis=0)


def curve(run: Run, axis: str, field: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(position on `axis`, value of `field`) at the visits where the field was measured; by default
    the merit's.
    """
    values = np.array([_number(record.get(field or merit(run).field)) for record in run.metrics])
    known = np.isfinite(values)
    return along(run, axis)[known], values[known]


def curve_from_start(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The curve of the merit, led by what the model was before training where that is known."""
    x, y = curve(run, axis)
    start = before(run)
    return (x, y) if start is None else (np.concatenate([[0.0], x]), np.concatenate([[start], y]))


def cost_to_reach(run: Run, target: float, axis: str) -> float | None:
    """Position on `axis` of the first evaluation at least as good as `target`; None where there was
    none.
    """
    x, y = curve(run, axis)
    reached = np.flatnonzero(y <= target if merit(run).lower_is_better else y >= target)
    return float(x[reached[0]]) if reached.size else None


def before(run: Run) -> float | None:
    """The merit of the model that training began with; known of finished fine-tuning runs."""
    return (run.summary or {}).get(f"{merit(run).field}_before")


def final(run: Run) -> float | None:
    """The merit of the finished model, or at the last evaluation of a run that still goes."""
    known = curve(run, "iterations")[1]
    return from_summary(run, merit(run).final, float(known[-1]) if known.size else None)


def best(run: Run) -> float | None:
    """The merit at the best evaluation."""
    known, one = curve(run, "iterations")[1], merit(run)
    extreme = (known.min if one.lower_is_better else known.max) if known.size else None
    return from_summary(run, one.best, float(extreme()) if extreme else None)


def from_summary(run: Run, key: str, otherwise: Any = None) -> Any:
    """A value of summary.json; `otherwise` where there is none."""
    value = (run.summary or {}).get(key)
    return otherwise if value is None else value


def setting(run: Run, key: str) -> Any:
    """Of the summary or else the configuration."""
    return from_summary(run, key, run.config.get(key))


def throughput(run: Run) -> float | None:
    """Tokens a second of training, over the whole run; None where no time was measured."""
    seconds = cumulative(run, "train_s")[-1]
    return float(cumulative(run, "tokens")[-1] / seconds) if seconds else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _read_lines(path: Path) -> list[Record]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A running job may be in the middle of writing its last line.
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


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
