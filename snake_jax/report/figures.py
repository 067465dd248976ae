"""Figures like the papers': what several methods reached against what it took, IID and Non-IID
apart, seeds a band.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

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
from snake_jax.report.runs import Merit, Run, before, common_merit, curve
from snake_jax.report.units import scale_for

PER_NODE = "iterations_per_node"
_WORDS = {"k": "thousands", "M": "millions", "G": "billions"}


class Line(NamedTuple):
    """Runs that differ in their seed alone, under one label; `colour` and `style` count from 0."""

    label: str
    runs: Sequence[Run]
    colour: int
    style: int = 0


class Band(NamedTuple):
    """Mean, least and greatest over the seeds at each evaluation that all of them have, and where
    that is.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def panels_of(merit: Merit) -> dict[str, tuple[str, str]]:
    """`{axis: (label, unit)}` of the panels in a row. Rows of text are alike, so tokens would
    repeat iterations.
    """
    chosen = (
        ("bytes", "flops", "seconds") if "tokens" in merit.axes else ("examples", "bytes", "flops")
    )
    own = {axis: (merit.axes[axis].label, merit.axes[axis].unit) for axis in chosen}
    return {PER_NODE: ("iterations per node", ""), **own}


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
    curves = [curve_on(run, axis) for run in runs]
    shared = min(len(x) for x, _ in curves)
    x, y = (np.stack([pair[i][:shared] for pair in curves]) for i in range(2))
    starts = [before(run) for run in runs]
    if None not in starts:
        x, y = np.pad(x, ((0, 0), (1, 0))), np.column_stack([np.array(starts, float), y])
    return Band(x.mean(0), y.mean(0), y.min(0), y.max(0))


def plot_figure(
    rows: Mapping[str, Sequence[Line]],
    output_path: str | Path,
    title: str,
    target: float | None = None,
) -> Path:
    """The runs' figure of merit against each of `panels_of`: a row of panels for every entry, as
    IID and Non-IID.

    Args:
      rows: title of the row to its lines; at least one line has a run.
      output_path: of the PNG.
      title: of the whole.
      target: accuracy or perplexity to mark.

    Returns:
      The path of the PNG.

    Raises:
      UserError: runs without a common figure of merit, or a picture that cannot be written.
    """
    merit = common_merit([run for lines in rows.values() for line in lines for run in line.runs])
    axes = panels_of(merit)
    picture = new_figure(3.9 * len(axes), 3.3 * len(rows) + 0.9)
    panels = picture.subplots(len(rows), len(axes), sharey=True, sharex="col", squeeze=False)
    scales = {axis: scale_for(_largest(rows, axis), unit) for axis, (_, unit) in axes.items()}
    for row, (name, lines) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(f"{name}\n{merit.label}")
        for panel, axis in zip(row, axes, strict=True):
            for line in lines:
                _draw(panel, line, axis, scales[axis].factor)
            if target is not None:
                panel.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
            panel.set_xlim(
                0, 1.03 * _largest(rows, axis) / scales[axis].factor
            )  # of all rows: they share the axis
            merit_axis(panel, merit)
            look(panel)
    for panel, (axis, (label, _)) in zip(panels[-1], axes.items(), strict=True):
        unit = _WORDS.get(scales[axis].unit, scales[axis].unit)
        panel.set_xlabel(f"{label} ({unit})" if unit else label)
    handles = {
        line.label: Line2D([], [], label=line.label, **_style(line))
        for ls in rows.values()
        for line in ls
    }
    picture.legend(
        handles=list(handles.values()), loc="outside lower center", ncols=5, frameon=False
    )
    picture.suptitle(title, fontsize=11)
    return save(picture, output_path)


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
    for i, (panel, (title, shares)) in enumerate(zip(panels, parts.items(), strict=True)):
        panel.barh(range(len(names)), shares, color=COLOURS[i % len(COLOURS)])
        panel.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
        panel.set_title(title, fontsize=10)
        look(panel)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return save(picture, output_path)


def _largest(rows: Mapping[str, Sequence[Line]], axis: str) -> float:
    return max(
        curve_on(run, axis)[0][-1] for lines in rows.values() for line in lines for run in line.runs
    )


def _draw(panel: Axes, line: Line, axis: str, factor: float) -> None:
    if not line.runs:
        return
    found = band(line.runs, axis)
    style = _style(line) | ({} if len(found.x) <= FEW else {"marker": None})
    panel.plot(found.x / factor, found.mean, **style)
    if len(line.runs) > 1:
        colour = style["color"]
        panel.fill_between(
            found.x / factor, found.low, found.high, color=colour, alpha=0.2, linewidth=0
        )


def _style(line: Line) -> dict:
    return {
        "color": COLOURS[line.colour % len(COLOURS)],
        "linestyle": STYLES[line.style % len(STYLES)],
        "marker": MARKERS[line.style % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.5,
    }
