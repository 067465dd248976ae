"""The columns of the page's runs table.

Nothing here knows an algorithm or a model: a column shows what a run recorded, and columns that no
run has anything for are left out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from snake_jax.report.merits import MERITS, NODE_FIGURES, Merit
from snake_jax.report.runs import (
    Run,
    along,
    before,
    best,
    final,
    from_summary,
    has_measured,
    last,
    merit_of,
    settings_of,
    throughput,
    total,
)
from snake_jax.report.units import human, percent, short

UNKNOWN = "–"


class PageColumn(NamedTuple):
    """A column of the runs table.

    Attributes:
      key: its name on the page.
      label: its heading.
      value: of a run; None where it is not known.
      show: prints a number; None of a column of words.
      always: whether it stands there though no run has a value in it.
    """

    key: str
    label: str
    value: Callable[[Run], Any]
    show: Callable[[float], str] | None = None
    always: bool = True


def columns_of(runs: Sequence[Run]) -> list[PageColumn]:
    """The columns that these runs need, in their order on the page."""
    merits = [merit_of(run) for run in runs]

    # What the runs are, what they reached, what that cost.
    columns = [*SETTINGS]
    for merit in MERITS:
        if merit in merits:
            columns += _merit_columns(merit)
    columns += COSTS

    # The others only where they have something to say.
    found = []
    for column in columns:
        if column.always or any(column.value(run) is not None for run in runs):
            found.append(column)
    return found


def cell(column: PageColumn, run: Run) -> dict[str, Any]:
    """`{value, text}`: what the page sorts by, and what it shows."""
    value = column.value(run)
    if value is None:
        text = UNKNOWN
    else:
        text = str(value) if column.show is None else column.show(value)
    return {"value": value, "text": text}


def _merit_columns(merit: Merit) -> list[PageColumn]:
    """A figure of merit's own; runs of another one have dashes in them."""

    def where_it_leads(value: Callable[[Run], Any]) -> Callable[[Run], Any]:
        def of(run: Run) -> Any:
            return value(run) if merit_of(run) == merit else None

        return of

    # What the model was, what it became, and what stands beside that in tables.
    columns = []
    if merit.before is not None:
        label = f"{merit.name} before"
        columns.append(PageColumn(merit.before, label, where_it_leads(before), merit.show))
    columns += [
        PageColumn(merit.final, f"final {merit.name}", where_it_leads(final), merit.show),
        PageColumn(merit.best, f"best {merit.name}", where_it_leads(best), merit.show),
    ]
    for part, label in NODE_FIGURES.items():
        field = f"node_{merit.field}_{part}"
        value = where_it_leads(partial(last, field=field))
        columns.append(PageColumn(field, f"{merit.name} {label}", value, merit.show, False))
    for one in merit.in_tables:
        value = where_it_leads(partial(last, field=one.field))
        show = percent if one.unit == "%" else partial(human, unit=one.unit)
        columns.append(PageColumn(one.key, one.label, value, show))
    return columns


def _name(run: Run) -> str:
    return run.name


def _word(run: Run, key: str) -> Any:
    return settings_of(run).get(key)


def _model(run: Run) -> str | None:
    """Its name without the folder or the hub's owner; the configuration shows it in full."""
    name = settings_of(run).get("model")
    return None if name is None else short(name)


def _data(run: Run) -> str | None:
    """What runs on images record as `dataset`, and runs on text as `data`: paths and hub names."""
    settings = settings_of(run)
    text = settings.get("data")
    return settings.get("dataset") if text is None else short(text)


def _partition(run: Run) -> str | None:
    settings = settings_of(run)
    partition = settings.get("partition")
    if partition != "iid" and "alpha" in settings:
        return f"{partition}({settings['alpha']})"
    return partition


def _status(run: Run) -> str:
    """`finished`, or how many of the run's cycles have begun."""
    if run.summary is not None:
        return "finished"
    settings = settings_of(run)
    begun = len({record.get("cycle") for record in run.metrics})
    if "cycles" in settings:
        return f"{begun} of {settings['cycles']} cycles"
    return f"unfinished, {begun} cycles"


def _position(run: Run, axis: str) -> float:
    positions = along(run, axis)
    return float(positions[-1])


def _end(axis: str) -> Callable[[Run], float]:
    """Where a run stands on an axis at its end."""
    return partial(_position, axis=axis)


def _sum_where_measured(run: Run, field: str) -> float | None:
    return total(run, field) if has_measured(run, field) else None


def _summary_column(
    key: str, label: str, show: Callable[[float], str], always: bool = True
) -> PageColumn:
    return PageColumn(key, label, partial(from_summary, key=key), show, always)


def _in(unit: str) -> Callable[[float], str]:
    return partial(human, unit=unit)


SETTINGS = (
    PageColumn("name", "run", _name),
    PageColumn("algorithm", "algorithm", partial(_word, key="algorithm")),
    PageColumn("model", "model", _model),
    PageColumn("dataset", "dataset", _data),
    PageColumn("partition", "partition", _partition),
    PageColumn("lora_rank", "LoRA rank", partial(_word, key="lora_rank"), always=False),
    PageColumn("frozen_dtype", "frozen as", partial(_word, key="frozen_dtype"), always=False),
)
COSTS = (
    PageColumn("iterations", "iterations", _end("iterations"), human),
    PageColumn("tokens", "tokens", partial(_sum_where_measured, field="tokens"), human, False),
    PageColumn("tokens_per_s", "tokens a second", throughput, "{:,.0f}".format, False),
    PageColumn("bytes_up", "bytes up", partial(total, field="bytes_up"), _in("B")),
    PageColumn("bytes_down", "bytes down", partial(total, field="bytes_down"), _in("B")),
    PageColumn("flops", "FLOPs", _end("flops"), _in("FLOP")),
    PageColumn("seconds", "seconds", _end("seconds"), _in("s")),
    PageColumn(
        "clock", "simulated time", partial(_sum_where_measured, field="clock_s"), _in("s"), False
    ),
    PageColumn(
        "epsilon", "privacy (epsilon)", partial(last, field="epsilon"), "{:.4g}".format, False
    ),
    _summary_column("trainable_params", "trainable parameters", human, always=False),
    _summary_column("state_bytes", "state", _in("B"), always=False),
    _summary_column("peak_train_bytes", "peak memory", _in("B")),
    PageColumn("status", "status", _status),
)
