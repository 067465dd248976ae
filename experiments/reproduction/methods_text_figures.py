"""What the comparison of all methods that fine-tune shows: a picture of dots and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.reproduction import methods_figures
from experiments.reproduction.cases import Case
from experiments.reproduction.language import public
from experiments.reproduction.methods_figures import Panel
from experiments.reproduction.methods_text import METHODS, PARTITIONS, TOPIC
from experiments.reproduction.run_numbers import (
    BYTES,
    FLOPS,
    SECONDS,
    Column,
    Numbers,
    learning_rate,
    markdown,
    notes,
    of_case,
    several,
    total,
)
from experiments.reproduction.runs import Study
from snake_jax.report.runs import Run, before, from_summary, last
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


def model_in_words(study: Study, found: Mapping[Case, Run]) -> str:
    """The network, in a few words."""
    run = next(iter(found.values()))
    return f"{public(study.sources['model'])}, {run.config['nodes']} nodes"


def numbers_of(study: Study, figure: str, found: Mapping[Case, Run]) -> list[Numbers]:
    """The numbers of each run."""
    del figure
    rows = []
    for case, run in found.items():
        rows.append(
            {
                "run": study.name(case),
                **of_case(case),
                "finished": run.summary is not None,
                "learning_rate": run.config["learning_rate"],
                "perplexity_before": before(run),
                "final_perplexity": last(run, "perplexity"),
                "node_mean": last(run, "node_perplexity_mean"),
                "worst_tenth": last(run, "node_perplexity_worst_tenth"),
                "examples": total(run, "examples"),
                "tokens": total(run, "tokens"),
                "iterations": total(run, "iterations"),
                "bytes": total(run, "bytes_up") + total(run, "bytes_down"),
                "train_flops": total(run, "train_flops"),
                "memory": from_summary(run, "state_bytes"),
                "compiled_peak_bytes": from_summary(run, "peak_train_bytes"),
                "simulated_s": total(run, "clock_s"),
                "skipped_visits": sum(line.get("event") == "skipped" for line in run.metrics),
            }
        )
    return rows


def sections(
    study: Study, figure: str, numbers: Sequence[Numbers], found: Mapping[Case, Run]
) -> list[str]:
    """The text below the title: the setting, and a table for each partition."""
    del figure
    columns: list[Column] = [
        ("held-out perplexity", several("final_perplexity", significant)),
        ("nodes' own data", several("node_mean", significant)),
        ("worst tenth of nodes", several("worst_tenth", significant)),
        ("bytes", several("bytes", BYTES)),
        ("FLOPs", several("train_flops", FLOPS)),
        ("state of a node", several("memory", BYTES)),
        ("simulated time", several("simulated_s", SECONDS)),
        ("learning rate", learning_rate),
    ]
    parts = [_about(study, numbers, found)]
    for partition, called in PARTITIONS.items():
        rows = [row for row in numbers if row["partition"] == partition]
        if rows:
            parts += [f"## {called}", markdown(rows, columns, _line_name)]
    return parts


def _line_name(group: Sequence[Numbers]) -> str:
    return METHODS[group[0]["method"]].label + notes(group[0], len(group))


def _about(study: Study, numbers: Sequence[Numbers], found: Mapping[Case, Run]) -> str:
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
        "cell is the mean, and the least to the greatest of the seeds; lower is better. The worst "
        "tenth of nodes is by the model on what each holds out. The state is weights, gradients, "
        "optimizer states and teacher, without activations, at the node, or the one place, that "
        "holds most. The clock has equal nodes; of three snakes a round counts its longest visit."
    )


def draw(rows: Sequence[Numbers], path: Path, caption: str) -> Path:
    """Dots for each method: see `methods_figures.draw`."""
    return methods_figures.draw(rows, path, caption, TOPIC, _PANELS)
