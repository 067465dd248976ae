"""What the comparison of all methods shows: a picture of dots and a table."""

from collections.abc import Sequence
from pathlib import Path

from experiments.reproduction import tables
from experiments.reproduction.cases import Case
from experiments.reproduction.comparison_figures import (
    COSTS,
    HOW_TO_READ,
    Panel,
    by_partition,
    costs,
    draw_dots,
)
from experiments.reproduction.methods import TOPIC
from experiments.reproduction.run_numbers import Column, Numbers, several
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from experiments.reproduction.vision_figures import model_in_words
from snake_jax.report.runs import last
from snake_jax.report.units import percent
from snake_jax.runs import loop

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


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run."""
    del figure
    rows = []
    memory: dict[tuple[str, str], int | None] = {}
    for case, run in found.items():
        # Counted from shapes, so it is one for all seeds.
        key = case.method, case.partition
        if key not in memory:
            memory[key] = _memory(study, case)
        reached = {
            "final_accuracy": last(run, "accuracy"),
            "node_mean": last(run, "node_accuracy_mean"),
            "worst_tenth": last(run, "node_accuracy_worst_tenth"),
        }
        rows.append({**costs(study, case, run, memory[key]), **reached})
    return rows


def _memory(study: Study, case: Case) -> int | None:
    """Weights, gradients, optimizer states and teacher where most of them are held."""
    together: int = tables.node_memory(loop.prepare(study.config(case)))["together"]
    return together if together >= 0 else None


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: the setting, and a table for each partition."""
    del figure, found
    columns: list[Column] = [
        ("test accuracy", several("final_accuracy", percent)),
        ("nodes' own data", several("node_mean", percent)),
        ("worst tenth of nodes", several("worst_tenth", percent)),
    ]
    return [_about(study), *by_partition(TOPIC, numbers, [*columns, *COSTS])]


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
        f"seeds {seeds}. A cell is the mean, and the least to the greatest of the seeds. "
        f"{HOW_TO_READ}"
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """Dots for each method."""
    del study, figure, found
    return draw_dots(TOPIC, _PANELS, rows, path, caption)


SHOW = Show(title, model_in_words, numbers_of, sections, draw)
