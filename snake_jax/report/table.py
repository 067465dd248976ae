"""The comparison of runs: what was saved, beside the accuracy, as text, markdown or JSON."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from snake_jax.errors import UserError
from snake_jax.report.runs import Run, along, cost_to_reach, cumulative, curve
from snake_jax.report.units import human, percent

FORMATS = ("text", "markdown", "json")
UNKNOWN = "-"


class Row(NamedTuple):
    """A line of the table: its value for a run, how it is printed, how two runs are set against each other."""

    key: str
    label: str
    value: Callable[[Run], Any]
    show: Callable[[Any], str]
    against: str = "ratio"


class Table(NamedTuple):
    """Cells as printed; `lines` are (label, cells), a line without cells is the heading of a group."""

    head: list[str]
    lines: list[tuple[str, list[str]]]


def comparison_table(runs: Sequence[Run], format: str = "text") -> str:
    """Runs side by side, with ratios to the first, led by what the first saves against each other one.

    Raises:
      UserError: an unknown format.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: not one of {', '.join(FORMATS)}")
    return {"text": _text, "markdown": _markdown, "json": _json}[format](runs)


def headline(run: Run, other: Run) -> str:
    """One sentence: accuracy, bytes, FLOPs and memory of `run` against `other`."""
    points = _accuracy_difference(final_accuracy(run), final_accuracy(other))
    parts = [f"final accuracy {points}"] if points else []
    for key, more, less, what in (
        ("train_flops", "more", "fewer", "training FLOPs"),
        ("peak_train_bytes", "more", "less", "memory at a node"),
        ("bytes", "more", "fewer", "bytes sent"),
    ):
        row = next(row for row in _savings() if row.key == key)
        ours, theirs = row.value(run), row.value(other)
        if ours is not None and theirs:
            parts.append(f"{_change(ours / theirs - 1, more, less)} {what}")
    return f"{run.name} against {other.name}: {', '.join(parts) or 'nothing to compare yet'}"


def _change(share: float, more: str, less: str) -> str:
    return "the same" if abs(share) < 5e-4 else f"{percent(abs(share))} {less if share < 0 else more}"


def final_accuracy(run: Run) -> float | None:
    """Test accuracy in [0, 1] of the finished model, or of the last evaluation of a run that still goes."""
    known = curve(run, "iterations")[1]
    return _summary(run, "final_accuracy", float(known[-1]) if known.size else None)


def _best_accuracy(run: Run) -> float | None:
    known = curve(run, "iterations")[1]
    return _summary(run, "best_accuracy", float(known.max()) if known.size else None)


def _summary(run: Run, key: str, otherwise: Any = None) -> Any:
    value = (run.summary or {}).get(key)
    return otherwise if value is None else value


def _setting(key: str) -> Callable[[Run], Any]:
    return lambda run: _summary(run, key, run.config.get(key))


def _total(axis: str) -> Callable[[Run], float]:
    return lambda run: float(along(run, axis)[-1])


def _node_visits(run: Run) -> int:
    nodes = [record.get("node") for record in run.metrics]
    return sum(len(node) if isinstance(node, list) else 1 for node in nodes)


def _cycles(run: Run) -> int:
    return len({record.get("cycle") for record in run.metrics})


def _per(amount: Callable[[Run], float], count: Callable[[Run], float]) -> Callable[[Run], float | None]:
    return lambda run: amount(run) / count(run) if count(run) else None


def _unit(unit: str = "") -> Callable[[Any], str]:
    return lambda value: human(value, unit)


def _savings() -> list[Row]:
    bytes_, flops = _total("bytes"), _total("flops")
    return [
        Row("train_flops", "training FLOPs", flops, _unit("FLOP")),
        Row("flops_per_iteration", "  an iteration", _per(flops, _total("iterations")), _unit("FLOP")),
        Row("peak_train_bytes", "peak memory at a node", lambda run: _summary(run, "peak_train_bytes"), _unit("B")),
        Row("bytes", "bytes sent, up and down", bytes_, _unit("B")),
        Row("bytes_up", "  up", lambda run: float(cumulative(run, "bytes_up")[-1]), _unit("B")),
        Row("bytes_down", "  down", lambda run: float(cumulative(run, "bytes_down")[-1]), _unit("B")),
        Row("bytes_per_cycle", "  a cycle or round", _per(bytes_, _cycles), _unit("B")),
        Row("bytes_per_node_visit", "  a visit of a node", _per(bytes_, _node_visits), _unit("B")),
    ]


def _to_target(target: float) -> list[Row]:
    axes = {"iterations": "", "bytes": "B", "flops": "FLOP", "seconds": "s"}
    return [
        Row(f"{axis}_to_target", axis, partial(cost_to_reach, accuracy=target, axis=axis), _unit(unit))
        for axis, unit in axes.items()
    ]


def _groups(runs: Sequence[Run]) -> list[tuple[str, list[Row]]]:
    target = next((t for run in runs if (t := _setting("target_accuracy")(run)) is not None), None)
    return [
        (
            "Accuracy on the test set",
            [
                Row("final_accuracy", "final", final_accuracy, percent, "difference"),
                Row("best_accuracy", "best", _best_accuracy, percent, "difference"),
            ],
        ),
        ("Cost", _savings()),
        *([(f"Cost to reach {percent(target)}", _to_target(target))] if target is not None else []),
        (
            "Work",
            [
                Row("iterations", "iterations", _total("iterations"), _unit()),
                Row("examples", "examples", _total("examples"), _unit()),
                Row("node_visits", "visits of a node", _node_visits, _unit()),
                Row("cycles", "cycles or rounds", _cycles, _unit()),
                Row("train_s", "training time", _total("seconds"), _unit("s")),
                Row("compile_s", "compile time", lambda run: _summary(run, "compile_s"), _unit("s")),
                Row("num_compilations", "programs compiled", lambda run: _summary(run, "num_compilations"), _unit()),
            ],
        ),
        (
            "Setting",
            [
                Row("num_params", "parameters", lambda run: _summary(run, "num_params"), _unit(), ""),
                *(
                    Row(key, key, _setting(key), str, "")
                    for key in ("algorithm", "dataset", "nodes", "partition", "alpha", "learning_rate", "seed")
                ),
            ],
        ),
    ]


def _accuracy_difference(ours: float | None, theirs: float | None) -> str:
    return "" if ours is None or theirs is None else f"{100 * (ours - theirs):+.1f} points"


def _set_against(row: Row, value: Any, first: Any) -> str:
    if not row.against or value is None or first is None:
        return ""
    if row.against == "difference":
        return _accuracy_difference(value, first)
    return f"{value / first:.2f}x" if first else ""


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
    for title, rows in _groups(runs):
        lines += [(title, []), *((f"  {row.label}", _cells(row, runs)) for row in rows)]
    return Table(head, lines)


def _headlines(runs: Sequence[Run]) -> list[str]:
    return [headline(runs[0], other) for other in runs[1:]]


def _text(runs: Sequence[Run]) -> str:
    table = _table(runs)
    first = max(len(label) for label, _ in table.lines)
    widths = [
        max(len(line[i]) for line in [table.head, *(c for _, c in table.lines if c)]) for i in range(len(table.head))
    ]
    rows = [("", table.head), *table.lines]
    body = [
        (
            label.ljust(first) + "".join("  " + cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
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
    rows = [row for _, group in _groups(runs) for row in group]
    columns = [{"name": run.name} | {row.key: row.value(run) for row in rows} for run in runs]
    return json.dumps({"headlines": _headlines(runs), "runs": columns}, indent=2)
