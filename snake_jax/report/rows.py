"""The rows of the comparison table: what a run reached, what that cost, the work done, the setting.

Which rows there are follows from what the runs recorded: their figure of merit, tokens where they
trained on text, a target where they have one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from snake_jax.report.merits import NODE_FIGURES, Merit
from snake_jax.report.runs import (
    Run,
    along,
    axes_of,
    before,
    best,
    common_merit,
    cost_to_reach,
    counts_tokens,
    final,
    from_summary,
    has_measured,
    last,
    settings_of,
    throughput,
    total,
)
from snake_jax.report.units import human, percent

_REACHED_ON = ("iterations", "tokens", "bytes", "flops", "seconds")
_SETTINGS = ("algorithm", "dataset", "nodes", "partition", "alpha", "learning_rate", "seed")
_TEXT_SETTINGS = (
    "algorithm",
    "model",
    "data",
    "nodes",
    "partition",
    "lora_rank",
    "frozen_dtype",
    "max_length",
    "learning_rate",
    "seed",
)


class TableRow(NamedTuple):
    """A row of the comparison table.

    Attributes:
      key: in the JSON form of the table.
      label: in the other forms.
      value: of a run; None where it is not known.
      show: prints a value.
      against: how a run is set against the first one: by the `ratio` or the `difference` of their
        values, or not at all (empty).
    """

    key: str
    label: str
    value: Callable[[Run], Any]
    show: Callable[[Any], str]
    against: str = "ratio"


Groups = list[tuple[str, list[TableRow]]]


def groups(runs: Sequence[Run]) -> Groups:
    """The rows under their headings; the figure of merit that all runs share leads.

    Raises:
      UserError: the runs share none.
    """
    merit = common_merit(runs)
    reached = [*_merit_rows(merit), *_node_rows(runs, merit)]
    found = [(merit.title, reached), ("Cost", [*cost_rows(), *_state_rows(runs)])]

    # The first run that wants a target gives it to all, so that their costs are of the same.
    targets = [merit.wanted(settings_of(run)) for run in runs]
    known = [target for target in targets if target is not None]
    if known:
        rows = _target_rows(runs, known[0])
        found.append((f"Cost to reach {merit.said(known[0])}", rows))
    found += [("Work", _work_rows(runs)), ("Setting", _setting_rows(runs))]
    return found


def _merit_rows(merit: Merit) -> list[TableRow]:
    # Shares compare by points, plain numbers by their ratio.
    against = "difference" if merit.is_share else "ratio"
    rows = []
    if merit.before is not None:
        rows.append(TableRow(merit.before, "before training", before, merit.show, against))
    rows += [
        TableRow(merit.final, "final", final, merit.show, against),
        TableRow(merit.best, "best", best, merit.show, against),
    ]
    for one in merit.in_tables:
        value = partial(last, field=one.field)
        if one.unit == "%":
            rows.append(TableRow(one.key, one.label, value, percent, "difference"))
        else:
            rows.append(TableRow(one.key, one.label, value, _in(one.unit)))
    return rows


def _node_rows(runs: Sequence[Run], merit: Merit) -> list[TableRow]:
    """The model on what nodes held out themselves, where a run has measured that."""
    against = "difference" if merit.is_share else "ratio"
    rows = []
    for part, label in NODE_FIGURES.items():
        field = f"node_{merit.field}_{part}"
        if any(has_measured(run, field) for run in runs):
            value = partial(last, field=field)
            rows.append(TableRow(field, label, value, merit.show, against))
    return rows


def cost_rows() -> list[TableRow]:
    """What a run costs its nodes and the network."""
    # Runs of unlike length compare by what they take a step, a cycle and a visit.
    flops = _end("flops")
    flops_per_iteration = _per(flops, _end("iterations"))
    sent = _end("bytes")
    sent_per_cycle = _per(sent, _cycles)
    sent_per_visit = _per(sent, _node_visits)
    return [
        TableRow("train_flops", "training FLOPs", flops, _in("FLOP")),
        TableRow("flops_per_iteration", "  an iteration", flops_per_iteration, _in("FLOP")),
        _summary_row("peak_train_bytes", "peak memory at a node", "B"),
        TableRow("bytes", "bytes sent, up and down", sent, _in("B")),
        TableRow("bytes_up", "  up", _sum("bytes_up"), _in("B")),
        TableRow("bytes_down", "  down", _sum("bytes_down"), _in("B")),
        TableRow("bytes_per_cycle", "  a cycle or round", sent_per_cycle, _in("B")),
        TableRow("bytes_per_node_visit", "  a visit of a node", sent_per_visit, _in("B")),
    ]


def _state_rows(runs: Sequence[Run]) -> list[TableRow]:
    """What a node holds by formula, where a run records it: fine-tuning runs do."""
    state = _summary_row("state_bytes", "state at a node", "B")
    trainable = _summary_row("trainable_params", "trainable parameters")
    rows = []
    for row in (state, trainable):
        if any(row.value(run) is not None for run in runs):
            rows.append(row)
    return rows


def _target_rows(runs: Sequence[Run], target: float) -> list[TableRow]:
    axes = axes_of(runs[0])
    rows = []
    for axis in _REACHED_ON:
        if axis in axes:
            cost = partial(cost_to_reach, target=target, axis=axis)
            rows.append(TableRow(f"{axis}_to_target", axis, cost, _in(axes[axis].unit)))
    return rows


def _work_rows(runs: Sequence[Run]) -> list[TableRow]:
    rows = [
        TableRow("iterations", "iterations", _end("iterations"), human),
        TableRow("examples", "examples", _end("examples"), human),
    ]
    # Of text, examples are rows as they were packed and say little.
    if any(counts_tokens(run) for run in runs):
        rows += [
            TableRow("tokens", "tokens", _sum("tokens"), human),
            TableRow("target_tokens", "  with a loss", _sum("target_tokens"), human),
            TableRow("tokens_per_s", "  a second of training", throughput, "{:,.0f}".format),
        ]
    rows += [
        TableRow("node_visits", "visits of a node", _node_visits, human),
        TableRow("cycles", "cycles or rounds", _cycles, human),
        TableRow("train_s", "training time", _end("seconds"), _in("s")),
        _summary_row("compile_s", "compile time", "s"),
        _summary_row("num_compilations", "programs compiled"),
    ]
    return rows


def _setting_rows(runs: Sequence[Run]) -> list[TableRow]:
    rows = [_summary_row("num_params", "parameters")._replace(against="")]
    keys = _TEXT_SETTINGS if any(counts_tokens(run) for run in runs) else _SETTINGS
    for key in keys:
        rows.append(TableRow(key, key, partial(_setting, key=key), str, against=""))
    return rows


def _setting(run: Run, key: str) -> Any:
    return settings_of(run).get(key)


def _summary_row(key: str, label: str, unit: str = "") -> TableRow:
    return TableRow(key, label, partial(from_summary, key=key), _in(unit))


def _in(unit: str) -> Callable[[float], str]:
    return partial(human, unit=unit)


def _sum(field: str) -> Callable[[Run], float]:
    return partial(total, field=field)


def _end(axis: str) -> Callable[[Run], float]:
    """Where a run stands on an axis at its end."""

    def of(run: Run) -> float:
        positions = along(run, axis)
        return float(positions[-1])

    return of


def _per(
    amount: Callable[[Run], float], count: Callable[[Run], float]
) -> Callable[[Run], float | None]:
    """The amount for each of what is counted; None of a run in which there is none."""

    def of(run: Run) -> float | None:
        number = count(run)
        return amount(run) / number if number else None

    return of


def _node_visits(run: Run) -> int:
    """How often a node trained: a round of nine nodes counts nine times."""
    count = 0
    for record in run.metrics:
        node = record.get("node")
        count += len(node) if isinstance(node, list) else 1
    return count


def _cycles(run: Run) -> int:
    cycles = {record.get("cycle") for record in run.metrics}
    return len(cycles)
