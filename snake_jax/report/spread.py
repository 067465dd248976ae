"""Runs that differ in their seed alone: mean and standard deviation of what they reached and
took.
"""

import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from snake_jax.report.runs import ACCURACY, Merit, Record, Run, common_merit
from snake_jax.report.units import human, percent, significant

UNKNOWN = "-"
_BYTES, _FLOPS, _SECONDS = (functools.partial(human, unit=unit) for unit in ("B", "FLOP", "s"))
_DIVERGENCE = "{:.3f}".format
_Shown = dict[str, Callable[[float], str]]
# Fields of a summary, and how they are printed.
_ACCURACY: _Shown = {
    "final_accuracy": percent,
    "best_accuracy": percent,
    "divergence": _DIVERGENCE,
}
_LANGUAGE: _Shown = {
    "perplexity_before": significant,
    "perplexity_after": significant,
    "best_perplexity": significant,
    "divergence": _DIVERGENCE,
    "tokens": human,
    "trainable_params": human,
    "state_bytes": _BYTES,
}
_COST: _Shown = {
    "iterations": human,
    "examples": human,
    "train_flops": _FLOPS,
    "bytes_up": _BYTES,
    "bytes_down": _BYTES,
    "peak_train_bytes": _BYTES,
    "train_s": _SECONDS,
    "compile_s": _SECONDS,
    "iterations_to_target": human,
    "examples_to_target": human,
    "train_flops_to_target": _FLOPS,
    "bytes_up_to_target": _BYTES,
    "bytes_down_to_target": _BYTES,
}
_FIELDS = {**_ACCURACY, **_LANGUAGE, **_COST}


def _fields(merit: Merit) -> _Shown:
    """Those that a run of this figure of merit has, in the order of the table."""
    return {**(_ACCURACY if merit == ACCURACY else _LANGUAGE), **_COST}


def spread(runs: Sequence[Run]) -> Record:
    """`{seeds, config, fields: {name: {mean, std, values}}}` of finished runs, in the order given.

    `std` is the sample's (n - 1), None of a single run. Where a run has no value (a target never
    reached, memory unknown) mean and std are None; `values` says which.

    Raises:
      UserError: runs without a common figure of merit.
    """
    summaries = [run.summary or {} for run in runs]
    fields = {
        name: _moments([summary.get(name) for summary in summaries])
        for name in _fields(common_merit(runs))
    }
    config = {name: value for name, value in runs[0].config.items() if name != "seed"}
    return {
        "seeds": [summary.get("seed") for summary in summaries],
        "fields": fields,
        "config": config,
    }


def _moments(values: list[Any]) -> Record:
    if None in values:
        return {"mean": None, "std": None, "values": values}
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def spread_table(found: Record) -> str:
    """The fields as text, a line each: mean, standard deviation, every seed's value."""
    head = ["", "mean", "std", *(f"seed {seed}" for seed in found["seeds"])]
    lines = [head, *(_line(name, found["fields"][name]) for name in found["fields"])]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        name.ljust(first)
        + "".join("  " + cell.rjust(width) for cell, width in zip(cells, rest, strict=True))
        for name, *cells in lines
    )


def _line(name: str, moments: Record) -> list[str]:
    cells = (moments["mean"], moments["std"], *moments["values"])
    return [name, *(UNKNOWN if cell is None else _FIELDS[name](cell) for cell in cells)]


def write_spread(found: Record, file: Path) -> None:
    """Writes it as JSON, in one step."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    part.replace(file)
