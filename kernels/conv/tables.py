"""The benchmark's result as text."""

from collections.abc import Sequence


def report(result: dict) -> str:
    """The tables of one result, as text."""
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    lines += [f"float32 matrix product at its fastest: {result['peak_gflops']:.0f} GFLOP/s", ""]
    lines += _layer_table(result["layers"]) + [""] + _step_table(result) + [""] + _snake_table(result["snake"])
    lines += [""] + target_table(result)
    return "\n".join(lines)


def _layer_table(rows: Sequence[dict]) -> list[str]:
    sides = [side for side in ("ours", "xla", "torch") if side in rows[0]]
    lines = ["Median ms (spread between quartiles), GFLOP/s, fraction of that product", f"{'layer':7}{'pass':16}"]
    lines[1] += "".join(f"{side:>32}" for side in sides)
    for row in rows:
        cells = [
            f"{t['median_ms']:10.2f} ({t['spread_ms']:6.2f}) {t['gflops']:6.1f} {t['of_peak']:5.2f}"
            for t in (row[side] for side in sides)
        ]
        lines.append(f"{row['layer']:7}{row['pass']:16}" + "".join(f"{cell:>32}" for cell in cells))
    return lines


def _step_table(result: dict) -> list[str]:
    step = result["step"]
    sizes, scan = result["sizes"], result["scan_steps"]
    lines = [
        f"Full {sizes['model']} step, batch {sizes['batch']}, {result['parameters']:,} parameters, "
        f"{step['flops'] / 1e9:.2f} GFLOP; ours: a loop of {scan} steps over {scan}",
        f"{'':16}{'median ms':>11}{'spread':>9}{'fastest':>9}{'CPU ms':>9}{'repeats':>9}"
        f"{'compile s':>11}{'temp MB':>9}",
    ]
    for name, t in step["rows"].items():
        line = f"{name:16}{t['median_ms']:11.1f}{t['spread_ms']:9.1f}{t['fastest_ms']:9.1f}{t['cpu_ms']:9.1f}"
        line += f"{t['repeats']:9d}"
        if "compile_s" in t:
            line += f"{t['compile_s']:11.1f}{t['temporary_bytes'] / 1e6:9.1f}"
        lines.append(line)
    return lines + [f"{name}: {ratio:.3f}" for name, ratio in step["ratios"].items()]


def _snake_table(rows: Sequence[dict]) -> list[str]:
    lines = ["Snake visit's step (first + middle + last layer) over the full step, medians of paired rounds"]
    lines.append(f"{'middle':8}{'median ms':>11}{'spread':>9}{'time ratio':>12}{'FLOP ratio':>12}{'off':>8}")
    for r in rows:
        times = f"{r['median_ms']:11.1f}{r['spread_ms']:9.1f}"
        lines.append(f"{r['middle']:8}{times}{r['time_ratio']:12.3f}{r['flop_ratio']:12.3f}{r['off']:8.1%}")
    return lines


def target_table(result: dict) -> list[str]:
    """One line a target: measured, its bound, and whether it is met."""
    lines = ["Targets, for steps as training runs them: in a loop (a lone step in brackets)"]
    for t in result["targets"]:
        value = "-" if t["value"] is None else f"{t['value']:.3f}"
        value += "" if t["one_step"] is None else f" ({t['one_step']:.3f})"
        said = {True: "met", False: "unmet", None: "not measured"}[t["met"]]
        lines.append(f"{t['target']:40}{value:>18}   at most {t['limit']:<6}{said}")
    return lines
