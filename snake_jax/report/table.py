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
    if format == "text":
        return _text(runs)
    if format == "markdown":
        return _markdown(runs)
    if format == "json":
        return _json(runs)
    raise UserError(f"--format={format}: not one of {', '.join(FORMATS)}")


def headline(run: Run, other: Run) -> str:
    """One sentence: the figure of merit, bytes, FLOPs and memory of `run` against `other`.

    Raises:
      UserError: they have different figures of merit.
    """
    merit = common_merit([run, other])
    parts = []
    ours = final(run)
    theirs = final(other)
    if ours is not None and theirs is not None:
        parts.append(_merit_difference(merit, ours, theirs))

    # A run that is not finished may know no memory yet; a run of one place sends nothing.
    rows = {row.key: row for row in cost_rows()}
    for key, more, less, what in _HEADLINE:
        ours = rows[key].value(run)
        theirs = rows[key].value(other)
        if ours is not None and theirs:
            change = _change(ours / theirs - 1, more, less)
            parts.append(f"{change} {what}")
    said = ", ".join(parts) or "nothing to compare yet"
    return f"{run.name} against {other.name}: {said}"


def _merit_difference(merit: Merit, ours: float, theirs: float) -> str:
    if merit.is_share:
        return f"final {merit.name} {_points(ours, theirs)}"
    both = f"{merit.show(ours)} against {merit.show(theirs)}"
    return f"final {merit.name} {both} ({_factor(ours, theirs)})"


def _change(share: float, more: str, less: str) -> str:
    # Printed to a tenth of a percent, it would be 0.0 %.
    if abs(share) < 5e-4:
        return "the same"
    word = less if share < 0 else more
    return f"{percent(abs(share))} {word}"


def _points(ours: float, theirs: float) -> str:
    return f"{100 * (ours - theirs):+.1f} points"


def _factor(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}x" if theirs else ""


def _set_against(row: TableRow, value: Any, first: Any) -> str:
    if not row.against or value is None or first is None:
        return ""
    if row.against == "difference":
        return _points(value, first)
    return _factor(value, first)


def _cells(row: TableRow, runs: Sequence[Run]) -> list[str]:
    """The first run's value, then each other run's and how it stands to the first."""
    first = row.value(runs[0])
    cells = [_shown(row, first)]
    for run in runs[1:]:
        value = row.value(run)
        cells += [_shown(row, value), _set_against(row, value, first)]
    return cells


def _shown(row: TableRow, value: Any) -> str:
    return UNKNOWN if value is None else row.show(value)


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
        for column, cell in enumerate(cells):
            widths[column] = max(widths[column], len(cell))

    # Headlines, an empty line, the table.
    text = _headlines(runs)
    if text:
        text.append("")
    for label, cells in [("", table.head), *table.body]:
        padded = [label.ljust(labels)]
        # The heading of a group has no cells.
        for cell, width in zip(cells, widths, strict=False):
            padded.append(cell.rjust(width))
        text.append("  ".join(padded).rstrip())
    return "\n".join(text)


def _markdown(runs: Sequence[Run]) -> str:
    table = _table(runs)
    # Each headline is a paragraph of its own.
    text = [f"{line}\n" for line in _headlines(runs)]
    text.append(_markdown_row("", table.head))
    text.append("| --- |" + " ---: |" * len(table.head))
    for label, cells in table.body:
        if cells:
            text.append(_markdown_row(f"{label.strip()} ", cells))
        else:
            empty = ["" for _ in table.head]
            text.append(_markdown_row(f"**{label}** ", empty))
    return "\n".join(text)


def _markdown_row(label: str, cells: Sequence[str]) -> str:
    return f"| {label}| {' | '.join(cells)} |"


def _json(runs: Sequence[Run]) -> str:
    shown_rows: list[TableRow] = []
    for _, rows in groups(runs):
        shown_rows += rows
    values = []
    for run in runs:
        of_run = {"name": run.name}
        for row in shown_rows:
            of_run[row.key] = row.value(run)
        values.append(of_run)
    return json.dumps({"headlines": _headlines(runs), "runs": values}, indent=2)
