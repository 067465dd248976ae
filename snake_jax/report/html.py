"""One HTML page about many runs: table, curves, schedule, ledger, configuration. It needs no
network and no server.

Python gathers one dict of plain values (`page_data`); the page's own scripts draw it. The same runs
give the same page.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snake_jax.errors import UserError
from snake_jax.report.columns import Column, cell, columns_of, config_of, measured, settings_of
from snake_jax.report.ledger import ledger
from snake_jax.report.plots import layer_order
from snake_jax.report.runs import (
    ACCURACY,
    PERPLEXITY,
    Axis,
    Merit,
    Record,
    Run,
    before,
    cumulative,
    merit,
    read_run,
)


class Value(NamedTuple):
    """What a curve can show: a field of the lines of runs that have this figure of merit."""

    merit: Merit
    field: str
    label: str
    unit: str


PAGE_AXES = {**ACCURACY.axes, **PERPLEXITY.axes, "clock": Axis("simulated time", "s", ("clock_s",))}
PER_NODE, NUMBER = "iterations_per_node", "number"
# By figure of merit, so that no curve of one kind of run stands beside one of another that means
# something else.
VALUES = {
    "accuracy": Value(ACCURACY, "accuracy", "test accuracy", "%"),
    "test_loss": Value(ACCURACY, "test_loss", "test loss", ""),
    "loss": Value(ACCURACY, "loss", "training loss", ""),
    "perplexity": Value(PERPLEXITY, "perplexity", PERPLEXITY.label, ""),
    "token_accuracy": Value(PERPLEXITY, "accuracy", "next-token accuracy", "%"),
    "token_test_loss": Value(PERPLEXITY, "test_loss", "held-out loss a token", ""),
    "token_loss": Value(PERPLEXITY, "loss", "training loss a token", ""),
}
SCRIPTS = ("page_tables.js", "page_curves.js", "page_schedule.js", "page.js")  # the last one starts
_HERE = Path(__file__).parent


def write_page(folder: str | Path, output_path: str | Path) -> tuple[Path, int]:
    """Writes the page about all runs under `folder`.

    Returns:
      The path written and the number of runs.

    Raises:
      UserError: no such folder, no runs in it, a damaged file in a run, or an output that cannot be
        written.
    """
    runs = find_runs(folder)
    path = Path(output_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            page(page_data(runs, f"Runs in {Path(folder).resolve().name}")), encoding="utf-8"
        )
    except OSError as error:
        raise UserError(
            f"--output={path}: cannot write the page ({error.strerror or error})"
        ) from error
    return path, len(runs)


def find_runs(folder: str | Path) -> list[Run]:
    """The runs at any depth under `folder` with at least one finished visit, named by their path in
    it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; give the one that holds the --workdir of your runs"
        )
    paths = sorted(
        Path(at) for at in _folders_with_metrics(root) if _has_a_line(Path(at) / "metrics.jsonl")
    )
    if not paths:
        raise UserError(
            f"{root}: no runs in it (no folder with a finished visit in a metrics.jsonl)"
        )
    names = [
        path.relative_to(root).as_posix() if path != root else root.resolve().name for path in paths
    ]
    return [read_run(path)._replace(name=name) for path, name in zip(paths, names, strict=True)]


def page(data: Mapping[str, Any]) -> str:
    """The whole page as text; `data` is what `page_data` gave."""
    parts = {
        "title": escape(data["title"]),
        "style": _part("page.css"),
        "data": script_json(data),
        "script": "\n".join(map(_part, SCRIPTS)),
    }
    # In one pass, so that nothing inside the data is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no character of it can end the element or open
    another.
    """
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def page_data(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """Everything that the page shows."""
    merits = [one for one in (ACCURACY, PERPLEXITY) if any(merit(run) == one for run in runs)]
    columns = columns_of(runs)
    every = [_run_data(run, columns) for run in runs]
    return {
        "title": title,
        "axes": [axis for axis in _axes() if any(axis["key"] in run["x"] for run in every)],
        "values": [_value(key, value) for key, value in VALUES.items() if value.merit in merits],
        "columns": [
            {"key": one.key, "label": one.label, "number": one.show is not None} for one in columns
        ],
        "runs": every,
    }


def _axes() -> list[dict[str, str]]:
    known = [
        {"key": key, "label": axis.label, "unit": axis.unit} for key, axis in PAGE_AXES.items()
    ]
    own = ((PER_NODE, "iterations per node"), (NUMBER, "visits or rounds"))
    return known + [{"key": key, "label": label, "unit": ""} for key, label in own]


def _value(key: str, value: Value) -> dict[str, Any]:
    factors = key == PERPLEXITY.field  # drawn on a logarithmic axis where it spans much
    return {"key": key, "label": value.label, "unit": value.unit, "factors": factors}


def _run_data(run: Run, columns: Sequence[Column]) -> dict[str, Any]:
    own = {key: value.field for key, value in VALUES.items() if value.merit == merit(run)}
    start = before(run)
    return {
        "name": run.name,
        "cells": {column.key: cell(column, run) for column in columns},
        "config": {key: _shown(value) for key, value in config_of(run).items()},
        "x": _positions(run),
        "y": {
            key: [_rounded(record.get(field)) for record in run.metrics]
            for key, field in own.items()
        },
        "start": {} if start is None else {merit(run).field: _rounded(start)},
        "layers": layer_order(run.metrics),
        "visits": _visits(run.metrics),
        "ledger": ledger(run),
    }


def _positions(run: Run) -> dict[str, list[float | None]]:
    """`{axis: [visits]}` after each visit; an axis that nothing was measured for is left out."""
    found = {key: axis.fields for key, axis in PAGE_AXES.items() if measured(run, axis.fields)}
    totals = {
        key: np.sum([cumulative(run, field) for field in fields], axis=0)
        for key, fields in found.items()
    }
    if "iterations" in totals:
        totals[PER_NODE] = totals["iterations"] / _num_nodes(run)
    totals[NUMBER] = np.arange(1.0, len(run.metrics) + 1)
    return {key: [_rounded(value) for value in values] for key, values in totals.items()}


def _num_nodes(run: Run) -> int:
    settings = settings_of(run)
    return (
        settings.get("nodes")
        or len({node for record in run.metrics for node in _nodes(record)})
        or 1
    )


def _nodes(record: Record) -> list[Any]:
    node = record.get("node")
    return node if isinstance(node, list) else [] if node is None else [node]


def _visits(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    """What the schedule shows of each line; `layers` are places in the order of `layer_order`."""
    place = {name: i for i, name in enumerate(layer_order(metrics))}
    return [
        {
            "visit": record.get("visit", number),
            "cycle": record.get("cycle"),
            "nodes": _nodes(record),
            "layers": sorted(place[name] for name in record.get("layers") or []),
            "event": record.get("event") or "",
        }
        for number, record in enumerate(metrics)
    ]


def _folders_with_metrics(root: Path) -> Iterable[str]:
    for at, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if name != "checkpoints" and not name.startswith(".")
        ]
        if "metrics.jsonl" in files:
            yield at


def _has_a_line(path: Path) -> bool:
    return any(
        line.strip() and line.endswith("\n") for line in path.read_text().splitlines(keepends=True)
    )


def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _shown(value: Any) -> str:
    """A config value as text that is equal where the value is."""
    return (
        value
        if isinstance(value, str) and value
        else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )


def _rounded(value: Any) -> float | None:
    """A number of the curves: whole ones in full, others to 7 digits; None for what is none."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    number = float(value)
    return int(number) if number.is_integer() else float(f"{number:.7g}")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinities: they become null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
