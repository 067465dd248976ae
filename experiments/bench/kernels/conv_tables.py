"""The benchmark's result as text."""

from collections.abc import Sequence
from typing import Any

SIDES = ("ours", "product", "xla", "torch")


def report(result: dict[str, Any]) -> str:
    """The table of one result, as text."""
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    lines.append(f"float32 matrix product at its fastest: {result['peak_gflops']:.0f} GFLOP/s")
    lines.append("")
    lines += _layer_table(result["layers"])
    return "\n".join(lines)


def _layer_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a layer and pass, a column for each side that was timed."""
    sides = [side for side in SIDES if side in rows[0]]
    head = f"{'layer':7}{'pass':16}"
    for side in sides:
        head += f"{side:>32}"
    head += f"{'ours / its product':>20}"
    lines = ["Median ms (spread between quartiles), GFLOP/s, fraction of that product", head]
    for row in rows:
        line = f"{row['layer']:7}{row['pass']:16}"
        for side in sides:
            line += f"{_timed(row[side]):>32}"
        ratio = row["ratios"]["ours / product"]
        lines.append(f"{line}{ratio:20.2f}")
    return lines


def _timed(side: dict[str, float]) -> str:
    time = f"{side['median_ms']:10.2f} ({side['spread_ms']:6.2f})"
    return f"{time} {side['gflops']:6.1f} {side['of_peak']:5.2f}"
