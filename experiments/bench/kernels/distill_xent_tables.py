"""The benchmark's result as text."""

from collections.abc import Sequence
from typing import Any

from experiments.bench.kernels import tables


def report(result: dict[str, Any]) -> str:
    """The tables of one result."""
    return tables.report(result, _timed, _compiled)


def _timed(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "Loss and gradient, timed: median ms (spread between quartiles), share of the roofline, "
        "MB of temporaries"
    ]
    for row in rows:
        name = f"{row['shape']:24}{row['form']:12}"
        time = f"{row['median_ms']:9.1f} ({row['spread_ms']:6.1f}) {row['of_roofline']:6.2f}"
        temporary_mb = row["temporary_bytes"] / 1e6
        lines.append(f"{name}{time}{temporary_mb:9.1f}")
    return lines


def _compiled(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "Loss and gradient, compiled: MB of temporaries; float32 logits written: whole, tiles in "
        "HBM, in VMEM"
    ]
    for row in rows:
        name = f"{row['chip']:5}{row['shape']:24}{row['form']:12}"
        if not row["fits"]:
            lines.append(f"{name} refused")
            continue
        counts = ""
        if "whole_logits" in row:
            whole = row["whole_logits"]
            whole_anywhere = whole["vmem"] + whole["hbm"]
            tiles = row["tiles_of_logits"]
            counts = f"{whole_anywhere:5}{tiles['hbm']:5}{tiles['vmem']:5}"
        temporary_mb = row["temporary_bytes"] / 1e6
        lines.append(f"{name}{temporary_mb:9.1f}{counts}")
    return lines
