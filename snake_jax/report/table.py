"""The comparison of runs: what was saved, beside the accuracy or perplexity, as text, markdown or
JSON.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from snake_jax.errors import UserError
from snake_jax.report.rows import Row, groups, savings
from snake_jax.report.runs import Merit, Run, common_merit, final
from snake_jax.report.units import percent

FORMATS = ("text", "markdown", "json")
UNKNOWN = "-"


class Table(NamedTuple):
    """Cells as printed; `lines` are (label, cells), a line without cells is the heading of a
    group.
    """

    head: list[str]
    lines: list[tuple[str, list[str]]]


def comparison_table(runs: Sequence[Run], format: str = "text") -> str:
    """Runs side by side, with ratios to the first, led by what the first saves against each other
    one.

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
    reached = _merit_difference(common_merit([run, other]), final(run), final(other))
    parts = [reached] if reached else []
    for key, more, less, what in (
        ("train_flops", "more", "fewer", "training FLOPs"),
        ("peak_train_bytes", "more", "less", "memory at a node"),
        ("bytes", "more", "fewer", "bytes sent"),
    ):
        row = next(row for row in savings() if row.key == key)
        ours, theirs = row.value(run), row.value(other)
        if ours is not None and theirs:
            parts.append(f"{_change(ours / theirs - 1, more, less)} {what}")
    return f"{run.name} against {other.name}: {', '.join(parts) or 'nothing to compare yet'}"


def _merit_difference(merit: Merit, ours: float | None, theirs: float | None) -> str:
    if ours is None or theirs is None:
        return ""
    if merit.unit == "%":
        return f"final {merit.field} {_points(ours, theirs)}"
    both = f"{merit.show(ours)} against {merit.show(theirs)}"
    return f"final {merit.field} {both} ({_factor(ours, theirs)})"


def _change(share: float, more: str, less: str) -> str:
    return (
        "the same" if abs(share) < 5e-4 else f"{percent(abs(share))} {less if share < 0 else more}"
    )


def _points(ours: float, theirs: float) -> str:
    return f"{100 * (ours - theirs):+.1f} points"


def _factor(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}x" if theirs else ""


def _set_against(row: Row, value: Any, first: Any) -> str:
    if not row.against or value is None or first is None:
        return ""
    return _points(value, first) if row.against == "difference" else _factor(value, first)


def _cells(row: Row, runs: Sequence[Run]) -> list[str]:
    values = [row.value(run) for run in runs]
    shown = [UNKNOWN if value is None else row.show(value) for value in values]
    ratios = [_set_against(row, value, values[0]) for value in values]
    return _interleave(shown, ratios)


def _interleave(shown: Sequence[str], ratios: Sequence[str]) -> list[str]:
    """The first run's cell, then each other run's with its ratio to the first."""
    return [shown[0], *(cell for pair in zip(shown[1:], ratios[1:], strict=True) for cell in pair)]


def _table(runs: Sequence[Run]) -> Table:
    head = _interleave([run.name for run in runs], [f"vs {runs[0].name}"] * len(runs))
    lines: list[tuple[str, list[str]]] = []
    for title, rows in groups(runs):
        lines += [(title, []), *((f"  {row.label}", _cells(row, runs)) for row in rows)]
    return Table(head, lines)


def _headlines(runs: Sequence[Run]) -> list[str]:
    return [headline(runs[0], other) for other in runs[1:]]


def _text(runs: Sequence[Run]) -> str:
    table = _table(runs)
    first = max(len(label) for label, _ in table.lines)
    widths = [
        max(len(line[i]) for line in [table.head, *(c for _, c in table.lines if c)])
        for i in range(len(table.head))
    ]
    rows = [("", table.head), *table.lines]
    body = [
        (
            label.ljust(first)
            + "".join("  " + cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
        ).rstrip()
        for label, cells in rows
    ]
    return "\n".join([*_headlines(runs), *([""] if len(runs) > 1 else []), *body])


def _markdown(runs: Sequence[Run]) -> str:
    table = _table(runs)
    columns = len(table.head)
    body = ["| | " + " | ".join(table.head) + " |", "| --- |" + " ---: |" * columns]
    for label, cells in table.lines:
        shown = label.strip() if cells else f"**{label}**"
        body.append(f"| {shown} | " + " | ".join(cells or [""] * columns) + " |")
    return "\n".join([*(f"{line}\n" for line in _headlines(runs)), *body])


def _json(runs: Sequence[Run]) -> str:
    rows = [row for _, group in groups(runs) for row in group]
    columns = [{"name": run.name} | {row.key: row.value(run) for row in rows} for run in runs]
    return json.dumps({"headlines": _headlines(runs), "runs": columns}, indent=2)
