"""Runs that differ in their seed alone: mean and standard deviation of what they reached."""

import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from snake_jax.report.merits import MERITS, Merit, Record
from snake_jax.report.runs import Run, common_merit
from snake_jax.report.units import UNKNOWN, human

Shown = dict[str, Callable[[float], str]]  # fields of a summary, and how each is printed
_BYTES = partial(human, unit="B")
_FLOPS = partial(human, unit="FLOP")
_SECONDS = partial(human, unit="s")
_DATA: Shown = {"divergence": "{:.3f}".format}
# Only where the runs record them: fine-tuning runs do.
_WHERE_RECORDED: Shown = {"tokens": human, "trainable_params": human, "state_bytes": _BYTES}
_COST: Shown = {
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


def spread(runs: Sequence[Run]) -> Record:
    """`{seeds, config, fields: {name: {mean, std, values}}}` of finished runs, in the order given.

    `std` is the sample's (n - 1), None of a single run. Where a run has no value (a target never
    reached, memory unknown) mean and std are None; `values` says which.

    Raises:
      UserError: runs without a common figure of merit.
    """
    summaries = [run.summary or {} for run in runs]
    recorded: set[str] = set()
    for summary in summaries:
        recorded.update(summary)
    names = [*_of_merit(common_merit(runs)), *_DATA]
    names += [name for name in _WHERE_RECORDED if name in recorded]
    names += _COST
    fields = {}
    for name in names:
        values = [summary.get(name) for summary in summaries]
        fields[name] = _moments(values)
    seeds = [summary.get("seed") for summary in summaries]
    # All that the runs share.
    config = dict(runs[0].config)
    config.pop("seed", None)
    return {"seeds": seeds, "fields": fields, "config": config}


def spread_table(found: Record) -> str:
    """What `spread` found as text, a line a field: mean, standard deviation, each seed's value."""
    show = {**_DATA, **_WHERE_RECORDED, **_COST}
    for merit in MERITS:
        show |= _of_merit(merit)

    # Each cell as text: a head, then a line for every field.
    lines = [["", "mean", "std", *(f"seed {seed}" for seed in found["seeds"])]]
    for name, moments in found["fields"].items():
        line = [name]
        for value in (moments["mean"], moments["std"], *moments["values"]):
            line.append(UNKNOWN if value is None else show[name](value))
        lines.append(line)

    # Names to the left, numbers to the right of columns as wide as their widest cell.
    widths = []
    for column in zip(*lines, strict=True):
        widths.append(max(len(cell) for cell in column))
    text = []
    for name, *cells in lines:
        padded = [name.ljust(widths[0])]
        for cell, width in zip(cells, widths[1:], strict=True):
            padded.append(cell.rjust(width))
        text.append("  ".join(padded))
    return "\n".join(text)


def write_spread(found: Record, file: Path) -> None:
    """Writes what `spread` found as JSON, in one step: a reader finds all of it or nothing."""
    text = json.dumps(found, indent=2, allow_nan=False)
    part = file.with_name(file.name + ".part")
    part.write_text(text + "\n")
    part.replace(file)


def _of_merit(merit: Merit) -> Shown:
    """The summary's fields of a figure of merit."""
    names = [merit.final, merit.best]
    if merit.before is not None:
        names.insert(0, merit.before)
    return dict.fromkeys(names, merit.show)


def _moments(values: list[Any]) -> Record:
    if None in values:
        return {"mean": None, "std": None, "values": values}
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": mean, "std": std, "values": values}
