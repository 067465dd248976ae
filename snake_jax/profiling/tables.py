"""A profile as tables for people: columns say how a number is got and written; what is all zero is
left out.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from snake_jax.profiling.formula import FROZEN_BYTES, FULL_BYTES, TRAINED_BYTES, Formula
from snake_jax.profiling.rows import Case, Row, largest
from snake_jax.report.units import Scale, percent, scale_for

_GIB, _MIB = 2**30, 2**20


class Column(NamedTuple):
    """A heading, the number of a row or None, and how it is written."""

    head: str
    value: Callable[[Row], float | None]
    show: Callable[[float], str]


class Section(NamedTuple):
    """A table: its title, headings, and lines, of which the first `labels` cells are words."""

    title: str
    head: list[str]
    lines: list[list[str]]
    labels: int = 1


def sections(unit: str, cases: Sequence[Case]) -> list[Section]:
    """All tables of a profile.

    Args:
      unit: what the rows are about: layer, place.
      cases: ways to train and store.
    """
    found = [_memory_of_cases(cases)]
    for number, case in enumerate(cases):
        found += _by_layer(unit, case, told=[earlier.rows for earlier in cases[:number]])
    return found


def _by_layer(unit: str, case: Case, told: Sequence[Sequence[Row]]) -> list[Section]:
    """Tables of a case; FLOPs that an earlier one has told, stored in another way, are not told
    again.
    """
    name = (
        f"{case.train}, frozen as {case.frozen_dtype}" if case.frozen_dtype != "-" else case.train
    )
    flops = scale_for(case.full.flops.total, "FLOP")
    tables = []
    if not any([row.flops for row in rows] == [row.flops for row in case.rows] for rows in told):
        tables.append(
            _section(
                f"{flops.unit} of a step: {case.train}",
                unit,
                case,
                _flops_columns(case.full, flops),
            )
        )
    if len({row.state for row in case.rows}) > 1:
        scale = memory_scale(case.full)
        tables.append(
            _section(
                f"{scale.unit} that a node holds: {name}",
                unit,
                case,
                _memory_columns(case.full, scale),
            )
        )
    if any(row.sent for row in case.rows):
        sent = scale_for(4 * case.full.params, "B")
        tables.append(
            _section(
                f"{sent.unit} of weights that a visit sends: {name}",
                unit,
                case,
                _sent_columns(sent),
            )
        )
    if any(row.measured for row in case.rows):
        tables.append(_section(f"Measured: {name}", unit, case, _measured_columns(case.full)))
    return tables


def memory_scale(full: Row) -> Scale:
    """GiB for large models, MiB for others."""
    return Scale(_GIB, "GiB") if full.state.total >= _GIB else Scale(_MIB, "MiB")


def _flops_columns(full: Row, scale: Scale) -> list[Column]:
    in_unit = lambda value: f"{value / scale.factor:,.3f}"  # noqa: E731
    whole = full.flops.total
    return [
        Column("trainable", lambda row: row.params, lambda value: f"{value:,.0f}"),
        Column("forward", lambda row: row.flops.forward, in_unit),
        Column("computed again", lambda row: row.flops.recomputed, in_unit),
        Column("input gradients", lambda row: row.flops.input_gradients, in_unit),
        Column("weight gradients", lambda row: row.flops.weight_gradients, in_unit),
        Column("teacher", lambda row: row.flops.teacher, in_unit),
        Column("step", lambda row: row.flops.total, in_unit),
        Column("of full", lambda row: row.flops.total / whole, percent),
        Column("compiler's", lambda row: row.counted.flops if row.counted else None, in_unit),
        Column(
            "difference",
            lambda row: row.counted.difference if row.counted else None,
            lambda v: f"{100 * v:+.2f} %",
        ),
    ]


def _memory_columns(full: Row, scale: Scale) -> list[Column]:
    in_unit = lambda value: f"{value / scale.factor:,.2f}"  # noqa: E731
    return [
        Column("trainable", lambda row: row.params, lambda value: f"{value:,.0f}"),
        Column("frozen", lambda row: row.state.frozen, in_unit),
        Column("trained", lambda row: row.state.trained, in_unit),
        Column("gradients", lambda row: row.state.gradients, in_unit),
        Column("optimizer", lambda row: row.state.optimizer, in_unit),
        Column("teacher", lambda row: row.state.received, in_unit),
        Column("state", lambda row: row.state.total, in_unit),
        Column("of full", lambda row: row.state.total / full.state.total, percent),
        Column("temporaries", _temporaries, in_unit),
        Column("compiled peak", _peak, lambda v: in_unit(v) if v >= 0 else "does not fit"),
        Column(
            "compiled in s",
            lambda row: row.built.wall_s if row.built else None,
            lambda value: f"{value:.1f}",
        ),
    ]


def _temporaries(row: Row) -> float | None:
    memory = row.built.memory if row.built else None
    return None if memory is None else memory.temporaries


def _peak(row: Row) -> float | None:
    """Below zero where the compiler refuses."""
    if row.built is None:
        return None
    return row.built.memory.peak if row.built.memory else -1


def _sent_columns(scale: Scale) -> list[Column]:
    in_unit = lambda value: f"{value / scale.factor:,.3f}"  # noqa: E731
    return [
        Column("up", lambda row: row.sent.up if row.sent else None, in_unit),
        Column("down, first", lambda row: row.sent.down if row.sent else None, in_unit),
        Column("down, cached", lambda row: row.sent.down_cached if row.sent else None, in_unit),
        Column("node to node, first", lambda row: row.sent.onward if row.sent else None, in_unit),
        Column(
            "node to node, cached",
            lambda row: row.sent.onward_cached if row.sent else None,
            in_unit,
        ),
    ]


def _measured_columns(full: Row) -> list[Column]:
    of = lambda name: lambda row: getattr(row.measured, name) if row.measured else None  # noqa: E731
    return [
        Column("ms a step", of("step_s"), lambda value: f"{1e3 * value:,.1f}"),
        Column("of full", of("of_full"), percent),
        Column("by FLOPs", lambda row: row.flops.total / full.flops.total, percent),
        Column("of the roofline", of("roofline"), percent),
        Column("MiB at most", of("peak_bytes"), lambda value: f"{value / _MIB:,.1f}"),
    ]


def _section(title: str, unit: str, case: Case, columns: Sequence[Column]) -> Section:
    """A line for each row, neighbours with the same numbers in one; the extremes; and full
    training.
    """
    used = [
        column for column in columns if any(column.value(row) for row in (*case.rows, case.full))
    ]
    lines = _joined([[row.layer, *_cells(row, used)] for row in case.rows])
    if len(lines) > 2:
        lines += [
            [word, *_extremes(case.rows, used, pick)]
            for word, pick in (("least", min), ("most", max))
        ]
    full = ["full training", *_cells(case.full, used)]
    return Section(
        title,
        [unit, *(column.head for column in used)],
        [*lines, *([] if full in lines else [full])],
    )


def _cells(row: Row, columns: Sequence[Column]) -> list[str]:
    values = [column.value(row) for column in columns]
    return [
        "" if value is None else column.show(value)
        for column, value in zip(columns, values, strict=True)
    ]


def _extremes(rows: Sequence[Row], columns: Sequence[Column], pick: Callable) -> list[str]:
    values = [[v for row in rows if (v := column.value(row)) is not None] for column in columns]
    return [
        column.show(pick(found)) if found else ""
        for column, found in zip(columns, values, strict=True)
    ]


def _joined(lines: Sequence[list[str]]) -> list[list[str]]:
    groups = [list(group) for _, group in groupby(lines, key=lambda line: line[1:])]
    return [
        [group[0][0] if len(group) == 1 else f"{group[0][0]} to {group[-1][0]}", *group[0][1:]]
        for group in groups
    ]


def _memory_of_cases(cases: Sequence[Case]) -> Section:
    """A line for each case, of its row that holds the most; and full training."""
    full = cases[0].full
    scale = memory_scale(full)
    rows = [largest(case) for case in cases]
    columns = _memory_columns(full, scale)
    used = [column for column in columns if any(column.value(row) for row in (*rows, full))]
    lines = [
        [case.train, case.frozen_dtype, row.layer, *_cells(row, used)]
        for case, row in zip(cases, rows, strict=True)
    ]
    if not any(row.trained == full.trained for row in rows):
        lines.append(["full", "-", "all", *_cells(full, used)])
    head = ["train", "frozen as", "of the most", *(column.head for column in used)]
    return Section(f"{scale.unit} that a node holds", head, lines, labels=3)


def formula_section(formulas: Sequence[Formula], cases: Sequence[Case]) -> Section:
    """The papers' formula beside what shapes and the compiler say."""
    scale = memory_scale(cases[0].full)
    gib = lambda value: f"{value / scale.factor:,.2f}"  # noqa: E731
    lines = [
        [f.counted, f"{f.params:,}", str(f.blocks), gib(f.full_bytes), gib(f.block_bytes)]
        for f in formulas
    ]
    full = cases[0].full
    for case in cases:
        row = largest(case)
        name = f"{case.train}, frozen as {case.frozen_dtype}"
        if row.trained == full.trained:
            continue
        lines.append(
            [
                f"state by shapes: {name}",
                f"{full.params:,}",
                "",
                gib(full.state.total),
                gib(row.state.total),
            ]
        )
        if row.built:
            cells = [_compiled(full, gib), _compiled(row, gib)]
            lines.append([f"compiled peak: {name}", f"{full.params:,}", "", *cells])
    of_block = f"{FROZEN_BYTES} + {TRAINED_BYTES}/N where one of N equal blocks trains"
    formula = f"{scale.unit} by the papers' formula, {FULL_BYTES} bytes a parameter in full"
    title = f"{formula}, {of_block}; and in truth"
    return Section(title, ["", "parameters", "N", "full", "a part"], lines)


def _compiled(row: Row, show: Callable[[float], str]) -> str:
    peak = _peak(row)
    return "" if peak is None else show(peak) if peak >= 0 else "does not fit"


def text(section: Section) -> str:
    """The table in columns of one width."""
    lines = [section.head, *section.lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(section.head))]
    aligned = [
        "  ".join(
            cell.ljust(w) if i < section.labels else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([section.title, *(line.rstrip() for line in aligned)])


def markdown(section: Section) -> str:
    """The table in Markdown, under its title."""
    rule = ["---"] * section.labels + ["---:"] * (len(section.head) - section.labels)
    lines = ("| " + " | ".join(line) + " |" for line in (section.head, rule, *section.lines))
    return "\n".join([section.title, "", *lines])
