"""What FedAvg's runs show beside its paper's tables: curves with the published round, a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from experiments.reproduction import rounds, tested
from experiments.reproduction.comparison_figures import by_partition
from experiments.reproduction.rounds import ROW_OF, ROWS, TOPIC
from experiments.reproduction.run_numbers import Column, Numbers, of_case, several, total
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from experiments.reproduction.tested import Told
from snake_jax.report.canvas import COLOURS, look, new_figure, save
from snake_jax.report.runs import Run, curve, final
from snake_jax.report.units import percent


def title(study: Study, figure: str) -> str:
    """Of the figure."""
    del study, figure
    return "FedAvg's rounds to an accuracy, beside those of its paper"


def model_in_words(study: Study, found: Found) -> str:
    """The networks, in a few words."""
    del found
    return f"2NN on {study.topic.public(study.sources['data'])}"


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run; `rounds` are the last one's where the target was not reached."""
    del figure
    rows = []
    for case, run in found.items():
        _, accuracies = curve(run, "iterations")
        reached = rounds.rounds_to(ROW_OF[case.method].target, accuracies)
        rows.append(
            {
                "run": study.name(case),
                **of_case(case),
                "finished": run.summary is not None,
                "learning_rate": run.config["learning_rate"],
                "reached": reached is not None,
                "rounds": float(len(accuracies)) if reached is None else reached,
                "published": ROW_OF[case.method].published[case.partition],
                "final_accuracy": final(run),
                "iterations": total(run, "iterations"),
                "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
            }
        )
    return rows


def told(rows: Sequence[Numbers]) -> list[Told]:
    """What the runs say of each row of the paper's tables."""
    return tested.told(rounds.claims(), rounds.with_published(rows))


def further(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """The claims as the figure's JSON has them, beside the rows."""
    del study, figure
    return tested.as_json(told(rows))


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: the setting, the claims, and all rates of each partition."""
    del figure, found
    parts = [_about(study)]
    lines = told(numbers)
    if lines:
        names = tested.labels(study) | dict.fromkeys(ROWS, "the published number")
        parts += ["## Claims", tested.claims_table(lines, study.topic.partitions, names)]
    columns: list[Column] = [
        ("rounds", several("rounds", "{:.1f}".format)),
        ("reached", _reached),
        ("published", _published),
        ("accuracy at the end", several("final_accuracy", percent)),
    ]
    return [*parts, *by_partition(TOPIC, numbers, columns)]


def _reached(group: Sequence[Numbers]) -> str:
    return f"{sum(row['reached'] for row in group)} of {len(group)}"


def _published(group: Sequence[Numbers]) -> str:
    return str(group[0]["published"])


def _about(study: Study) -> str:
    scale = study.scale
    settings = scale.settings
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    return (
        f"Scale {study.scale_name}: {settings['nodes']} clients, E = 1, batches of "
        f"{settings['batch_size']}, SGD without momentum, pixels from 0 to 1; seeds {seeds}, each "
        "with a division, weights and draws of its own. Rounds are counted as McMahan et al. 2017 "
        "count them: when the best test accuracy so far crosses 97 %, "
        "interpolated between rounds. A run that has not come so far in "
        f"{rounds.MOST_TIMES:g} times the published rounds ends, and counts as if it had. Of the "
        "rates of a row the best stands for it, as in the paper, which says neither its rates nor "
        "its spread. A claim holds where rounds are significantly fewer than a tenth above the "
        "published ones; differences are published rounds minus ours."
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """A panel for each row of the paper's tables: the best rate's curves and what is published.

    Args:
      study: whose names are written.
      figure: the only one.
      rows: from `numbers_of`.
      found: whose curves are drawn.
      path: of the PNG.
      caption: above it.
    """
    del figure
    lines = told(rows)
    picture = new_figure(3.1 * len(lines) + 0.6, 3.4)
    picture.suptitle(caption, fontsize=11)
    panels = picture.subplots(1, len(lines), squeeze=False)[0]
    for panel, line in zip(panels, lines, strict=True):
        runs = []
        for case, run in found.items():
            if (case.method, case.partition) == (line.side, line.partition):
                runs.append(run)
        row = ROW_OF[line.side]
        _curves(panel, runs, row.target, row.published[line.partition])
        where = study.topic.partitions[line.partition]
        panel.set_title(f"{row.label}, {where}", fontsize=10)
    panels[0].set_ylabel("test accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=len(labels))
    return save(picture, path)


def _curves(panel: Axes, runs: Sequence[Run], target: float, published: int) -> None:
    """A line for each seed; the target, and the round in which it is published to be reached."""
    label: str | None = "ours, a seed each"
    for run in runs:
        _, accuracies = curve(run, "iterations")
        panel.plot(range(1, len(accuracies) + 1), accuracies, color=COLOURS[0], label=label)
        label = None
    panel.plot(published, target, "D", color=COLOURS[1], label="published")
    panel.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
    panel.set_ylim(bottom=max(0.0, target - 0.09))
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    panel.set_xlabel("rounds")
    look(panel)


SHOW = Show(title, model_in_words, numbers_of, sections, draw, further)
