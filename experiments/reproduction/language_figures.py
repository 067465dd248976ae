"""What the figures of the fine-tuning study show."""

from collections.abc import Mapping, Sequence

from experiments.reproduction import language, language_tables
from experiments.reproduction.cases import Case
from experiments.reproduction.language import METHODS, PARTITIONS
from experiments.reproduction.rows import Row
from experiments.reproduction.runs import Study
from snake_jax.report.figures import Line
from snake_jax.report.runs import Run
from snake_jax.report.units import human

# Colour by what trains the model, style by what of it is trained.
_LOOKS = {"snake_lora": (1, 1), "snake_full": (1, 0), "fedavg_lora": (0, 1), "fedavg_full": (0, 0)}


def title(study: Study, figure: str) -> str:
    """Of a figure."""
    held = (
        ": the nodes hold different data sets" if language.FIGURES[figure] == "by_category" else ""
    )
    partition = PARTITIONS[language.FIGURES[figure]]
    return f"Fine-tuning a language model by local epochs E, {partition}{held}"


def setting(study: Study) -> str:
    """The model, in a few words."""
    model = study.sources["model"]
    return f"{study.topic.public(model)}, {language.blocks(model)} nodes"


def lines(figure: str, found: Mapping[Case, Run]) -> dict[str, list[Line]]:
    """A row of panels for each E."""
    groups: dict[Case, list[Run]] = {}
    for case, run in found.items():
        groups.setdefault(case._replace(seed=0), []).append(run)
    drawn: dict[str, list[Line]] = {}
    for case, runs in groups.items():
        line = Line(METHODS[case.method].label, runs, *_LOOKS[case.method])
        drawn.setdefault(f"E = {case.epochs}", []).append(line)
    return drawn


def rows(study: Study, figure: str, found: Mapping[Case, Run]) -> list[Row]:
    """The numbers of each run, and what it took to be as good as FL in the end."""
    return language_tables.of_runs(study, found)


def sections(study: Study, figure: str, numbers: Sequence[Row]) -> list[str]:
    """The text below the title: setting, table, comparisons."""
    said = language_tables.against(numbers)
    return [
        _about(study),
        language_tables.markdown_of(numbers),
        *["\n".join(f"- {line}" for line in said)] * bool(said),
    ]


def _about(study: Study) -> str:
    scale, settings = study.scale, study.scale.settings
    model, data = (study.topic.public(study.sources[name]) for name in ("model", "data"))
    blocks = language.blocks(study.sources["model"])
    pairs = (
        f"{settings['limit']:,} training pairs of each source" if settings["limit"] else "all pairs"
    )
    cycles = ", ".join(f"{count} for E = {epochs}" for epochs, count in scale.cycles.items())
    rates = "tuned, see learning_rates_language.json" if study.rates else "the scale's, not tuned"
    return (
        f"Scale {study.scale_name}: {model}, {blocks} blocks and as many nodes; {data}, {pairs}; "
        f"rows of "
        f"{human(settings['max_length'])} tokens, several texts to a row, batch "
        f"{settings['batch_size']}; AdamW, LoRA "
        f"of rank {settings['lora_rank']}, what does not train stored as "
        f"{settings['frozen_dtype']}; cycles (rounds): "
        f"{cycles}; seeds {', '.join(map(str, scale.seeds))}; learning rates {rates}. FL's whole "
        f"model has embedding "
        "and head too, which Snake Learning leaves as they are. Perplexity is of held-out "
        "responses, all sources "
        "together. Iterations of all nodes count; per node is their number over the number of "
        "nodes."
    )
