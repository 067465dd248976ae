"""What the figures of the fine-tuning study show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import language, language_claims, language_tables, tested
from experiments.reproduction.cases import Case
from experiments.reproduction.language import METHODS, PARTITIONS
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from snake_jax.report.figures import Line, plot_figure
from snake_jax.report.runs import Run
from snake_jax.report.units import human

# Colour by what trains the model, style by what of it is trained.
_LOOKS = {
    "snake_lora": (1, 1),
    "snake_full": (1, 0),
    "distilled_lora": (2, 1),
    "distilled_full": (2, 0),
    "fedavg_lora": (0, 1),
    "fedavg_full": (0, 0),
}

_HOW_TO_READ = (
    "Differences are of runs with the same seed, in the direction of the claim, in nats: of the "
    "logarithm of perplexity. A lead is FL's logarithm less that of the run beside it."
)


def title(study: Study, figure: str) -> str:
    """Of a figure."""
    partition = language.FIGURES[figure]
    held = ": the nodes hold different data sets" if partition == "by_category" else ""
    return f"Fine-tuning a language model by local epochs E, {PARTITIONS[partition]}{held}"


def model_in_words(study: Study, found: Found) -> str:
    """The model, in a few words."""
    return f"{study.topic.public(study.sources['model'])}, {_nodes(found)} nodes"


def _nodes(found: Found) -> int:
    """Of all runs: as many as the model has blocks."""
    run = next(iter(found.values()))
    return run.config["nodes"]


def lines(figure: str, found: Found) -> dict[str, list[Line]]:
    """A row of panels for each E."""
    groups: dict[Case, list[Run]] = {}
    for case, run in found.items():
        any_seed = case._replace(seed=0)
        groups.setdefault(any_seed, []).append(run)
    drawn: dict[str, list[Line]] = {}
    for case, runs in groups.items():
        colour, style = _LOOKS[case.method]
        line = Line(METHODS[case.method].label, runs, colour, style)
        row = f"E = {case.epochs}"
        drawn.setdefault(row, []).append(line)
    return drawn


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run, and what it took to be as good as FL in the end."""
    return language_tables.of_runs(study, found)


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: setting, table, comparisons."""
    parts = [_about(study, _nodes(found)), language_tables.markdown_of(numbers)]
    said = language_tables.against_fl(numbers)
    if said:
        parts.append("\n".join(f"- {line}" for line in said))
    lines = language_claims.told(study, figure, numbers)
    if lines:
        text = tested.claims_table(lines, language.PARTITIONS)
        parts += ["## Claims", _HOW_TO_READ, text]
    return parts


def further(study: Study, figure: str, rows: Sequence[Numbers]) -> dict[str, Any]:
    """The claims as the figure's JSON has them, beside the rows."""
    return tested.as_json(language_claims.told(study, figure, rows))


def _about(study: Study, blocks: int) -> str:
    """What was run, for the reader of the table."""
    scale = study.scale
    settings = scale.settings
    model = study.topic.public(study.sources["model"])
    data = study.topic.public(study.sources["data"])
    pairs = "all pairs"
    if settings["limit"]:
        pairs = f"{settings['limit']:,} training pairs of each source"
    cycles = ", ".join(f"{count} for E = {epochs}" for epochs, count in scale.cycles.items())
    rates = "tuned, see learning_rates_language.json" if study.rates else "the scale's, not tuned"
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    return (
        f"Scale {study.scale_name}: {model}, {blocks} blocks and as many nodes; {data}, {pairs}; "
        f"rows of {human(settings['max_length'])} tokens, several texts to a row, batch "
        f"{settings['batch_size']}; AdamW, LoRA of rank {settings['lora_rank']}, what does not "
        f"train stored as {settings['frozen_dtype']}; cycles (rounds): {cycles}; seeds "
        f"{seeds}; learning rates {rates}. FL's whole model has "
        f"embedding and head too, which Snake Learning leaves as they are. Perplexity is of "
        f"held-out responses, all sources together. Iterations of all nodes count; per node is "
        f"their number over the number of nodes."
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """Curves: a panel for each axis."""
    del rows
    return plot_figure(lines(figure, found), path, caption, study.scale.target or None)


SHOW = Show(title, model_in_words, numbers_of, sections, draw, further)
