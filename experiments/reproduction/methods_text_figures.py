"""What the comparison of all methods that fine-tune shows: a picture of dots and a table."""

from collections.abc import Sequence
from pathlib import Path

from experiments.reproduction.comparison_figures import (
    COSTS,
    HOW_TO_READ,
    Panel,
    by_partition,
    costs,
    draw_dots,
)
from experiments.reproduction.language import public
from experiments.reproduction.language_figures import model_in_words
from experiments.reproduction.methods_text import TOPIC
from experiments.reproduction.run_numbers import Column, Numbers, several, total
from experiments.reproduction.runs import Study
from experiments.reproduction.show import Found, Show
from snake_jax.report.runs import before, from_summary, last
from snake_jax.report.units import significant

_PANELS: tuple[Panel, ...] = (
    ("final_perplexity", "held-out perplexity", "1"),
    ("worst_tenth", "worst tenth of nodes", "1"),
    ("bytes", "bytes sent", "B"),
    ("train_flops", "FLOPs", "FLOP"),
    ("simulated_s", "simulated time", "s"),
)


def title(study: Study, figure: str) -> str:
    """Of the figure."""
    del study, figure
    return "Every method that fine-tunes, on the same text"


def numbers_of(study: Study, figure: str, found: Found) -> list[Numbers]:
    """The numbers of each run."""
    del figure
    rows = []
    for case, run in found.items():
        reached = {
            "perplexity_before": before(run),
            "final_perplexity": last(run, "perplexity"),
            "node_mean": last(run, "node_perplexity_mean"),
            "worst_tenth": last(run, "node_perplexity_worst_tenth"),
            "tokens": total(run, "tokens"),
        }
        memory = from_summary(run, "state_bytes")
        rows.append({**costs(study, case, run, memory), **reached})
    return rows


def sections(study: Study, figure: str, numbers: Sequence[Numbers], found: Found) -> list[str]:
    """The text below the title: the setting, and a table for each partition."""
    del figure
    columns: list[Column] = [
        ("held-out perplexity", several("final_perplexity", significant)),
        ("nodes' own data", several("node_mean", significant)),
        ("worst tenth of nodes", several("worst_tenth", significant)),
    ]
    about = _about(study, numbers, found)
    return [about, *by_partition(TOPIC, numbers, [*columns, *COSTS])]


def _about(study: Study, numbers: Sequence[Numbers], found: Found) -> str:
    scale = study.scale
    settings = scale.settings
    nodes = next(iter(found.values())).config["nodes"] if found else "a node a block"
    seeds = ", ".join(str(seed) for seed in scale.seeds)
    known = [row["perplexity_before"] for row in numbers if row["perplexity_before"] is not None]
    start = f"; before training the perplexity is {significant(max(known))}" if known else ""
    return (
        f"Scale {study.scale_name}: {public(study.sources['model'])} on "
        f"{public(study.sources['data'])}, {settings['limit']} texts of each to train on, over "
        f"{nodes} nodes, each of which holds out {settings['evaluate_nodes']:.0%} of its own. "
        f"Every run passes all training text {scale.cycles[1]} times, in rows of "
        f"{settings['max_length']} tokens, batch {settings['batch_size']}, AdamW (SCAFFOLD and "
        f"FedNova: plain SGD), LoRA of rank {settings['lora_rank']} on frozen "
        f"{settings['frozen_dtype']}, constant rates that were not tuned; seeds {seeds}{start}. A "
        "cell is the mean, and the least to the greatest of the seeds; lower is better. "
        f"{HOW_TO_READ}"
    )


def draw(
    study: Study, figure: str, rows: Sequence[Numbers], found: Found, path: Path, caption: str
) -> Path:
    """Dots for each method."""
    del study, figure, found
    return draw_dots(TOPIC, _PANELS, rows, path, caption)


SHOW = Show(title, model_in_words, numbers_of, sections, draw)
