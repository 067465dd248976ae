"""What runs of a published setting show: curves, and each method beside the published number."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction.comparison_figures import by_partition, draw_curves
from experiments.reproduction.published import PUBLISHED, TOPIC
from experiments.reproduction.run_numbers import Column, Numbers, by_case, of_case, several, total
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from experiments.reproduction.vision_figures import model_in_words
from snake_jax.report.runs import best, curve, final
from snake_jax.report.units import percent

MOST_DEVIATIONS = 2.0
"""Of `apart`: as many deviations of a difference of two runs as chance may well make."""


def title(study: Study, figure: str) -> str:
    """Of the figure."""
    del study, figure
    return "FedAvg, FedProx and FedNova beside published results"


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run; what is published is the best of all rounds."""
    del figure
    rows = []
    for case, run in found.items():
        _, scored = curve(run, "iterations")
        rows.append(
            {
                "run": study.name(case),
                **of_case(case),
                "finished": run.summary is not None,
                "rounds": len(scored),
                "best_accuracy": best(run),
                "final_accuracy": final(run),
                "best_round": int(scored.argmax()) + 1,
                "iterations": total(run, "iterations"),
                "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
            }
        )
    return rows


def apart(group: Sequence[Numbers]) -> tuple[float, float] | None:
    """How far the seeds of a case lie from the published mean: points, and in deviations.

    The unit is the deviation of a difference of one of our runs and one of theirs,
    sqrt(s^2 + s'^2). None while there are fewer than two finished runs.

    Args:
      group: rows of a case, one a seed.
    """
    if len(group) < 2 or not all(row["finished"] for row in group):
        return None
    ours = [100 * row["best_accuracy"] for row in group]
    theirs = PUBLISHED[group[0]["method"], group[0]["partition"]]
    points = statistics.fmean(ours) - theirs.mean
    deviation = math.hypot(statistics.stdev(ours), theirs.deviation)
    return points, points / deviation


def further(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """What is published, and how far from it the runs are, as the figure's JSON has them."""
    del study, figure
    lines = []
    for group in by_case(rows):
        method, partition = group[0]["method"], group[0]["partition"]
        points, deviations = apart(group) or (None, None)
        lines.append(
            {
                "method": method,
                "partition": partition,
                **PUBLISHED[method, partition]._asdict(),
                "points_apart": points,
                "deviations_apart": deviations,
            }
        )
    return {"most_deviations": MOST_DEVIATIONS, "published": lines}


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: the setting, and a table for each partition."""
    del figure, found
    columns: list[Column] = [
        ("best accuracy", several("best_accuracy", percent)),
        ("at round", several("best_round", "{:.0f}".format)),
        ("last round", several("final_accuracy", percent)),
        ("Flower's", _flower),
        ("apart", _apart),
        ("as published", _agrees),
        ("NIID-Bench's", _paper),
    ]
    return [_about(study), *by_partition(TOPIC, numbers, columns)]


def _flower(group: Sequence[Numbers]) -> str:
    theirs = PUBLISHED[group[0]["method"], group[0]["partition"]]
    return f"{theirs.mean:.2f} ± {theirs.deviation:.2f} %"


def _paper(group: Sequence[Numbers]) -> str:
    theirs = PUBLISHED[group[0]["method"], group[0]["partition"]]
    return "-" if theirs.paper is None else f"{theirs.paper:.1f} %"


def _apart(group: Sequence[Numbers]) -> str:
    found = apart(group)
    return "-" if found is None else f"{found[0]:+.2f} points, {found[1]:+.1f} deviations"


def _agrees(group: Sequence[Numbers]) -> str:
    found = apart(group)
    if found is None:
        return "-"
    return "yes" if abs(found[1]) <= MOST_DEVIATIONS else "no"


def _about(study: Study) -> str:
    scale = study.scale
    settings = scale.settings
    examples = f"{scale.train_examples:,}" if scale.train_examples else "all"
    (epochs,) = scale.cycles
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    return (
        f"Scale {study.scale_name}: {settings['model']} on {examples} training images over "
        f"{settings['nodes']} nodes, {scale.cycles[epochs]} rounds of {epochs} local epochs; batch "
        f"{settings['batch_size']}, SGD 0.01 with momentum {settings['momentum']:g}; seeds "
        f"{seeds}, each with a split of its own. The setting is that of NIID-Bench (Li et al. "
        "2022) as Flower's baseline of that name runs it. What both publish is the best accuracy "
        "of all rounds, so that is what stands beside it. A mean is as published where it lies "
        f"within {MOST_DEVIATIONS:g} deviations of a difference of two runs, one of ours and one "
        "of Flower's; the numbers are Flower's for the smoke scale too, where they mean nothing."
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """Curves: a panel for each axis, a row for each partition."""
    del study, figure, rows
    return draw_curves(TOPIC, found, path, caption)


SHOW = Show(title, model_in_words, numbers_of, sections, draw, further)
