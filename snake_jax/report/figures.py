"""Figures like the papers': what several methods reached against what that took.

A row of panels for each way to spread the data (IID, Non-IID), a curve for each method, and around
it a band over its seeds.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

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
from snake_jax.report.runs import Run, axes_of, before, common_merit, counts_tokens, curve
from snake_jax.report.units import axis_label, scale_for

PER_NODE = "iterations_per_node"


class Line(NamedTuple):
    """A curve of a figure: runs that differ in their seed alone, under one label.

    Attributes:
      label: in the legend.
      runs: one a seed; none where they are not there yet.
      colour: index into the colours.
      style: index into the line styles and markers.
    """

    label: str
    runs: Sequence[Run]
    colour: int
    style: int = 0


class Band(NamedTuple):
    """`[evaluations]` mean, least and greatest value over the seeds, and where (`x`) each is."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def panels_of(run: Run) -> dict[str, tuple[str, str]]:
    """`{axis: (label, unit)}` of the panels in a row, for runs like this one.

    Rows of text are all about as long, so tokens would repeat iterations: seconds stand there.
    """
    if counts_tokens(run):
        names = ("bytes", "flops", "seconds")
    else:
        names = ("examples", "bytes", "flops")
    panels = {PER_NODE: ("iterations per node", "")}
    axes = axes_of(run)
    for name in names:
        axis = axes[name]
        panels[name] = (axis.label, axis.unit)
    return panels


def curve_on(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(position, figure of merit) at the evaluations; `axis` is one of `panels_of`."""
    if axis != PER_NODE:
        return curve(run, axis)
    x, y = curve(run, "iterations")
    return x / run.config["nodes"], y


def band(runs: Sequence[Run], axis: str) -> Band:
    """Over the seeds; a run that is not as far as the others shortens all.

    Leads with what the models were before training where that is known of every seed.
    """
    positions = []
    values = []
    for run in runs:
        x, y = curve_on(run, axis)
        positions.append(x)
        values.append(y)
    shared = min(len(x) for x in positions)
    xs = np.stack([x[:shared] for x in positions])  # [seeds, evaluations]
    ys = np.stack([y[:shared] for y in values])

    # Before training all stand at 0 of every axis.
    starts = [before(run) for run in runs]
    if None not in starts:
        origins = np.zeros(len(runs))
        xs = np.column_stack([origins, xs])
        ys = np.column_stack([np.array(starts, float), ys])
    return Band(xs.mean(axis=0), ys.mean(axis=0), ys.min(axis=0), ys.max(axis=0))


def plot_figure(
    rows: Mapping[str, Sequence[Line]],
    output_path: str | Path,
    title: str,
    target: float | None = None,
) -> Path:
    """The runs' figure of merit against each of `panels_of`.

    There is a row of panels for every entry, as IID and Non-IID.

    Args:
      rows: title of the row to its lines; at least one line has a run.
      output_path: of the PNG.
      title: of the whole.
      target: value of the figure of merit to mark.

    Returns:
      The path of the PNG.

    Raises:
      UserError: runs without a common figure of merit, or a picture that cannot be written.
    """
    runs = _all_runs(rows)
    merit = common_merit(runs)
    axes = panels_of(runs[0])
    picture = new_figure(3.9 * len(axes), 3.3 * len(rows) + 0.9)
    panels = picture.subplots(len(rows), len(axes), sharey=True, sharex="col", squeeze=False)

    # All rows share an axis, so it reaches as far as the longest run of any row.
    ends = {}
    scales = {}
    for axis, (_, unit) in axes.items():
        last_positions = []
        for run in runs:
            x, _ = curve_on(run, axis)
            last_positions.append(x[-1])
        ends[axis] = max(last_positions)
        scales[axis] = scale_for(ends[axis], unit)

    # A row of panels for each way to spread the data, a panel for each axis.
    for row, (name, lines) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(f"{name}\n{merit.label}")
        for panel, axis in zip(row, axes, strict=True):
            for line in lines:
                _draw(panel, line, axis, scales[axis].factor)
            if target is not None:
                panel.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
            panel.set_xlim(0, 1.03 * ends[axis] / scales[axis].factor)
            merit_axis(panel, merit)
            look(panel)
    for panel, (axis, (label, _)) in zip(panels[-1], axes.items(), strict=True):
        panel.set_xlabel(axis_label(label, scales[axis]))

    handles = _handles(rows)
    picture.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    picture.suptitle(title, fontsize=11)
    return save(picture, output_path)


def _handles(rows: Mapping[str, Sequence[Line]]) -> list[Line2D]:
    """What the legend shows: a method has one entry, though it stands in every row."""
    handles = {}
    for lines in rows.values():
        for line in lines:
            handles[line.label] = Line2D([], [], label=line.label, **_style(line))
    return list(handles.values())


def plot_layers(
    names: Sequence[str], parts: Mapping[str, Sequence[float]], output_path: str | Path
) -> Path:
    """Bars for each layer: its share of each quantity.

    Args:
      names: of the layers.
      parts: what is drawn, each panel's title to a share in [0, 1] for every layer.
      output_path: of the PNG.

    Returns:
      The path of the PNG.
    """
    picture = new_figure(3.2 * len(parts), 0.3 * len(names) + 1.1)
    panels = picture.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    colours = itertools.cycle(COLOURS)
    for panel, title, colour in zip(panels, parts, colours, strict=False):
        panel.barh(range(len(names)), parts[title], color=colour)
        panel.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
        panel.set_title(title, fontsize=10)
        look(panel)
    # The first layer is on top.
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return save(picture, output_path)


def _all_runs(rows: Mapping[str, Sequence[Line]]) -> list[Run]:
    runs: list[Run] = []
    for lines in rows.values():
        for line in lines:
            runs += line.runs
    return runs


def _draw(panel: Axes, line: Line, axis: str, factor: float) -> None:
    if not line.runs:
        return
    found = band(line.runs, axis)
    x = found.x / factor
    style = _style(line)
    if len(x) > FEW:
        style["marker"] = None
    panel.plot(x, found.mean, **style)
    # A single seed has no spread.
    if len(line.runs) > 1:
        panel.fill_between(x, found.low, found.high, color=style["color"], alpha=0.2, linewidth=0)


def _style(line: Line) -> dict[str, Any]:
    return {
        "color": COLOURS[line.colour % len(COLOURS)],
        "linestyle": STYLES[line.style % len(STYLES)],
        "marker": MARKERS[line.style % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.5,
    }
