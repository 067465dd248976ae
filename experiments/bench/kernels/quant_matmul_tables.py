"""The benchmark's result as text."""

from collections.abc import Sequence
from typing import Any

from experiments.bench.kernels import tables


def report(result: dict[str, Any]) -> str:
    """The tables of one result."""
    return tables.report(result, _timed, _compiled)


def _timed(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["Timed here: median ms (spread between quartiles), share of the roofline"]
    for row in rows:
        name = f"{row['shape']:28}{row['kind']:6}{row['pass']:16}{row['form']:14}"
        time = f"{row['median_ms']:9.2f} ({row['spread_ms']:6.2f}) {row['of_roofline']:6.2f}"
        lines.append(f"{name}{time}")
    return lines


def _compiled(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "Compiled: MB accessed (mosaic_tpu's computed from its blocks) and of temporaries, "
        "thousand cycles issued"
    ]
    lines.append(f"{'':68}{'accessed':>10}{'floor':>8}{'temp':>8}{'cycles':>9}")
    for row in rows:
        subject = f"{row['chip']:5}{row['shape']:36}{row['kind']:5}r{row['rank']:<4}"
        name = f"{subject}{row['pass'][:7]:9}{row['form']:11}"
        if not row["fits"]:
            lines.append(f"{name} refused")
            continue
        line = name
        for key in ("accessed_bytes", "floor_bytes", "temporary_bytes"):
            line += f"{row[key] / 1e6:9.1f}"
        cycles = "-" if row["cycles"] is None else f"{row['cycles'] / 1e3:.0f}"
        lines.append(f"{line}{cycles:>9}")
    return lines
