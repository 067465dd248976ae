"""The comparison of runs as text, markdown or JSON: what was reached, and what was saved."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from snake_jax.errors import UserError
from snake_jax.report.merits import Merit
from snake_jax.report.rows import TableRow, cost_rows, groups
from snake_jax.report.runs import Run, common_merit, final
from snake_jax.report.units import UNKNOWN, percent

FORMATS = ("text", "markdown", "json")
# Rows of the table that the headline repeats: (key, word where it is more, where it is less, what).
_HEADLINE = (
    ("train_flops", "more", "fewer", "training FLOPs"),
    ("peak_train_bytes", "more", "less", "memory at a node"),
    ("bytes", "more", "fewer", "bytes sent"),
)


class Table(NamedTuple):
    """Cells as printed.

    Attributes:
      head: the headings of the columns, without that of the labels.
      body: (label, cells); a heading of a group has no cells.
    """

    head: list[str]
    body: list[tuple[str, list[str]]]


def comparison_table(runs: Sequence[Run], format: str = "text") -> str:
    """Runs side by side; each after the first has its ratio to the first.

    With several runs a sentence leads for each other one: what the first saves against it.

    Raises:
      UserError: an unknown format, or runs without a common figure of merit.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: not one of {', '.join(FORMATS)}")
    return {"text": _text, "markdown": _markdown, "json": _json}[format](runs)


def headline(run: Run, other: Run) -> str:
    """One sentence: the figure of merit, bytes, FLOPs and memory of `run` against `other`.

    Raises:
      UserError: they have different figures of merit.
    """
    merit = common_merit([run, other])
    ours, theirs = final(run), final(other)
    parts = []
    if ours is not None and theirs is not None:
        parts.append(_merit_difference(merit, ours, theirs))
    rows = {row.key: row for row in cost_rows()}
    for key, more, less, what in _HEADLINE:
        ours, theirs = rows[key].value(run), rows[key].value(other)
        if ours is not None and theirs:
            parts.append(f"{_change(ours / theirs - 1, more, less)} {what}")
    return f"{run.name} against {other.name}: {', '.join(parts) or 'nothing to compare yet'}"


def _merit_difference(merit: Merit, ours: float, theirs: float) -> str:
    if merit.is_share:
        return f"final {merit.name} {_points(ours, theirs)}"
    both = f"{merit.show(ours)} against {merit.show(theirs)}"
    return f"final {merit.name} {both} ({_factor(ours, theirs)})"


def _change(share: float, more: str, less: str) -> str:
    if abs(share) < 5e-4:
        return "the same"
    return f"{percent(abs(share))} {less if share < 0 else more}"


def _points(ours: float, theirs: float) -> str:
    return f"{100 * (ours - theirs):+.1f} points"


def _factor(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}x" if theirs else ""


def _set_against(row: TableRow, value: Any, first: Any) -> str:
    if not row.against or value is None or first is None:
        return ""
    return _points(value, first) if row.against == "difference" else _factor(value, first)


def _cells(row: TableRow, runs: Sequence[Run]) -> list[str]:
    """The first run's value, then each other run's and how it stands to the first."""
    values = [row.value(run) for run in runs]
    shown = [UNKNOWN if value is None else row.show(value) for value in values]
    cells = shown[:1]
    for value, text in zip(values[1:], shown[1:], strict=True):
        cells += [text, _set_against(row, value, values[0])]
    return cells


def _table(runs: Sequence[Run]) -> Table:
    head = [runs[0].name]
    for run in runs[1:]:
        head += [run.name, f"vs {runs[0].name}"]
    body: list[tuple[str, list[str]]] = []
    for title, rows in groups(runs):
        body.append((title, []))
        for row in rows:
            body.append((f"  {row.label}", _cells(row, runs)))
    return Table(head, body)


def _headlines(runs: Sequence[Run]) -> list[str]:
    return [headline(runs[0], other) for other in runs[1:]]


def _text(runs: Sequence[Run]) -> str:
    table = _table(runs)
    # Columns are as wide as their widest cell.
    labels = max(len(label) for label, _ in table.body)
    widths = [len(cell) for cell in table.head]
    for _, cells in table.body:
        for i, cell in enumerate(cells):
            widths[i] = max(widths[i], len(cell))

    # Headlines, an empty line, the table.
    text = _headlines(runs)
    if text:
        text.append("")
    for label, cells in [("", table.head), *table.body]:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        text.append("  ".join([label.ljust(labels), *padded]).rstrip())
    return "\n".join(text)


def _markdown(runs: Sequence[Run]) -> str:
    table = _table(runs)
    columns = len(table.head)
    text = [f"{line}\n" for line in _headlines(runs)]
    text += ["| | " + " | ".join(table.head) + " |", "| --- |" + " ---: |" * columns]
    for label, cells in table.body:
        shown = label.strip() if cells else f"**{label}**"
        text.append(f"| {shown} | " + " | ".join(cells or [""] * columns) + " |")
    return "\n".join(text)


def _json(runs: Sequence[Run]) -> str:
    values: list[dict[str, Any]] = [{"name": run.name} for run in runs]
    for _, rows in groups(runs):
        for row in rows:
            for run, of_run in zip(runs, values, strict=True):
                of_run[row.key] = row.value(run)
    return json.dumps({"headlines": _headlines(runs), "runs": values}, indent=2)
