"""What figures of comparisons have in common: costs of a run, tables, a picture of dots."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from experiments.reproduction.cases import Case, Topic
from experiments.reproduction.run_numbers import (
    BYTES,
    FLOPS,
    SECONDS,
    Column,
    Numbers,
    by_case,
    learning_rate,
    markdown,
    notes,
    of_case,
    several,
    total,
)
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found
from experiments.reproduction.vision_figures import curves
from snake_jax.report.canvas import COLOURS, look, new_figure, save
from snake_jax.report.figures import Line, plot_figure
from snake_jax.report.runs import Run, from_summary
from snake_jax.report.units import scale_for

Panel = tuple[str, str, str]
"""Of the picture: what it shows, its title, and its unit: empty of a share, `1` of a number."""
COSTS: list[Column] = [
    ("bytes", several("bytes", BYTES)),
    ("FLOPs", several("train_flops", FLOPS)),
    ("state of a node", several("memory", BYTES)),
    ("simulated time", several("simulated_s", SECONDS)),
    ("learning rate", learning_rate),
]
HOW_TO_READ = (
    "The worst tenth of nodes is by the model on what each holds out. The state is weights, "
    "gradients, optimizer states and teacher, without activations, at the node, or the one place, "
    "that holds most. The clock has equal nodes; of three snakes a round counts its longest visit."
)


def costs(study: Study, case: Case, run: Run, memory: float | None) -> Numbers:
    """Which run it is and what it took, whatever it trains.

    Args:
      study: whose run.
      case: of the run.
      run: as far as it is.
      memory: bytes of the state of the node that holds most.
    """
    return {
        "run": study.name(case),
        **of_case(case),
        "finished": run.summary is not None,
        "learning_rate": run.config["learning_rate"],
        "examples": total(run, "examples"),
        "iterations": total(run, "iterations"),
        "bytes": total(run, "bytes_up") + total(run, "bytes_down"),
        "train_flops": total(run, "train_flops"),
        "memory": memory,
        "compiled_peak_bytes": from_summary(run, "peak_train_bytes"),
        "simulated_s": total(run, "clock_s"),
        "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
    }


def by_partition(topic: Topic, numbers: Sequence[Numbers], columns: Sequence[Column]) -> list[str]:
    """A heading and a table for each partition that has runs; a line is a method, all its seeds."""

    def name(group: Sequence[Numbers]) -> str:
        method = topic.methods[group[0]["method"]]
        return method.label + notes(group[0], len(group))

    parts = []
    for partition, called in topic.partitions.items():
        rows = [row for row in numbers if row["partition"] == partition]
        if rows:
            parts += [f"## {called}", markdown(rows, columns, name)]
    return parts


def draw_curves(topic: Topic, found: Found, path: Path, caption: str) -> Path:
    """Curves of every method: a panel for each axis, a row for each partition."""

    def line(case: Case, runs: Sequence[Run]) -> Line:
        return Line(topic.methods[case.method].label, runs, list(topic.methods).index(case.method))

    return plot_figure(curves(found, topic.partitions, line), path, caption)


def draw_dots(
    topic: Topic, shown: Sequence[Panel], rows: Sequence[Numbers], path: Path, caption: str
) -> Path:
    """Dots for each method: the mean of the seeds, and a line from the least to the greatest.

    Args:
      topic: whose methods and partitions.
      shown: what the panels show.
      rows: of the runs.
      path: of the PNG.
      caption: above it.
    """
    names = [name for name in topic.methods if any(row["method"] == name for row in rows)]
    picture = new_figure(2.7 * len(shown) + 1.2, 0.3 * len(names) + 1.6)
    picture.suptitle(caption, fontsize=11)
    panels = picture.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (key, called, unit) in zip(panels, shown, strict=True):
        _dots(panel, rows, names, key, unit, topic)
        panel.set_title(called, fontsize=10)
        look(panel)
    panels[0].set_yticks(range(len(names)), [topic.methods[name].label for name in names])
    panels[0].invert_yaxis()
    dots, labels = panels[0].get_legend_handles_labels()
    picture.legend(dots, labels, fontsize=9, loc="outside lower center", ncols=len(labels))
    return save(picture, path)


def _dots(
    panel: Axes, rows: Sequence[Numbers], names: Sequence[str], key: str, unit: str, topic: Topic
) -> None:
    """One quantity of all methods."""
    known = [row[key] for row in rows if row[key] is not None]
    factor = 1.0
    if unit == "1":
        # Plain numbers at 1, 2 and 5 of each power of ten: all ticks of a short axis would overlap.
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(FuncFormatter(_plain))
        panel.xaxis.set_minor_formatter(NullFormatter())
    elif unit:
        scale = scale_for(max(known, default=1.0), unit)
        factor = scale.factor
        panel.set_xlabel(scale.unit, fontsize=9)
    else:
        panel.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for number, (partition, called) in enumerate(topic.partitions.items()):
        label: str | None = called
        for group in by_case([row for row in rows if row["partition"] == partition]):
            values = [row[key] / factor for row in group if row[key] is not None]
            if not values:
                continue
            # The partitions of a method stand one above the other.
            place = names.index(group[0]["method"]) + 0.3 * (number - 0.5)
            colour, middle = COLOURS[number], statistics.fmean(values)
            panel.plot(middle, place, "o", label=label, color=colour, markersize=4)
            panel.plot([min(values), max(values)], [place, place], color=colour)
            label = None


def _plain(value: float, place: int) -> str:
    """A tick of an axis of numbers."""
    del place
    return f"{value:g}"
