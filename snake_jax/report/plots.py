"""Pictures of runs: accuracy or perplexity against what it cost, and what one run did."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from snake_jax.report.canvas import (
    COLOURS,
    FEW,
    MARKERS,
    STYLES,
    look,
    merit_axis,
    new_figure,
    save,
)
from snake_jax.report.runs import (
    PERPLEXITY,
    Record,
    Run,
    along,
    common_merit,
    cumulative,
    curve,
    curve_from_start,
    final,
)
from snake_jax.report.runs import merit as merit_of
from snake_jax.report.units import human, scale_for, short

MANY_LAYERS = 20
MANY_NODES = ("0.75", "black")  # fill and ink of a round that several nodes share
_LANGUAGE_CAPTION = ("algorithm", "model", "data", "partition")


def plot_curves(
    runs: Sequence[Run], output_path: str | Path, axes: Sequence[str] | None = None
) -> Path:
    """The runs' figure of merit against each of `axes`, with a legend of what each run reached and
    cost.

    Args:
      runs: of one figure of merit.
      output_path: of the PNG.
      axes: of the merit's; by default those it is pictured on.

    Returns:
      The path of the PNG.

    Raises:
      UserError: runs without a common figure of merit, or a picture that cannot be written.
    """
    merit = common_merit(runs)
    axes = merit.pictured if axes is None else axes
    columns = min(3, len(axes) + 1)
    rows = -(-(len(axes) + 1) // columns)
    figure = new_figure(4.6 * columns, 3.5 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=False):
        _merit_panel(panel, runs, axis)
    for panel in panels[len(axes) :]:
        panel.axis("off")
    handles = panels[0].get_legend_handles_labels()
    panels[len(axes)].legend(
        *handles,
        loc="center",
        frameon=False,
        labelspacing=1.2,
        fontsize=11 if len(runs) <= 4 else 8,
    )
    for row in range(rows):
        panels[row * columns].set_ylabel(merit.label)
    return save(figure, output_path)


def plot_run(run: Run, output_path: str | Path) -> Path:
    """One run against its iterations: accuracy or perplexity, loss, bytes, and which node trained
    which layer when.

    Returns:
      The path of the PNG.
    """
    layers = layer_order(run.metrics)
    strip = max(1.2, _row_height(layers) * len(layers))
    figure = new_figure(9, 6 + strip)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=[2.2, 1.6, 1.6, strip])
    for panel, draw in zip(panels, (_merit, _loss, _bytes), strict=False):
        draw(panel, run)
        _cycle_lines(panel, run)
    _layer_strip(panels[3], run, layers)
    panels[3].set_xlim(0, max(1.0, along(run, "iterations")[-1]) * 1.01)
    panels[3].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.align_ylabels()
    panels[3].set_xlabel("iterations; thin lines are the ends of cycles")
    panels[0].set_title(_caption(run), fontsize=11)
    return save(figure, output_path)


def layer_order(records: Iterable[Record]) -> list[str]:
    """All layers in an order that agrees with each record's; ties go by name, numbers inside names
    by value.
    """
    before: dict[str, set[str]] = {}
    for record in records:
        names = record.get("layers") or []
        for i, name in enumerate(names):
            before.setdefault(name, set()).update(names[:i])
    order: list[str] = []
    while left := [name for name in before if name not in order]:
        free = [name for name in left if before[name] <= set(order)] or left
        order.append(min(free, key=_natural))
    return order


def _natural(name: str) -> list[tuple[int, str]]:
    # Language models' layers say by their names alone which comes first and last.
    end = {"embed": -1, "head": 1}.get(name.split(".")[0], 0)
    return [(end, "")] + [
        (int(part), "") if part.isdigit() else (0, part) for part in re.findall(r"\d+|\D+", name)
    ]


def _merit_panel(panel: Axes, runs: Sequence[Run], axis: str) -> None:
    merit = merit_of(runs[0])
    scale = scale_for(max(along(run, axis)[-1] for run in runs), merit.axes[axis].unit)
    for i, run in enumerate(runs):
        x, y = curve_from_start(run, axis)
        panel.plot(x / scale.factor, y, label=_legend(run, airy=len(runs) <= 4), **_line(i, len(x)))
    unit = {"k": "thousands", "M": "millions", "G": "billions"}.get(scale.unit, scale.unit)
    label = merit.axes[axis].label
    panel.set_xlabel(f"{label} ({unit})" if unit else label)
    panel.set_xlim(left=0)
    merit_axis(panel, merit)
    look(panel)


def _line(i: int, points: int) -> dict:
    marker = MARKERS[i % len(MARKERS)] if points <= FEW else None
    style = STYLES[i // len(COLOURS) % len(STYLES)]
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": style,
        "linewidth": 1.6,
        "marker": marker,
        "markersize": 3.5,
    }


def _legend(run: Run, airy: bool) -> str:
    merit, value = merit_of(run), final(run)
    reached = merit.said.format(merit.show(value)) if value is not None else f"no {merit.field} yet"
    sent, flops = (
        human(along(run, axis)[-1], merit.axes[axis].unit) for axis in ("bytes", "flops")
    )
    separator = "\n" if airy else ", "
    return f"{run.name}\n" + separator.join((reached, f"{sent} sent", f"{flops} of training"))


def _caption(run: Run) -> str:
    settings = {**run.config, **(run.summary or {})}
    names = [str(settings[key]) for key in ("algorithm", "dataset", "partition") if key in settings]
    if merit_of(run) == PERPLEXITY:
        names = [short(str(settings[key])) for key in _LANGUAGE_CAPTION if key in settings]
    nodes = [f"{settings['nodes']} nodes"] if "nodes" in settings else []
    return f"{run.name}: {', '.join(names + nodes)}" if names else run.name


def _merit(panel: Axes, run: Run) -> None:
    merit = merit_of(run)
    x, y = curve_from_start(run, "iterations")
    panel.plot(x, y, **_line(0, len(x)))
    panel.set_ylabel(merit.label)
    merit_axis(panel, merit)
    look(panel)


def _loss(panel: Axes, run: Run) -> None:
    for i, (field, label) in enumerate((("loss", "training"), ("test_loss", merit_of(run).split))):
        x, y = curve(run, "iterations", field)
        if x.size:
            panel.plot(x, y, label=label, **_line(i, len(x)))
    panel.set_ylabel("loss")
    if panel.lines:
        panel.legend(frameon=False, fontsize=8, loc="upper right")
    look(panel)


def _bytes(panel: Axes, run: Run) -> None:
    x = np.concatenate([[0.0], along(run, "iterations")])
    totals = [
        np.concatenate([[0.0], cumulative(run, field)]) for field in ("bytes_up", "bytes_down")
    ]
    scale = scale_for(max(total[-1] for total in totals), "B")
    # Dashed: up and down are often equal, and one would hide the other.
    for total, label, style in zip(totals, ("up", "down"), ("-", "--"), strict=True):
        panel.step(
            x,
            total / scale.factor,
            color=COLOURS[label == "down"],
            linestyle=style,
            where="post",
            label=label,
        )
    panel.set_ylabel(f"{scale.unit} sent")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8, loc="upper left")
    look(panel)


def _cycle_lines(panel: Axes, run: Run) -> None:
    x, cycles = along(run, "iterations"), [record.get("cycle") for record in run.metrics]
    ends = [x[i] for i in range(len(cycles) - 1) if cycles[i] != cycles[i + 1]]
    if len(ends) <= FEW:
        for end in ends:
            panel.axvline(end, color="0.75", linewidth=0.8, zorder=0)


def _row_height(layers: Sequence[str]) -> float:
    """Inches; many rows are narrower, down to what the names need."""
    return 0.26 if len(layers) <= MANY_LAYERS else 0.16


def _layer_strip(panel: Axes, run: Run, layers: list[str]) -> None:
    """A row a layer, a block a visit, coloured and, where there is room, numbered by the node."""
    stops = along(run, "iterations")
    starts = np.concatenate([[0.0], stops[:-1]])
    colours = _node_colours(run)
    for row, layer in enumerate(layers):
        visits = [
            i for i, record in enumerate(run.metrics) if layer in (record.get("layers") or [])
        ]
        spans = [(starts[i], stops[i] - starts[i]) for i in visits]
        looks = [colours.get(_one_node(run.metrics[i]), MANY_NODES) for i in visits]
        panel.broken_barh(
            spans,
            (row - 0.45, 0.9),
            facecolors=[fill for fill, _ in looks],
            edgecolor="white",
            lw=0.4,
        )
        if len(run.metrics) <= FEW:
            for i, (_, ink) in zip(visits, looks, strict=True):
                style = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 6,
                    "color": ink,
                    "clip_on": True,
                }
                panel.text(
                    (starts[i] + stops[i]) / 2, row, _node_label(run.metrics[i], layer), **style
                )
    panel.set_yticks(range(len(layers)), layers, fontsize=8 if len(layers) <= MANY_LAYERS else 7)
    panel.set_ylim(len(layers) - 0.5, -0.5)
    panel.set_ylabel("layers trained,\nby node")
    panel.spines[["top", "right"]].set_visible(False)


def _one_node(record: Record) -> int | None:
    node = record.get("node")
    if isinstance(node, list):
        return node[0] if len(node) == 1 else None
    return node


def _node_label(record: Record, layer: str) -> str:
    """The node's number; a round of many nodes is labelled once, on its first layer."""
    node = _one_node(record)
    if node is not None:
        return str(node)
    return f"{len(record.get('node') or [])} nodes" if layer == record["layers"][0] else ""


def _node_colours(run: Run) -> dict[int | None, tuple]:
    """Fill and ink of each node, along viridis, which stays in order for every kind of sight and in
    grey.
    """
    nodes = sorted({node for record in run.metrics if (node := _one_node(record)) is not None})
    shades = [
        tuple(shade)
        for shade in matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, len(nodes)))
    ]
    inks = ["white" if 2 * i < len(nodes) else "black" for i in range(len(nodes))]
    return dict(zip(nodes, zip(shades, inks, strict=True), strict=True))
