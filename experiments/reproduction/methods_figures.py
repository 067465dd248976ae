"""What the comparison of all methods shows: a picture of dots and a table."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from experiments.reproduction import tables
from experiments.reproduction.cases import Case, Topic
from experiments.reproduction.methods import METHODS, PARTITIONS, TOPIC
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
from snake_jax.report.canvas import COLOURS, look, new_figure, save
from snake_jax.report.runs import Run, from_summary, last
from snake_jax.report.units import percent, scale_for
from snake_jax.runs import loop

Panel = tuple[str, str, str]
"""Of the picture: what it shows, its title, and its unit: empty of a share, `1` of a number."""
_PANELS: tuple[Panel, ...] = (
    ("final_accuracy", "test accuracy", ""),
    ("worst_tenth", "worst tenth of nodes", ""),
    ("bytes", "bytes sent", "B"),
    ("train_flops", "training work", "FLOP"),
    ("memory", "largest node's state", "B"),
    ("simulated_s", "simulated time", "s"),
)


def title(study: Study, figure: str) -> str:
    """Of the figure."""
    del study, figure
    return "Every method on the same examples"


def model_in_words(study: Study, found: Mapping[Case, Run]) -> str:
    """The network, in a few words."""
    del found
    settings = study.scale.settings
    return f"{settings['model']}, width {settings['width']:g}, {settings['nodes']} nodes"


def numbers_of(study: Study, figure: str, found: Mapping[Case, Run]) -> list[Numbers]:
    """The numbers of each run."""
    del figure
    rows = []
    memory: dict[tuple[str, str], int | None] = {}
    for case, run in found.items():
        # Counted from shapes, so it is one for all seeds.
        key = case.method, case.partition
        if key not in memory:
            memory[key] = _memory(study, case)
        rows.append(
            {
                "run": study.name(case),
                **of_case(case),
                "finished": run.summary is not None,
                "learning_rate": run.config["learning_rate"],
                "final_accuracy": last(run, "accuracy"),
                "node_mean": last(run, "node_accuracy_mean"),
                "worst_tenth": last(run, "node_accuracy_worst_tenth"),
                "examples": total(run, "examples"),
                "iterations": total(run, "iterations"),
                "bytes": total(run, "bytes_up") + total(run, "bytes_down"),
                "train_flops": total(run, "train_flops"),
                "memory": memory[key],
                "compiled_peak_bytes": from_summary(run, "peak_train_bytes"),
                "simulated_s": total(run, "clock_s"),
                "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
            }
        )
    return rows


def _memory(study: Study, case: Case) -> int | None:
    """Weights, gradients, optimizer states and teacher where most of them are held."""
    together: int = tables.node_memory(loop.prepare(study.config(case)))["together"]
    return together if together >= 0 else None


def sections(
    study: Study, figure: str, numbers: Sequence[Numbers], found: Mapping[Case, Run]
) -> list[str]:
    """The text below the title: the setting, and a table for each partition."""
    del figure, found
    columns: list[Column] = [
        ("test accuracy", several("final_accuracy", percent)),
        ("nodes' own data", several("node_mean", percent)),
        ("worst tenth of nodes", several("worst_tenth", percent)),
        ("bytes", several("bytes", BYTES)),
        ("FLOPs", several("train_flops", FLOPS)),
        ("state of a node", several("memory", BYTES)),
        ("simulated time", several("simulated_s", SECONDS)),
        ("learning rate", learning_rate),
    ]
    parts = [_about(study)]
    for partition, called in PARTITIONS.items():
        rows = [row for row in numbers if row["partition"] == partition]
        if rows:
            parts += [f"## {called}", markdown(rows, columns, _line_name)]
    return parts


def _line_name(group: Sequence[Numbers]) -> str:
    return METHODS[group[0]["method"]].label + notes(group[0], len(group))


def _about(study: Study) -> str:
    scale = study.scale
    settings = scale.settings
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    return (
        f"Scale {study.scale_name}: {settings['model']} of width {settings['width']:g} on "
        f"{scale.train_examples:,} training images over {settings['nodes']} nodes, each of which "
        f"holds out {settings['evaluate_nodes']:.0%} of its own. Every run passes all training "
        f"images {scale.cycles[1]} times, batch {settings['batch_size']}, plain SGD without "
        "momentum and clipping (BAdam, LISA, HiFT: Adam), constant rates that were not tuned; "
        f"seeds {seeds}. A cell is the mean, and the least to the greatest of the seeds. The worst "
        "tenth of nodes is by the model on what each holds out. The state is weights, gradients, "
        "optimizer states and teacher, without activations, at the node, or the one place, that "
        "holds most. The clock has equal nodes; of three snakes a round counts its longest visit."
    )


def draw(
    rows: Sequence[Numbers],
    path: Path,
    caption: str,
    topic: Topic = TOPIC,
    shown: Sequence[Panel] = _PANELS,
) -> Path:
    """Dots for each method: the mean of the seeds, and a line from the least to the greatest.

    Args:
      rows: from `numbers_of`.
      path: of the PNG.
      caption: above it.
      topic: whose methods and partitions.
      shown: what the panels show.
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
