"""Rows of numbers, a run each, and how seeds of a case become one line of a table."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.reproduction.cases import Case
from snake_jax.cli.accounting_tables import table
from snake_jax.report.runs import Run
from snake_jax.report.units import human

Row = dict[str, Any]
Column = tuple[str, Callable[[list[Row]], str]]  # its head, and what it says of a case's rows
UNKNOWN = "-"
BYTES, FLOPS, SECONDS = (lambda v, u=unit: human(v, u) for unit in ("B", "FLOP", "s"))


def total(run: Run, key: str) -> float:
    """The sum over a run's lines of metrics."""
    return sum(record.get(key) or 0 for record in run.metrics)


def by_case(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their seed alone, together."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_key(row), []).append(row)
    return list(groups.values())


def case_key(row: Row) -> tuple:
    """What is alike of all seeds."""
    return tuple(row.get(key) for key in ("method", "partition", "epochs", "order", "interrupted"))


def several(key: str, show: Callable[[float], str]) -> Callable[[Sequence[Row]], str]:
    """A column's text: the mean, and least to greatest where there are several seeds."""

    def text(rows: Sequence[Row]) -> str:
        values = [row[key] for row in rows]
        if None in values:
            known = [value for value in values if value is not None]
            return (
                f"{UNKNOWN} ({len(known)} of {len(values)}: {show(statistics.fmean(known))})"
                if known
                else UNKNOWN
            )
        mean = show(statistics.fmean(values))
        return mean if len(values) == 1 else f"{mean} ({show(min(values))} to {show(max(values))})"

    return text


def mean(rows: Sequence[Row], key: str) -> float:
    """Over the seeds."""
    return statistics.fmean(row[key] for row in rows)


def notes(row: Row, seeds: int, *special: str) -> str:
    """What a reader has to know of a case beside its name, in brackets; empty of nothing."""
    said = [*special, *[f"{seeds} seeds"] * (seeds > 1)]
    said += [f"{row['skipped_visits']} visits diverged"] * bool(row["skipped_visits"])
    said += ["not finished"] * (not row["finished"])
    return f" ({', '.join(said)})" if said else ""


def markdown(
    rows: Sequence[Row], columns: Sequence[Column], name: Callable[[list[Row]], str]
) -> str:
    """A table with a line for each case."""
    body = [[name(group), *(show(group) for _, show in columns)] for group in by_case(rows)]
    return table(["", *(head for head, _ in columns)], body)


def of_case(case: Case) -> Row:
    """The part of a row that says which case it is of."""
    return {
        "method": case.method,
        "partition": case.partition,
        "epochs": case.epochs,
        "seed": case.seed,
    }
