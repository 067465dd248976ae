"""A figure from the runs that are there: PNG, Markdown and JSON in the results folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import cases, tables
from experiments.reproduction.cases import COMPARED, METHODS, ORDERS, PARTITIONS, Case
from experiments.reproduction.runs import Study
from experiments.reproduction.tables import Row
from snake_jax.report.figures import Line, plot_figure, plot_layers
from snake_jax.report.runs import Run

TITLES = {
    "2": "What each method costs, IID",
    "4": "VGG-11, layer by layer",
    "5": "Snake Learning and other frameworks, by local epochs E",
    "7": "Snake Learning, the visit of {layer} in every cycle taken over by an idle node halfway",
    "8": "Snake Learning, by the order of the middle layers",
}
_STYLES = {1: 0, 2: 1, 3: 1, 5: 2}  # line styles by E


def write(study: Study, figure: str) -> list[Path]:
    """Draws and tabulates a figure from what its runs have so far, and says which are missing.

    Returns:
      The files written; nothing where no run has anything to show.
    """
    study.results.mkdir(parents=True, exist_ok=True)
    if figure == "4":
        return _layers(study)
    found = {case: run for case in cases.of_figure(figure, study.scale) if (run := study.read(case))}
    if not found:
        return []
    title = TITLES[figure].format(layer=cases.interrupted_layer(study.scale))
    lines = {PARTITIONS[p]: _lines(figure, p, found) for p in PARTITIONS if any(c.partition == p for c in found)}
    picture = study.results / f"figure{figure}.png"
    plot_figure(lines, picture, _caption(study, title), study.scale.target)
    of = tables.methods_row if figure == "2" else tables.of_run
    rows = [of(study, case, run) for case, run in found.items()]
    missing = [study.name(c) for c in cases.of_figure(figure, study.scale) if c not in found or not study.finished(c)]
    return [picture, *_write(study, figure, title, rows, missing)]


def _caption(study: Study, title: str) -> str:
    settings = study.scale.settings
    network = f"{settings['model']}, width {settings['width']:g}, {settings['nodes']} nodes"
    return f"{title} (scale {study.scale_name}: {network})"


def _lines(figure: str, partition: str, found: dict[Case, Run]) -> list[Line]:
    """A line for each case that differs in more than its seed."""
    groups: dict[Case, list[Run]] = {}
    for case, run in found.items():
        if case.partition == partition:
            groups.setdefault(case._replace(seed=0), []).append(run)
    return [Line(_label(figure, case), runs, *_look(figure, case)) for case, runs in groups.items()]


def _label(figure: str, case: Case) -> str:
    if figure == "7":
        return "Interrupted" if case.interrupted else "Normal"
    if figure == "8":
        return case.order.capitalize()
    return METHODS[case.method].label if figure == "2" else tables.label(case)


def _look(figure: str, case: Case) -> tuple[int, int]:
    """Colour and style."""
    if figure == "5":
        return COMPARED.index(case.method), _STYLES.get(case.epochs, 3)
    if figure == "2":
        return list(METHODS).index(case.method), 0
    number = int(case.interrupted) if figure == "7" else ORDERS.index(case.order)
    return number, number


def _write(study: Study, figure: str, title: str, rows: Sequence[Row], missing: Sequence[str]) -> list[Path]:
    scale = study.scale
    body = (tables.methods_markdown if figure == "2" else tables.runs_markdown)(rows, scale.target)
    base: dict[str, Any] = {"method": "snake", "order": "sequential", "interrupted": False}
    if figure in ("2", "5"):
        base["method"] = "fedavg"
    parts = [f"# Figure {figure}: {title}", _setting(study), body, *_list(tables.against(rows, base))]
    if missing:
        parts.append(f"Not finished: {', '.join(missing)}.")
    return _files(study, figure, parts, {"rows": rows, "missing": list(missing)})


def _list(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _setting(study: Study) -> str:
    scale, settings = study.scale, study.scale.settings
    examples = f"{scale.train_examples:,}" if scale.train_examples else "all"
    cycles = ", ".join(f"{count} for E = {epochs}" for epochs, count in scale.cycles.items())
    goal = "the papers' target" if scale.target == 0.6 else "this scale's target, not the papers' 60 %"
    return (
        f"Scale {study.scale_name}: {settings['model']} of width {settings['width']:g}, {examples} training examples "
        f"over {settings['nodes']} nodes, batch {settings['batch_size']}; cycles (rounds): {cycles}; "
        f"seeds {', '.join(map(str, scale.seeds))}. {100 * scale.target:.0f} % is {goal}. "
        "Iterations of all nodes count; per node is their number over the number of nodes."
    )


def _layers(study: Study) -> list[Path]:
    rows = tables.layers_table()
    forward = sum(row["forward_flops"] for row in rows)
    params = sum(row["parameters"] for row in rows)
    shares = {
        "parameters": [row["parameters"] / params for row in rows],
        "forward FLOPs": [row["forward_flops"] / forward for row in rows],
        "visit's bytes / FL's": [row["visit_bytes_share"] for row in rows],
        "visit's FLOPs / FL's": [row["visit_flops_share"] for row in rows],
        "visit's memory / FL's": [row["visit_memory_share"] for row in rows],
    }
    picture = plot_layers([row["layer"] for row in rows], shares, study.results / "figure4.png")
    middle = rows[1:-1]
    means = [sum(row[f"visit_{kind}_share"] for row in middle) / len(middle) for kind in ("bytes", "flops", "memory")]
    text = (
        "Full-width VGG-11 for 32x32x3 images and 10 classes, counted from shapes, a batch of 32; nothing is trained. "
        "A visit trains the first layer, this one and the last, and sends these three up; its memory is weights, "
        "gradients and momentum, without activations. Full training is FL's: all layers. Mean over the middle layers: "
        f"{100 * means[0]:.1f} % of the bytes, {100 * means[1]:.1f} % of the FLOPs, {100 * means[2]:.1f} % of the "
        "memory."
    )
    parts = [f"# Figure 4: {TITLES['4']}", text, tables.layers_markdown(rows)]
    return [picture, *_files(study, "4", parts, {"rows": rows})]


def _files(study: Study, figure: str, parts: Sequence[str], numbers: dict[str, Any]) -> list[Path]:
    files = [study.results / f"figure{figure}.md", study.results / f"figure{figure}.json"]
    files[0].write_text("\n\n".join(parts) + "\n")
    files[1].write_text(json.dumps({"figure": figure, "scale": study.scale_name, **numbers}, indent=1) + "\n")
    return files
