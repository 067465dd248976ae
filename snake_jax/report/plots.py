"""Pictures of runs: the figure of merit against what it cost, and what one run did."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from snake_jax.report.merits import Record
from snake_jax.report.runs import (
    Run,
    along,
    axes_of,
    common_merit,
    counts_tokens,
    cumulative,
    curve,
    curve_from_start,
    final,
    merit_of,
    settings_of,
)
from snake_jax.report.units import axis_label, human, scale_for, short

MANY_LAYERS = 20
FEW_RUNS = 4  # up to which a legend has a line for each thing that it says of a run
# Rows of a text are cut and packed and say little, so tokens stand in the place of examples.
_PICTURED = ("iterations", "examples", "bytes", "flops", "seconds")
_TEXT_PICTURED = ("iterations", "tokens", "bytes", "flops", "seconds")
_CAPTION = ("algorithm", "dataset", "partition")
_TEXT_CAPTION = ("algorithm", "model", "data", "partition")


class Paint(NamedTuple):
    """Colours of a block in the strip of layers: its area, and the number on it."""

    fill: Any  # as Matplotlib takes colours
    ink: str


MANY_NODES = Paint("0.75", "black")  # of a round that several nodes share


def plot_curves(
    runs: Sequence[Run], output_path: str | Path, axes: Sequence[str] | None = None
) -> Path:
    """The runs' figure of merit against each of `axes`, a panel each.

    A legend says what each run reached and what that cost.

    Args:
      runs: of one figure of merit.
      output_path: of the PNG.
      axes: of `runs.axes_of`; by default iterations, examples or tokens, bytes, FLOPs, seconds.

    Returns:
      The path of the PNG.

    Raises:
      UserError: runs without a common figure of merit, or a picture that cannot be written.
    """
    merit = common_merit(runs)
    if axes is None:
        axes = _TEXT_PICTURED if counts_tokens(runs[0]) else _PICTURED

    # A panel an axis and one for the legend, at most three beside each other.
    count = len(axes) + 1
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure = new_figure(4.6 * columns, 3.5 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=False):
        _merit_panel(panel, runs, axis)
    for panel in panels[len(axes) :]:
        panel.axis("off")

    # All panels have the same curves, so one legend in the free panel serves them all.
    handles, labels = panels[0].get_legend_handles_labels()
    panels[len(axes)].legend(
        handles,
        labels,
        loc="center",
        frameon=False,
        labelspacing=1.2,
        fontsize=11 if len(runs) <= FEW_RUNS else 8,
    )
    # They share the vertical axis, so only the first of a row says what it is.
    for first_of_row in panels[::columns]:
        first_of_row.set_ylabel(merit.label)
    return save(figure, output_path)


def plot_run(run: Run, output_path: str | Path) -> Path:
    """One run against its iterations.

    Four panels: the figure of merit, the loss, the bytes sent, and which node trained which layer
    when.

    Returns:
      The path of the PNG.
    """
    layers = layer_order(run.metrics)
    # Inches; many rows are narrower, down to what the names need.
    row_height = 0.26 if len(layers) <= MANY_LAYERS else 0.16
    strip = max(1.2, row_height * len(layers))
    figure = new_figure(9, 6 + strip)
    merit_panel, loss_panel, bytes_panel, strip_panel = figure.subplots(
        4, 1, sharex=True, height_ratios=[2.2, 1.6, 1.6, strip]
    )
    _merit(merit_panel, run)
    _loss(loss_panel, run)
    _bytes(bytes_panel, run)
    for panel in (merit_panel, loss_panel, bytes_panel):
        _cycle_lines(panel, run)
    _layer_strip(strip_panel, run, layers)

    # The panels share their horizontal axis, which stands under the last one.
    iterations = along(run, "iterations")[-1]
    strip_panel.set_xlim(0, max(1.0, iterations) * 1.01)
    strip_panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    strip_panel.set_xlabel("iterations; thin lines are the ends of cycles")
    figure.align_ylabels()
    merit_panel.set_title(_caption(run), fontsize=11)
    return save(figure, output_path)


def layer_order(records: Iterable[Record]) -> list[str]:
    """All layers that train, in the model's order.

    The lines alone say what that is: each lists its layers in order. Where they leave it open,
    names decide, numbers inside names by value.
    """
    # Of every layer, those that stand before it in some line.
    before: dict[str, set[str]] = {}
    for record in records:
        names = record.get("layers") or []
        for i, name in enumerate(names):
            before.setdefault(name, set()).update(names[:i])

    # Again and again the first by name of those whose predecessors are all placed; any, where lines
    # contradict each other.
    order: list[str] = []
    left = list(before)
    while left:
        free = [name for name in left if before[name].isdisjoint(left)]
        following = min(free or left, key=_natural)
        order.append(following)
        left.remove(following)
    return order


def _natural(name: str) -> list[tuple[int, str]]:
    # Language models' layers say by their names alone which comes first and last.
    end = {"embed": -1, "head": 1}.get(name.split(".")[0], 0)
    key = [(end, "")]
    for part in re.findall(r"\d+|\D+", name):
        key.append((int(part), "") if part.isdigit() else (0, part))
    return key


def _merit_panel(panel: Axes, runs: Sequence[Run], axis: str) -> None:
    shown = axes_of(runs[0])[axis]
    farthest = max(along(run, axis)[-1] for run in runs)
    scale = scale_for(farthest, shown.unit)
    for number, run in enumerate(runs):
        x, y = curve_from_start(run, axis)
        label = _legend(run, airy=len(runs) <= FEW_RUNS)
        panel.plot(x / scale.factor, y, label=label, **_line(number, len(x)))
    panel.set_xlabel(axis_label(shown.label, scale))
    panel.set_xlim(left=0)
    merit_axis(panel, merit_of(runs[0]))
    look(panel)


def _line(number: int, points: int) -> dict[str, Any]:
    """How the curve of a run is drawn, by its number among the runs."""
    # When all colours were used, they come again in another style.
    times_through, colour = divmod(number, len(COLOURS))
    marker = MARKERS[number % len(MARKERS)] if points <= FEW else None
    return {
        "color": COLOURS[colour],
        "linestyle": STYLES[times_through % len(STYLES)],
        "linewidth": 1.6,
        "marker": marker,
        "markersize": 3.5,
    }


def _legend(run: Run, airy: bool) -> str:
    merit = merit_of(run)
    value = final(run)
    reached = f"no {merit.name} yet" if value is None else merit.said(value)
    axes = axes_of(run)
    sent = human(along(run, "bytes")[-1], axes["bytes"].unit)
    work = human(along(run, "flops")[-1], axes["flops"].unit)
    separator = "\n" if airy else ", "
    said = separator.join((reached, f"{sent} sent", f"{work} of training"))
    return f"{run.name}\n{said}"


def _caption(run: Run) -> str:
    settings = settings_of(run)
    if counts_tokens(run):
        # Models and data of fine-tuning runs are paths and names on a hub.
        words = [short(str(settings[key])) for key in _TEXT_CAPTION if key in settings]
    else:
        words = [str(settings[key]) for key in _CAPTION if key in settings]
    if not words:
        return run.name
    if "nodes" in settings:
        words.append(f"{settings['nodes']} nodes")
    return f"{run.name}: {', '.join(words)}"


def _merit(panel: Axes, run: Run) -> None:
    merit = merit_of(run)
    x, y = curve_from_start(run, "iterations")
    panel.plot(x, y, **_line(0, len(x)))
    panel.set_ylabel(merit.label)
    merit_axis(panel, merit)
    look(panel)


def _loss(panel: Axes, run: Run) -> None:
    labels = {"loss": "training", "test_loss": merit_of(run).split}
    for number, (field, label) in enumerate(labels.items()):
        x, y = curve(run, "iterations", field)
        if x.size:
            panel.plot(x, y, label=label, **_line(number, len(x)))
    panel.set_ylabel("loss")
    if panel.lines:
        panel.legend(frameon=False, fontsize=8, loc="upper right")
    look(panel)


def _bytes(panel: Axes, run: Run) -> None:
    x = _from_zero(along(run, "iterations"))
    up = _from_zero(cumulative(run, "bytes_up"))
    down = _from_zero(cumulative(run, "bytes_down"))
    scale = scale_for(max(up[-1], down[-1]), "B")
    # Dashed: up and down are often equal, and one would hide the other.
    panel.step(x, up / scale.factor, color=COLOURS[0], linestyle="-", where="post", label="up")
    panel.step(x, down / scale.factor, color=COLOURS[1], linestyle="--", where="post", label="down")
    panel.set_ylabel(f"{scale.unit} sent")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8, loc="upper left")
    look(panel)


def _from_zero(totals: np.ndarray) -> np.ndarray:
    """Running totals after each visit, led by where they begin."""
    return np.concatenate([[0.0], totals])


def _cycle_lines(panel: Axes, run: Run) -> None:
    x = along(run, "iterations")
    ends = []
    for visit in range(len(run.metrics) - 1):
        cycle = run.metrics[visit].get("cycle")
        following = run.metrics[visit + 1].get("cycle")
        if cycle != following:
            ends.append(x[visit])
    # Of very many cycles the lines would hide the curves.
    if len(ends) <= FEW:
        for end in ends:
            panel.axvline(end, color="0.75", linewidth=0.8, zorder=0)


def _layer_strip(panel: Axes, run: Run, layers: list[str]) -> None:
    """A row a layer, a block a visit, coloured and, where there is room, numbered by the node."""
    stops = along(run, "iterations")
    starts = _from_zero(stops[:-1])
    paints = _node_paints(run)
    numbered = len(run.metrics) <= FEW
    for row, layer in enumerate(layers):
        # A block for each visit that trained the layer.
        spans: list[tuple[float, float]] = []
        fills = []
        for record, start, stop in zip(run.metrics, starts, stops, strict=True):
            if layer not in (record.get("layers") or []):
                continue
            paint = paints.get(_one_node(record), MANY_NODES)
            spans.append((start, stop - start))
            fills.append(paint.fill)
            if numbered:
                panel.text(
                    (start + stop) / 2,
                    row,
                    _node_label(record, layer),
                    fontsize=6,
                    color=paint.ink,
                    ha="center",
                    va="center",
                    clip_on=True,
                )
        panel.broken_barh(spans, (row - 0.45, 0.9), facecolors=fills, edgecolor="white", lw=0.4)

    # The first layer is on top.
    size = 8 if len(layers) <= MANY_LAYERS else 7
    panel.set_yticks(range(len(layers)), layers, fontsize=size)
    panel.set_ylim(len(layers) - 0.5, -0.5)
    panel.set_ylabel("layers trained,\nby node")
    panel.spines[["top", "right"]].set_visible(False)


def _one_node(record: Record) -> int | None:
    """The node of a visit; None of a round that several share."""
    node = record.get("node")
    if isinstance(node, list):
        return node[0] if len(node) == 1 else None
    return node


def _node_label(record: Record, layer: str) -> str:
    """The node's number; a round of many nodes is labelled once, on its first layer."""
    node = _one_node(record)
    if node is not None:
        return str(node)
    if layer != record["layers"][0]:
        return ""
    nodes = record.get("node") or []
    return f"{len(nodes)} nodes"


def _node_paints(run: Run) -> dict[int | None, Paint]:
    """Each node's colours, along viridis: in order for every kind of sight, and in grey."""
    found = {_one_node(record) for record in run.metrics}
    nodes = sorted(node for node in found if node is not None)
    # The ends of viridis are too dark and too pale for a number on them.
    shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, len(nodes)))
    paints: dict[int | None, Paint] = {}
    for number, (node, shade) in enumerate(zip(nodes, shades, strict=True)):
        # The first half of viridis is dark.
        ink = "white" if 2 * number < len(nodes) else "black"
        paints[node] = Paint(tuple(shade), ink)
    return paints
