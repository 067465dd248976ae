"""The columns of the page's runs table: those that some run has something to say in."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from snake_jax.report.rows import token_accuracy
from snake_jax.report.runs import (
    ACCURACY,
    PERPLEXITY,
    Merit,
    Record,
    Run,
    along,
    before,
    best,
    cumulative,
    final,
    from_summary,
    merit,
    throughput,
)
from snake_jax.report.units import human, percent, short

UNKNOWN = "–"


class Column(NamedTuple):
    """Of the runs table: what a run has in it, how a number is printed (None: words), for which
    runs (None: all).
    """

    key: str
    label: str
    value: Callable[[Run], Any]
    show: Callable[[float], str] | None = None
    merit: Merit | None = None


def columns_of(runs: Sequence[Run]) -> list[Column]:
    """Columns of one kind of run only where there is one; simulated time only where some run has
    it.
    """
    merits = [merit(run) for run in runs]
    clocked = any(measured(run, ("clock_s",)) for run in runs)
    return [
        column
        for column in COLUMNS
        if (column.merit is None or column.merit in merits) and (clocked or column.key != "clock")
    ]


def cell(column: Column, run: Run) -> dict[str, Any]:
    """`{value to sort by, text}`; a dash in a column that is not for runs of this kind."""
    value = column.value(run) if column.merit in (None, merit(run)) else None
    text = UNKNOWN if value is None else str(value) if column.show is None else column.show(value)
    return {"value": value, "text": text}


def config_of(run: Run) -> Record:
    """Of config.json, or else the copy in summary.json."""
    return run.config or (run.summary or {}).get("config") or {}


def settings_of(run: Run) -> Record:
    """The configuration over the summary."""
    return {**(run.summary or {}), **config_of(run)}


def measured(run: Run, fields: Iterable[str]) -> bool:
    """Whether a line of the run has a number in one of the fields."""
    return any(record.get(field) is not None for field in fields for record in run.metrics)


def _word(key: str) -> Callable[[Run], Any]:
    return lambda run: settings_of(run).get(key)


def _model(run: Run) -> Any:
    return _short(run, settings_of(run).get("model"))


def _dataset(run: Run) -> Any:
    """What classification runs call `dataset` and language runs `data`."""
    return _short(run, settings_of(run).get("data" if merit(run) == PERPLEXITY else "dataset"))


def _short(run: Run, name: str | None) -> str | None:
    """Models and data of language runs are paths and names on a hub; the configuration shows them
    in full.
    """
    return name if name is None or merit(run) != PERPLEXITY else short(name)


def _partition(run: Run) -> str | None:
    settings = settings_of(run)
    partition = settings.get("partition")
    return (
        f"{partition}({settings['alpha']})"
        if partition != "iid" and "alpha" in settings
        else partition
    )


def _status(run: Run) -> str:
    """`finished`, or how many of the run's cycles have begun."""
    if run.summary is not None:
        return "finished"
    settings = settings_of(run)
    begun = len({record.get("cycle") for record in run.metrics})
    return (
        f"{begun} of {settings['cycles']} cycles"
        if "cycles" in settings
        else f"unfinished, {begun} cycles"
    )


def _end(axis: str) -> Callable[[Run], float]:
    return lambda run: float(along(run, axis)[-1])


def _total(field: str) -> Callable[[Run], float]:
    return lambda run: float(cumulative(run, field)[-1])


def _clock(run: Run) -> float | None:
    return _total("clock_s")(run) if measured(run, ("clock_s",)) else None


def _unit(unit: str) -> Callable[[float], str]:
    return lambda value: human(value, unit)


COLUMNS = (
    Column("name", "run", lambda run: run.name),
    Column("algorithm", "algorithm", _word("algorithm")),
    Column("model", "model", _model),
    Column("dataset", "dataset", _dataset),
    Column("partition", "partition", _partition),
    Column("lora_rank", "LoRA rank", _word("lora_rank"), None, PERPLEXITY),
    Column("frozen_dtype", "frozen as", _word("frozen_dtype"), None, PERPLEXITY),
    Column("final_accuracy", "final accuracy", final, percent, ACCURACY),
    Column("best_accuracy", "best accuracy", best, percent, ACCURACY),
    Column("perplexity_before", "perplexity before", before, PERPLEXITY.show, PERPLEXITY),
    Column("perplexity_after", "final perplexity", final, PERPLEXITY.show, PERPLEXITY),
    Column("best_perplexity", "best perplexity", best, PERPLEXITY.show, PERPLEXITY),
    Column("token_accuracy", "next-token accuracy", token_accuracy, percent, PERPLEXITY),
    Column("iterations", "iterations", _end("iterations"), human),
    Column("tokens", "tokens", _total("tokens"), human, PERPLEXITY),
    Column("tokens_per_s", "tokens a second", throughput, "{:,.0f}".format, PERPLEXITY),
    Column("bytes_up", "bytes up", _total("bytes_up"), _unit("B")),
    Column("bytes_down", "bytes down", _total("bytes_down"), _unit("B")),
    Column("flops", "FLOPs", _end("flops"), _unit("FLOP")),
    Column("seconds", "seconds", _end("seconds"), _unit("s")),
    Column("clock", "simulated time", _clock, _unit("s")),
    Column(
        "trainable_params",
        "trainable parameters",
        partial(from_summary, key="trainable_params"),
        human,
        PERPLEXITY,
    ),
    Column(
        "state_bytes", "state", partial(from_summary, key="state_bytes"), _unit("B"), PERPLEXITY
    ),
    Column(
        "peak_train_bytes", "peak memory", partial(from_summary, key="peak_train_bytes"), _unit("B")
    ),
    Column("status", "status", _status),
)
