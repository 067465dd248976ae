"""One HTML page about many runs: table, curves, schedule, ledger, configuration.

Python gathers one dict of plain values (`page_data`); the page's own scripts draw it. It needs no
network and no server, and the same runs give the same page, byte for byte.

The page knows no algorithm, model or figure of merit by name. It shows what run folders record, so
a run of a user's own method and model has the same page.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from snake_jax.errors import UserError
from snake_jax.report.columns import PageColumn, cell, columns_of
from snake_jax.report.events import read_events
from snake_jax.report.ledger import ledger
from snake_jax.report.merits import MERITS, Curve, Record
from snake_jax.report.plots import layer_order
from snake_jax.report.runs import (
    TOKEN_AXES,
    Axis,
    Run,
    before,
    config_of,
    cumulative,
    has_measured,
    merit_of,
    read_run,
    settings_of,
)

PAGE_AXES = {**TOKEN_AXES, "clock": Axis("simulated time", "s", ("clock_s",))}
PER_NODE = "iterations_per_node"
NUMBER = "number"
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
    data = page_data(runs, f"Runs in {Path(folder).resolve().name}")
    text = page(data)
    path = Path(output_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output={path}: cannot write the page ({error.strerror or error})"
        ) from error
    return path, len(runs)


def find_runs(folder: str | Path) -> list[Run]:
    """The runs at any depth under `folder` with at least one finished visit.

    They are named by their path in it.

    Raises:
      UserError: no such folder, no runs in it, or a damaged file in a run.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; give the one that holds the --workdir of your runs"
        )
    runs = []
    for path in sorted(_folders_with_metrics(root)):
        run = read_run(path)
        # The folder itself may be a run; its path in itself is no name.
        if path != root:
            run = run._replace(name=path.relative_to(root).as_posix())
        runs.append(run)
    if not runs:
        raise UserError(
            f"{root}: no runs in it (no folder with a finished visit in a metrics.jsonl)"
        )
    return runs


def page(data: Mapping[str, Any]) -> str:
    """The whole page as text; `data` is what `page_data` gave."""
    scripts = [_part(name) for name in SCRIPTS]
    parts = {
        "title": escape(data["title"]),
        "style": _part("page.css"),
        "data": script_json(data),
        "script": "\n".join(scripts),
    }

    def filled(place: re.Match[str]) -> str:
        return parts[place[1]]

    # In one pass, so that nothing inside the data is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", filled, _part("page.html"))


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end it or open another."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def page_data(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """Everything that the page shows."""
    columns = columns_of(runs)
    curves = _curves(runs)
    shown = [_run_data(run, columns) for run in runs]
    # Axes that no run has a position on are left out.
    axes = []
    for axis in _axes():
        if any(axis["key"] in run["x"] for run in shown):
            axes.append(axis)

    # What the page's scripts read of curves and columns.
    values = []
    for curve in curves:
        values.append(
            {
                "key": curve.key,
                "label": curve.label,
                "unit": curve.unit,
                "factors": curve.factors,
            }
        )
    heads = []
    for column in columns:
        is_number = column.show is not None
        heads.append({"key": column.key, "label": column.label, "number": is_number})
    return {"title": title, "axes": axes, "values": values, "columns": heads, "runs": shown}


def _curves(runs: Sequence[Run]) -> list[Curve]:
    """What can be drawn of at least one run, in the order of the page's list."""
    merits = [merit_of(run) for run in runs]
    found: dict[str, Curve] = {}
    for merit in MERITS:
        if merit in merits:
            for curve in merit.curves:
                found.setdefault(curve.key, curve)
    return list(found.values())


def _axes() -> list[dict[str, str]]:
    axes = []
    for key, axis in PAGE_AXES.items():
        axes.append({"key": key, "label": axis.label, "unit": axis.unit})
    axes.append({"key": PER_NODE, "label": "iterations per node", "unit": ""})
    axes.append({"key": NUMBER, "label": "visits or rounds", "unit": ""})
    return axes


def _run_data(run: Run, columns: Sequence[PageColumn]) -> dict[str, Any]:
    # What is drawn: a value for each line, and where training began.
    merit = merit_of(run)
    y = {}
    for curve in merit.curves:
        y[curve.key] = [_rounded(record.get(curve.field)) for record in run.metrics]
    start = {}
    untrained = before(run)
    if untrained is not None:
        start[merit.field] = _rounded(untrained)
    # What is read.
    cells = {column.key: cell(column, run) for column in columns}
    config = {key: _shown(value) for key, value in config_of(run).items()}
    return {
        "name": run.name,
        "cells": cells,
        "config": config,
        "x": _positions(run),
        "y": y,
        "start": start,
        "layers": layer_order(run.metrics),
        "visits": _visits(run.metrics),
        "ledger": ledger(run),
        "events": _events(run),
    }


def _events(run: Run) -> list[dict[str, Any]]:
    """What happened to the run's nodes; times in seconds after the first event."""
    events, shown = read_events(run.path), []
    for event in events:
        time_s = round(event["time_s"] - events[0]["time_s"], 3)
        row = {name: event[name] for name in ("round", "visit", "node", "event", "cause")}
        shown.append({"time": time_s, **row})
    return shown


def _positions(run: Run) -> dict[str, list[float | None]]:
    """`{axis: [visits]}` after each visit; an axis that nothing was measured for is left out."""
    totals = {}
    for key, axis in PAGE_AXES.items():
        if any(has_measured(run, field) for field in axis.fields):
            parts = [cumulative(run, field) for field in axis.fields]
            totals[key] = np.sum(parts, axis=0)
    # What every run has, whatever was measured.
    if "iterations" in totals:
        totals[PER_NODE] = totals["iterations"] / _num_nodes(run)
    totals[NUMBER] = np.arange(1.0, len(run.metrics) + 1)
    positions = {}
    for key, values in totals.items():
        positions[key] = [_rounded(value) for value in values]
    return positions


def _num_nodes(run: Run) -> int:
    """As configured, or else as many as the lines name."""
    named: set[Any] = set()
    for record in run.metrics:
        named.update(_nodes(record))
    return settings_of(run).get("nodes") or len(named) or 1


def _nodes(record: Record) -> list[Any]:
    """The nodes of a visit or round; a line may name one, several or none."""
    node = record.get("node")
    if node is None:
        return []
    return node if isinstance(node, list) else [node]


def _visits(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the schedule shows of each line; `layers` are indices into `layer_order`."""
    # Layers by number: the strip is drawn in the model's order, and a page has many visits.
    index = {name: place for place, name in enumerate(layer_order(records))}
    visits = []
    for number, record in enumerate(records):
        layers = record.get("layers") or []
        visits.append(
            {
                "visit": record.get("visit", number),
                "cycle": record.get("cycle"),
                "nodes": _nodes(record),
                "layers": sorted(index[name] for name in layers),
                "event": record.get("event") or "",
            }
        )
    return visits


def _folders_with_metrics(root: Path) -> Iterator[Path]:
    """Folders with at least one whole line of metrics."""
    for at, folders, files in os.walk(root):
        # In place, which is how os.walk is told what not to enter.
        folders[:] = [name for name in folders if name != "checkpoints" and name[0] != "."]
        if "metrics.jsonl" in files:
            lines = (Path(at) / "metrics.jsonl").read_text().splitlines(keepends=True)
            if any(line.strip() and line.endswith("\n") for line in lines):
                yield Path(at)


def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _shown(value: Any) -> str:
    """A value of the configuration as text; equal values give equal text."""
    if isinstance(value, str) and value:
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _rounded(value: Any) -> float | None:
    """A number of the curves: whole ones in full, others to 7 digits; None for what is none."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    number = float(value)
    if number.is_integer():
        return int(number)
    return float(f"{number:.7g}")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinities: they become null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
