"""The benchmark's result as text."""

from collections.abc import Sequence
from typing import Any

SIDES = ("ours", "product", "xla", "torch")


def report(result: dict[str, Any]) -> str:
    """The table of one result, as text."""
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    lines += [f"float32 matrix product at its fastest: {result['peak_gflops']:.0f} GFLOP/s", ""]
    return "\n".join(lines + _layer_table(result["layers"]))


def _layer_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a layer and pass, a column for each side that was timed."""
    sides = [side for side in SIDES if side in rows[0]]
    heads = "".join(f"{side:>32}" for side in sides)
    lines = [
        "Median ms (spread between quartiles), GFLOP/s, fraction of that product",
        f"{'layer':7}{'pass':16}{heads}{'ours / its product':>20}",
    ]
    for row in rows:
        cells = "".join(f"{_timed(row[side]):>32}" for side in sides)
        ratio = row["ratios"]["ours / product"]
        lines.append(f"{row['layer']:7}{row['pass']:16}{cells}{ratio:20.2f}")
    return lines


def _timed(side: dict[str, float]) -> str:
    time = f"{side['median_ms']:10.2f} ({side['spread_ms']:6.2f})"
    return f"{time} {side['gflops']:6.1f} {side['of_peak']:5.2f}"
