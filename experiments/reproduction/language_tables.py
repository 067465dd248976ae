"""The numbers of the fine-tuning study's figures: rows as JSON has them, and as Markdown."""

from collections.abc import Mapping, Sequence

from experiments.reproduction.cases import Case
from experiments.reproduction.language import FL_OF, METHODS, PARTITIONS
from experiments.reproduction.run_numbers import (
    BYTES,
    FLOPS,
    SECONDS,
    Column,
    Numbers,
    by_case,
    learning_rate,
    least_cycles,
    markdown,
    mean,
    notes,
    of_case,
    several,
    total,
)
from experiments.reproduction.runs import Study
from snake_jax.report.runs import Run, before, best, cost_to_reach, final, from_summary
from snake_jax.report.units import human, percent, significant

# What it took until a run was as good as FL: axis to the row's number for all of a run, and how it
# is called.
_AXES = {
    "iterations": ("iterations", "iterations"),
    "bytes": ("bytes", "bytes"),
    "flops": ("train_flops", "FLOPs"),
}


def of_runs(study: Study, found: Mapping[Case, Run]) -> list[Numbers]:
    """A row a run: what it reached and took, and what it took until it was as good as FL's.

    FL's is the finished run that is alike else. Sums are over lines of metrics; `..._to_fl` are up
    to the first evaluation that is at least as good.
    """
    rows = []
    for case, run in found.items():
        fl = FL_OF.get(case.method, case.method)
        rows.append(_of_run(study, case, run, found.get(case._replace(method=fl))))
    return rows


def _of_run(study: Study, case: Case, run: Run, fl: Run | None) -> Numbers:
    cycles = len({record["cycle"] for record in run.metrics})
    evaluated = [record for record in run.metrics if record["perplexity"] is not None]
    iterations = total(run, "iterations")
    sent = total(run, "bytes_up") + total(run, "bytes_down")
    seconds = total(run, "train_s")
    tokens = total(run, "tokens")
    numbers: Numbers = {
        "run": study.name(case),
        **of_case(case),
        "finished": run.summary is not None,
        "learning_rate": run.config["learning_rate"],
        "cycles": cycles,
        # What it reached.
        "perplexity_before": before(run),
        "perplexity_after": final(run),
        "best_perplexity": best(run),
        "next_token_accuracy": evaluated[-1]["accuracy"],
        # What it took, of all nodes together where nothing else is said.
        "iterations": iterations,
        "iterations_per_node": iterations / run.config["nodes"],
        "tokens": tokens,
        "target_tokens": total(run, "target_tokens"),
        "bytes": sent,
        "bytes_per_cycle": sent / cycles,
        "train_flops": total(run, "train_flops"),
        "train_s": seconds,
        "tokens_per_s": tokens / seconds if seconds else None,
    }
    for key in ("peak_train_bytes", "state_bytes", "trainable_params"):
        numbers[key] = from_summary(run, key)
    for axis in _AXES:
        numbers[f"{axis}_to_fl"] = _to_fl(run, fl, axis)
    numbers["skipped_visits"] = sum(record.get("event") == "skipped" for record in run.metrics)
    return numbers


def _to_fl(run: Run, fl: Run | None, axis: str) -> float | None:
    if fl is None or fl.summary is None:
        return None
    goal = final(fl)
    return None if goal is None else cost_to_reach(run, goal, axis)


def markdown_of(rows: Sequence[Numbers]) -> str:
    """Perplexity and cost, the seeds of a case in one line: see `several`."""
    columns: list[Column] = [
        ("perplexity before", several("perplexity_before", significant)),
        ("after", several("perplexity_after", significant)),
        ("best", several("best_perplexity", significant)),
        ("cycles", least_cycles),
        ("iterations per node", several("iterations_per_node", human)),
        ("tokens", several("tokens", human)),
        ("bytes", several("bytes", BYTES)),
        ("FLOPs", several("train_flops", FLOPS)),
        ("training time", several("train_s", SECONDS)),
        ("trainable parameters", several("trainable_params", human)),
        ("node's state", several("state_bytes", BYTES)),
        ("compiled peak", several("peak_train_bytes", BYTES)),
        ("learning rate", learning_rate),
    ]
    return markdown(rows, columns, _line_name)


def _line_name(group: Sequence[Numbers]) -> str:
    return _name(group[0], len(group))


def against_fl(rows: Sequence[Numbers]) -> list[str]:
    """Sentences: each finished case of Snake Learning beside FL's of the same training and E.

    Args:
      rows: of a figure.
    """
    groups = {}
    for group in by_case(rows):
        first = group[0]
        groups[first["method"], first["partition"], first["epochs"]] = group
    lines = []
    for (method, partition, epochs), group in groups.items():
        fl = groups.get((FL_OF.get(method, ""), partition, epochs))
        if fl is None or not all(row["finished"] for row in [*group, *fl]):
            continue
        beside = _factor(group, fl) + _cost_until_as_good(group, fl)
        lines.append(f"{_name(group[0], 0)}: {beside}.")
    return lines


def _factor(group: Sequence[Numbers], others: Sequence[Numbers]) -> str:
    """Final perplexity as a factor of the others'."""
    factor = mean(group, "perplexity_after") / mean(others, "perplexity_after")
    return f"{percent(factor)} of the final perplexity of {METHODS[others[0]['method']].label}"


def _cost_until_as_good(group: Sequence[Numbers], fl: Sequence[Numbers]) -> str:
    """When it was as good as FL in the end."""
    if any(row["iterations_to_fl"] is None for row in group):
        return ", never as good as that"
    shares = []
    for axis, (key, name) in _AXES.items():
        share = mean(group, f"{axis}_to_fl") / mean(fl, key)
        shares.append(f"{percent(share)} of its {name}")
    return f", first as good as that after {', '.join(shares)}"


def _name(row: Numbers, seeds: int) -> str:
    partition = PARTITIONS[row["partition"]]
    method = METHODS[row["method"]].label
    return f"{partition}: {method}, E = {row['epochs']}{notes(row, seeds)}"
