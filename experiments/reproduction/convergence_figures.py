"""What the runs until accuracy no longer rises show: curves, where each ends, and the claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import tested
from experiments.reproduction.comparison_figures import by_partition, draw_curves
from experiments.reproduction.convergence import (
    CLAIMS,
    MOST_RISE,
    TOPIC,
    WITHIN,
    flat_since,
)
from experiments.reproduction.run_numbers import (
    BYTES,
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
from experiments.reproduction.tested import Told
from experiments.reproduction.verdict import CANNOT_TELL
from experiments.reproduction.vision_figures import model_in_words
from snake_jax.report.runs import best, curve, final
from snake_jax.report.units import percent


def title(study: Study, figure: str) -> str:
    """Of the figure."""
    del study, figure
    return "Trained until accuracy no longer rises"


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run; `merit` is what a claim is about, the accuracy in percent.

    `flat_since` is the number of passes after which the curve was flat: None where it is not.
    """
    del figure
    rows = []
    for case, run in found.items():
        reached = final(run)
        _, scored = curve(run, "iterations")
        since = flat_since(scored.tolist())
        rows.append(
            {
                "run": study.name(case),
                **of_case(case),
                "finished": run.summary is not None,
                "learning_rate": run.config["learning_rate"],
                "passes": len(scored),
                "final_accuracy": reached,
                "best_accuracy": best(run),
                "merit": None if reached is None else 100 * reached,
                "flat": since is not None,
                "flat_since": since,
                "iterations": total(run, "iterations"),
                "bytes": total(run, "bytes_up") + total(run, "bytes_down"),
                "train_flops": total(run, "train_flops"),
                "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
            }
        )
    return rows


def told(study: Study, rows: Sequence[Numbers]) -> list[Told]:
    """What finished runs say of each claim; nothing can be told where a run of them still rises."""
    rising = set()
    for row in rows:
        if row["finished"] and not row["flat"]:
            rising.add((row["method"], row["partition"]))
    lines = []
    for line in tested.told(CLAIMS, rows, tested.tuned_at_edge(study)):
        sides = {(line.side, line.partition), (line.rival, line.partition)}
        lines.append(line._replace(verdict=CANNOT_TELL) if rising & sides else line)
    return lines


def further(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """The rule and the claims, as the figure's JSON has them beside the rows."""
    del figure
    rule = {"last_evaluations": WITHIN, "most_rise": MOST_RISE}
    return {"flat": rule, **tested.as_json(told(study, rows))}


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: the setting, the claims, and a table for each partition."""
    del figure, found
    parts = [_about(study)]
    lines = told(study, numbers)
    if lines:
        text = tested.claims_table(lines, study.topic.partitions, tested.labels(study))
        parts += ["## Claims", text]
    columns: list[Column] = [
        ("final accuracy", several("final_accuracy", percent)),
        ("best", several("best_accuracy", percent)),
        ("flat", _flat),
        ("flat since pass", several("flat_since", "{:.0f}".format)),
        ("bytes", several("bytes", BYTES)),
        ("FLOPs", several("train_flops", FLOPS)),
        ("learning rate", learning_rate),
    ]
    return [*parts, *by_partition(TOPIC, numbers, columns)]


def _flat(group: Sequence[Numbers]) -> str:
    """A column's text: how many of the seeds are."""
    count = sum(row["flat"] for row in group)
    return f"{count} of {len(group)}"


def _about(study: Study) -> str:
    scale = study.scale
    settings = scale.settings
    examples = f"{scale.train_examples:,}" if scale.train_examples else "all"
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    return (
        f"Scale {study.scale_name}: {settings['model']} of width {settings['width']:g} on "
        f"{examples} training images over {settings['nodes']} nodes, which every run passes "
        f"{scale.cycles[1]} times, E = 1; batch {settings['batch_size']}, the rate times "
        f"{settings['lr_decay']:g} a pass; seeds {seeds}. A run is flat where the best of its last "
        f"{WITHIN} evaluations, one a pass, is at most {100 * MOST_RISE:g} points above the best "
        "before, and flat since the pass after which it was so to its end. Where a run of either "
        "side is not flat, a claim cannot be told. Differences are in the direction of the claim, "
        "in points of final accuracy: of a claim on a share of FL, over that share of FL's."
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """Curves: a panel for each axis, a row for each partition."""
    del study, figure, rows
    return draw_curves(TOPIC, found, path, caption)


SHOW = Show(title, model_in_words, numbers_of, sections, draw, further)
