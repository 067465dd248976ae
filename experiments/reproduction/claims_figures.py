"""What the runs say of the claims that no figure tests: a picture of differences and a table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import language_figures, tested, vision_figures
from experiments.reproduction.claims import CLAIMS, TEXT
from experiments.reproduction.comparison_figures import by_partition
from experiments.reproduction.run_numbers import (
    FLOPS,
    Column,
    Numbers,
    learning_rate,
    of_case,
    several,
    total,
)
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from experiments.reproduction.verdict import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from snake_jax.report.canvas import COLOURS, look, new_figure, save
from snake_jax.report.runs import final
from snake_jax.report.units import percent, significant

_COLOUR = {HOLDS: COLOURS[0], DOES_NOT_HOLD: COLOURS[1], CANNOT_TELL: "grey"}


def title(study: Study, figure: str) -> str:
    """Of the figure."""
    del study
    of = "text" if figure == TEXT else "images"
    return f"Claims that no figure tests, on {of}"


def model_in_words(study: Study, found: Found) -> str:
    """The network, in a few words."""
    if study.topic.name == TEXT:
        return language_figures.model_in_words(study, found)
    return vision_figures.model_in_words(study, found)


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run.

    `merit` is what a claim is about: points of accuracy, or the loss of a token in nats with the
    sign changed, so that more is better of both.
    """
    rows = []
    for case, run in found.items():
        reached = final(run)
        if figure == TEXT:
            merit = None if reached is None else -math.log(reached)
        else:
            merit = None if reached is None else 100 * reached
        rows.append(
            {
                "run": study.name(case),
                **of_case(case),
                "finished": run.summary is not None,
                "learning_rate": run.config["learning_rate"],
                "reached": reached,
                "merit": merit,
                "iterations": total(run, "iterations"),
                "train_flops": total(run, "train_flops"),
                "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
            }
        )
    return rows


def further(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """The claims as the figure's JSON has them, beside the rows."""
    del study
    return tested.as_json(tested.told(CLAIMS[figure], rows))


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: the setting, the claims, and the runs of each partition."""
    del found
    parts = [_about(study, figure)]
    lines = tested.told(CLAIMS[figure], numbers)
    if lines:
        text = tested.claims_table(lines, study.topic.partitions, tested.labels(study))
        parts += ["## Claims", text]
    shown = significant if figure == TEXT else percent
    columns: list[Column] = [
        ("perplexity" if figure == TEXT else "test accuracy", several("reached", shown)),
        ("FLOPs", several("train_flops", FLOPS)),
        ("learning rate", learning_rate),
    ]
    return [*parts, *by_partition(study.topic, numbers, columns)]


def _about(study: Study, figure: str) -> str:
    """What was run, for the reader of the table."""
    scale = study.scale
    settings = scale.settings
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    if figure == TEXT:
        model = study.topic.public(study.sources["model"])
        data = study.topic.public(study.sources["data"])
        setting = (
            f"{model}, a node for each block; {data}; {scale.cycles[1]} cycles, AdamW, rank "
            f"{settings['lora_rank']} where nothing else is said, distillation off"
        )
        merit = "the loss of a held-out token in nats, sign changed: 0.05 is 5 % of perplexity"
        rates = "Rates are fixed."
    else:
        setting = (
            f"{settings['model']} of width {settings['width']:g} on {scale.train_examples:,} "
            f"training images over {settings['nodes']} nodes, which every run passes "
            f"{scale.cycles[1]} times; batch {settings['batch_size']}, SGD with momentum "
            f"{settings['momentum']:g}, clipping at norm {settings['clip_norm']:g}, a cosine from "
            "cycle to cycle, distillation off"
        )
        merit = "points of accuracy on the test set"
        rates = "Rates are fixed; of optimizers several each were run, and the best stands for all."
    return (
        f"Scale {study.scale_name}: Snake Learning, {setting}; seeds {seeds}. The two runs of a "
        f"pair differ in one thing alone. A difference is in the direction of the claim, in "
        f"{merit}; a claim that something costs little holds where the difference is "
        f"significantly above minus that much. {rates}"
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """A line for each claim and partition: mean difference, deviation, and the claim's margin.

    Args:
      study: whose names are written.
      figure: which.
      rows: from `numbers_of`.
      found: not drawn itself.
      path: of the PNG.
      caption: above it.
    """
    del found
    lines = tested.told(CLAIMS[figure], rows)
    picture = new_figure(9.5, 0.45 * len(lines) + 1.6)
    picture.suptitle(caption, fontsize=11)
    panel = picture.subplots()
    names = []
    for place, line in enumerate(lines):
        mean, deviation = line.found.mean, line.found.deviation
        colour = _COLOUR[line.verdict]
        panel.plot(mean, place, "o", color=colour)
        panel.plot([mean - deviation, mean + deviation], [place, place], color=colour)
        panel.plot(line.claim.margin, place, "|", color="black", markersize=12)
        partition = study.topic.partitions[line.partition]
        names.append(f"{line.claim.text}, {partition}: {line.verdict}")
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    unit = CLAIMS[figure][0].unit
    panel.set_xlabel(f"difference in the claim's direction, {unit}; bar: its margin")
    look(panel)
    return save(picture, path)


SHOW = Show(title, model_in_words, numbers_of, sections, draw, further)
