"""One HTML page about many runs: table, curves, schedule, ledger, configuration. It needs no network and no server.

Python gathers one dict of plain values (`page_data`); the page's own scripts draw it. The same runs give the same page.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from snake_jax.errors import UserError
from snake_jax.report.ledger import ledger
from snake_jax.report.plots import layer_order
from snake_jax.report.runs import AXES, Axis, Record, Run, along, cumulative, curve, read_run
from snake_jax.report.table import final_accuracy
from snake_jax.report.units import human, percent

# What a curve can be drawn against beside AXES, and what it can show.
PAGE_AXES = {**AXES, "clock": Axis("simulated time", "s", ("clock_s",))}
PER_NODE, NUMBER = "iterations_per_node", "number"
VALUES = {"accuracy": ("test accuracy", "%"), "test_loss": ("test loss", ""), "loss": ("training loss", "")}
SCRIPTS = ("page_tables.js", "page_curves.js", "page_schedule.js", "page.js")  # the last one starts
_HERE = Path(__file__).parent

# (key, heading, unit) of the runs table's numbers; a unit of None is a share.
_NUMBERS: tuple[tuple[str, str, str | None], ...] = (
    ("final_accuracy", "final accuracy", None),
    ("best_accuracy", "best accuracy", None),
    ("iterations", "iterations", ""),
    ("bytes_up", "bytes up", "B"),
    ("bytes_down", "bytes down", "B"),
    ("flops", "FLOPs", "FLOP"),
    ("seconds", "seconds", "s"),
    ("clock", "simulated time", "s"),
    ("peak_train_bytes", "peak memory", "B"),
)


def write_page(folder: str | Path, output_path: str | Path) -> tuple[Path, int]:
    """Writes the page about all runs under `folder`.

    Returns:
      The path written and the number of runs.

    Raises:
      UserError: no such folder, no runs in it, a damaged file in a run, or an output that cannot be written.
    """
    runs = find_runs(folder)
    path = Path(output_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(page_data(runs, f"Runs in {Path(folder).resolve().name}")), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output={path}: cannot write the page ({error.strerror or error})") from error
    return path, len(runs)


def find_runs(folder: str | Path) -> list[Run]:
    """The runs at any depth under `folder` with at least one finished visit, named by their path in it."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds the --workdir of your runs")
    paths = sorted(Path(at) for at in _folders_with_metrics(root) if _has_a_line(Path(at) / "metrics.jsonl"))
    if not paths:
        raise UserError(f"{root}: no runs in it (no folder with a finished visit in a metrics.jsonl)")
    names = [path.relative_to(root).as_posix() if path != root else root.resolve().name for path in paths]
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
    """JSON that may stand in a script element: no character of it can end the element or open another."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def page_data(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """Everything that the page shows."""
    every = [_run_data(run) for run in runs]
    return {
        "title": title,
        "axes": [axis for axis in _axes() if any(axis["key"] in run["x"] for run in every)],
        "values": [{"key": key, "label": label, "unit": unit} for key, (label, unit) in VALUES.items()],
        "columns": _columns(every),
        "runs": every,
    }


def _axes() -> list[dict[str, str]]:
    known = [{"key": key, "label": axis.label, "unit": axis.unit} for key, axis in PAGE_AXES.items()]
    own = ((PER_NODE, "iterations per node"), (NUMBER, "visits or rounds"))
    return known + [{"key": key, "label": label, "unit": ""} for key, label in own]


def _columns(every: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the runs table; simulated time only where some run has it."""
    words = [("name", "run"), *((key, key) for key in ("algorithm", "model", "dataset", "partition"))]
    numbers = [
        (key, label) for key, label, _ in _NUMBERS if key != "clock" or any("clock" in run["x"] for run in every)
    ]
    columns = [(key, label, False) for key, label in words] + [(key, label, True) for key, label in numbers]
    return [
        {"key": key, "label": label, "number": number} for key, label, number in [*columns, ("status", "status", False)]
    ]


def _run_data(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "cells": _cells(run),
        "config": {key: _shown(value) for key, value in _config(run).items()},
        "x": _positions(run),
        "y": {key: [_rounded(record.get(key)) for record in run.metrics] for key in VALUES},
        "layers": layer_order(run.metrics),
        "visits": _visits(run.metrics),
        "ledger": ledger(run),
    }


def _config(run: Run) -> Record:
    return run.config or (run.summary or {}).get("config") or {}


def _cells(run: Run) -> dict[str, dict[str, Any]]:
    """`{column: {value to sort by, text}}` of the runs table."""
    settings = {**(run.summary or {}), **_config(run)}
    numbers = _numbers(run)
    words = {key: settings.get(key) for key in ("algorithm", "model", "dataset")}
    words |= {"name": run.name, "partition": _partition(settings), "status": _status(run, settings)}
    cells = {key: {"value": word, "text": "–" if word is None else str(word)} for key, word in words.items()}
    for key, _, unit in _NUMBERS:
        value = numbers[key]
        text = "–" if value is None else percent(value) if unit is None else human(value, unit)
        cells[key] = {"value": value, "text": text}
    return cells


def _numbers(run: Run) -> dict[str, float | None]:
    known = curve(run, "iterations")[1]
    axes = {key: float(along(run, key)[-1]) for key in ("iterations", "flops", "seconds")}
    return axes | {
        "final_accuracy": final_accuracy(run),
        "best_accuracy": float(known.max()) if known.size else None,
        "bytes_up": float(cumulative(run, "bytes_up")[-1]),
        "bytes_down": float(cumulative(run, "bytes_down")[-1]),
        "clock": float(cumulative(run, "clock_s")[-1]) if _measured(run, ("clock_s",)) else None,
        "peak_train_bytes": (run.summary or {}).get("peak_train_bytes"),
    }


def _partition(settings: Record) -> str | None:
    partition = settings.get("partition")
    return f"{partition}({settings['alpha']})" if partition != "iid" and "alpha" in settings else partition


def _status(run: Run, settings: Record) -> str:
    """`finished`, or how many of the run's cycles have begun."""
    if run.summary is not None:
        return "finished"
    begun = len({record.get("cycle") for record in run.metrics})
    return f"{begun} of {settings['cycles']} cycles" if "cycles" in settings else f"unfinished, {begun} cycles"


def _measured(run: Run, fields: Iterable[str]) -> bool:
    return any(record.get(field) is not None for field in fields for record in run.metrics)


def _positions(run: Run) -> dict[str, list[float | None]]:
    """`{axis: [visits]}` after each visit; an axis that nothing was measured for is left out."""
    found = {key: axis.fields for key, axis in PAGE_AXES.items() if _measured(run, axis.fields)}
    totals = {key: np.sum([cumulative(run, field) for field in fields], axis=0) for key, fields in found.items()}
    if "iterations" in totals:
        totals[PER_NODE] = totals["iterations"] / _num_nodes(run)
    totals[NUMBER] = np.arange(1.0, len(run.metrics) + 1)
    return {key: [_rounded(value) for value in values] for key, values in totals.items()}


def _num_nodes(run: Run) -> int:
    settings = {**(run.summary or {}), **_config(run)}
    return settings.get("nodes") or len({node for record in run.metrics for node in _nodes(record)}) or 1


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
        folders[:] = [name for name in folders if name != "checkpoints" and not name.startswith(".")]
        if "metrics.jsonl" in files:
            yield at


def _has_a_line(path: Path) -> bool:
    return any(line.strip() and line.endswith("\n") for line in path.read_text().splitlines(keepends=True))


def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _shown(value: Any) -> str:
    """A config value as text that is equal where the value is."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, sort_keys=True)


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
