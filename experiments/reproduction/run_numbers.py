"""The numbers of a run, and how those of several seeds become one line of a table."""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.reproduction.cases import Case
from snake_jax.cli.accounting_tables import table
from snake_jax.report.runs import Run
from snake_jax.report.units import human

Numbers = dict[str, Any]
"""Of one run, by name, as a figure's JSON has them."""
Column = tuple[str, Callable[[list[Numbers]], str]]
"""Of a table: its head, and what it says of the runs of a case."""
UNKNOWN = "-"
BYTES = functools.partial(human, unit="B")
FLOPS = functools.partial(human, unit="FLOP")
SECONDS = functools.partial(human, unit="s")


def total(run: Run, key: str) -> float:
    """The sum over a run's lines of metrics."""
    return sum(record.get(key) or 0 for record in run.metrics)


def by_case(runs: Sequence[Numbers]) -> list[list[Numbers]]:
    """Runs that differ in their seed alone, together."""
    groups: dict[tuple[object, ...], list[Numbers]] = {}
    for numbers in runs:
        key = case_key(numbers)
        groups.setdefault(key, []).append(numbers)
    return list(groups.values())


def case_key(numbers: Numbers) -> tuple[object, ...]:
    """What is alike of all seeds."""
    names = ("method", "partition", "epochs", "order", "interrupted")
    return tuple(numbers.get(name) for name in names)


def several(key: str, show: Callable[[float], str]) -> Callable[[Sequence[Numbers]], str]:
    """A column's text: the mean, and least to greatest where there are several seeds."""

    def text(runs: Sequence[Numbers]) -> str:
        known = [numbers[key] for numbers in runs if numbers[key] is not None]
        if not known:
            return UNKNOWN
        average = show(statistics.fmean(known))
        # A mean over some of the seeds alone says so.
        if len(known) < len(runs):
            return f"{UNKNOWN} ({len(known)} of {len(runs)}: {average})"
        if len(runs) == 1:
            return average
        least = show(min(known))
        greatest = show(max(known))
        return f"{average} ({least} to {greatest})"

    return text


def mean(runs: Sequence[Numbers], key: str) -> float:
    """Over the seeds."""
    return statistics.fmean(numbers[key] for numbers in runs)


def notes(numbers: Numbers, seeds: int, *special: str) -> str:
    """What a reader has to know of a case beside its name, in brackets; empty of nothing."""
    said = list(special)
    if seeds > 1:
        said.append(f"{seeds} seeds")
    if numbers["skipped_visits"]:
        said.append(f"{numbers['skipped_visits']} visits diverged")
    if not numbers["finished"]:
        said.append("not finished")
    return f" ({', '.join(said)})" if said else ""


def markdown(
    runs: Sequence[Numbers], columns: Sequence[Column], name: Callable[[list[Numbers]], str]
) -> str:
    """A table with a line for each case."""
    body = []
    for group in by_case(runs):
        line = [name(group)]
        for _, show in columns:
            line.append(show(group))
        body.append(line)
    heads = [head for head, _ in columns]
    return table(["", *heads], body)


def least_cycles(group: Sequence[Numbers]) -> str:
    """A column's text: the cycles that every seed has finished."""
    return str(min(numbers["cycles"] for numbers in group))


def learning_rate(group: Sequence[Numbers]) -> str:
    """A column's text: the learning rate, which is one for all seeds."""
    return f"{group[0]['learning_rate']:g}"


def of_case(case: Case) -> Numbers:
    """Which case a run is of."""
    return {
        "method": case.method,
        "partition": case.partition,
        "epochs": case.epochs,
        "seed": case.seed,
    }
