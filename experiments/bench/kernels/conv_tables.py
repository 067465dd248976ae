"""The benchmark's result as text."""

from collections.abc import Sequence


def report(result: dict) -> str:
    """The table of one result, as text."""
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    lines += [f"float32 matrix product at its fastest: {result['peak_gflops']:.0f} GFLOP/s", ""]
    return "\n".join(lines + _layer_table(result["layers"]))


def _layer_table(rows: Sequence[dict]) -> list[str]:
    sides = [side for side in ("ours", "product", "xla", "torch") if side in rows[0]]
    lines = [
        "Median ms (spread between quartiles), GFLOP/s, fraction of that product",
        f"{'layer':7}{'pass':16}",
    ]
    lines[1] += "".join(f"{side:>32}" for side in sides) + f"{'ours / its product':>20}"
    for row in rows:
        cells = [
            f"{t['median_ms']:10.2f} ({t['spread_ms']:6.2f}) {t['gflops']:6.1f} {t['of_peak']:5.2f}"
            for t in (row[side] for side in sides)
        ]
        ratio = row["ratios"]["ours / product"]
        lines.append(
            f"{row['layer']:7}{row['pass']:16}"
            + "".join(f"{cell:>32}" for cell in cells)
            + f"{ratio:20.2f}"
        )
    return lines
