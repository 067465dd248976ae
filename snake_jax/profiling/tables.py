"""A profile as tables for people.

Columns say how a number is got and written; a column that is all zero is left out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from snake_jax.costs.flops import StepFlops
from snake_jax.profiling.formula import FROZEN_BYTES, FULL_BYTES, TRAINED_BYTES, Formula
from snake_jax.profiling.rows import Case, ProfileRow, largest_row
from snake_jax.report.units import Scale, percent, scale_for

_GIB, _MIB = 2**30, 2**20
_REFUSED = -1  # in the place of a peak's bytes, where the compiler refuses

Value = Callable[[ProfileRow], float | None]  # a number of a row; None where it has none
Show = Callable[[float], str]  # how a number is written


class Column(NamedTuple):
    """A heading, the number of a row or None, and how it is written."""

    head: str
    value: Value
    show: Show


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
    told: list[Case] = []
    for case in cases:
        found += _by_layer(unit, case, before=told)
        told.append(case)
    return found


def _by_layer(unit: str, case: Case, before: Sequence[Case]) -> list[Section]:
    """Tables of a case.

    Args:
      unit: what the rows are about.
      case: a way to train and store.
      before: cases that were told before. FLOPs that one of them has, stored in another way, are
        not told again.
    """
    tables = []
    full = case.full
    name = case.train
    if case.frozen_dtype != "-":
        name = f"{case.train}, frozen as {case.frozen_dtype}"

    # Storage changes no product, so cases that only store otherwise have the same FLOPs.
    told = [_flops(earlier) for earlier in before]
    if _flops(case) not in told:
        scale = scale_for(full.flops.total, "FLOP")
        title = f"{scale.unit} of a step: {case.train}"
        tables.append(_section(title, unit, case, _flops_columns(full, scale)))

    # Where all rows hold the same, the table of cases has said it.
    states = {row.state for row in case.rows}
    if len(states) > 1:
        scale = memory_scale(full)
        title = f"{scale.unit} that a node holds: {name}"
        tables.append(_section(title, unit, case, _memory_columns(full, scale)))

    # What is sent is told in the unit of the whole model in float32, 4 bytes a number.
    if any(row.sent for row in case.rows):
        scale = scale_for(4 * full.params, "B")
        title = f"{scale.unit} of weights that a visit sends: {name}"
        tables.append(_section(title, unit, case, _sent_columns(scale)))
    if any(row.measured for row in case.rows):
        title = f"Measured: {name}"
        tables.append(_section(title, unit, case, _measured_columns(full)))
    return tables


def _flops(case: Case) -> list[StepFlops]:
    return [row.flops for row in case.rows]


def memory_scale(full: ProfileRow) -> Scale:
    """GiB for large models, MiB for others."""
    return Scale(_GIB, "GiB") if full.state.total >= _GIB else Scale(_MIB, "MiB")


# Columns


def _at(path: str) -> Value:
    """The number of a row at a path such as `sent.up`; None where there is nothing on the way."""
    names = path.split(".")

    def value(row: ProfileRow) -> float | None:
        found: Any = row
        for name in names:
            if found is None:
                return None
            found = getattr(found, name)
        return found

    return value


def _share(path: str, whole: float) -> Value:
    """The number at a path as a part of a whole."""
    part = _at(path)

    def value(row: ProfileRow) -> float | None:
        found = part(row)
        return None if found is None else found / whole

    return value


def _in_unit(scale: Scale, digits: int) -> Show:
    """A number in the unit of a scale."""

    def show(value: float) -> str:
        return f"{value / scale.factor:,.{digits}f}"

    return show


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _difference(value: float) -> str:
    return f"{100 * value:+.2f} %"


def _flops_columns(full: ProfileRow, scale: Scale) -> list[Column]:
    """FLOPs by what they are for, and the compiler's count beside their sum."""
    in_unit = _in_unit(scale, 3)
    return [
        Column("trainable", _at("params"), _count),
        Column("forward", _at("flops.forward"), in_unit),
        Column("computed again", _at("flops.recomputed"), in_unit),
        Column("input gradients", _at("flops.input_gradients"), in_unit),
        Column("weight gradients", _at("flops.weight_gradients"), in_unit),
        Column("teacher", _at("flops.teacher"), in_unit),
        Column("step", _at("flops.total"), in_unit),
        Column("of full", _share("flops.total", full.flops.total), percent),
        Column("compiler's", _at("counted.flops"), in_unit),
        Column("difference", _at("counted.difference"), _difference),
    ]


def _memory_columns(full: ProfileRow, scale: Scale) -> list[Column]:
    """Bytes by kind, and what the compiler reserves."""
    in_unit = _in_unit(scale, 2)

    def peak_or_refusal(value: float) -> str:
        return "does not fit" if value == _REFUSED else in_unit(value)

    return [
        Column("trainable", _at("params"), _count),
        Column("frozen", _at("state.frozen"), in_unit),
        Column("trained", _at("state.trained"), in_unit),
        Column("gradients", _at("state.gradients"), in_unit),
        Column("optimizer", _at("state.optimizer"), in_unit),
        Column("teacher", _at("state.received"), in_unit),
        Column("state", _at("state.total"), in_unit),
        Column("of full", _share("state.total", full.state.total), percent),
        Column("temporaries", _at("built.memory.temporaries"), in_unit),
        Column("compiled peak", _peak, peak_or_refusal),
        Column("compiled in s", _at("built.wall_s"), _tenths),
    ]


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _peak(row: ProfileRow) -> float | None:
    """The compiled peak in bytes; `_REFUSED` where the compiler refuses."""
    if row.built is None:
        return None
    if row.built.memory is None:
        return _REFUSED
    return row.built.memory.peak


def _sent_columns(scale: Scale) -> list[Column]:
    """Bytes by whence and where to, and whether the receiver keeps what it was sent."""
    in_unit = _in_unit(scale, 3)
    return [
        Column("up", _at("sent.up"), in_unit),
        Column("down, first", _at("sent.down"), in_unit),
        Column("down, cached", _at("sent.down_cached"), in_unit),
        Column("node to node, first", _at("sent.onward"), in_unit),
        Column("node to node, cached", _at("sent.onward_cached"), in_unit),
    ]


def _measured_columns(full: ProfileRow) -> list[Column]:
    """The clock's share of the full step beside the share that FLOPs alone would make."""
    return [
        Column("ms a step", _at("measured.step_s"), _in_unit(Scale(1e-3, "ms"), 1)),
        Column("of full", _at("measured.of_full"), percent),
        Column("by FLOPs", _share("flops.total", full.flops.total), percent),
        Column("of the roofline", _at("measured.roofline"), percent),
        Column("MiB at most", _at("measured.peak_bytes"), _in_unit(Scale(_MIB, "MiB"), 1)),
    ]


# Tables


def _section(title: str, unit: str, case: Case, columns: Sequence[Column]) -> Section:
    """A line for each row; the extremes; and full training.

    Neighbours with the same numbers share a line.
    """
    # A column that is zero in every row tells nothing.
    used = _used(columns, (*case.rows, case.full))
    of_rows = []
    for row in case.rows:
        of_rows.append([row.layer, *_cells(row, used)])
    lines = _joined(of_rows)

    # Of one line or two the extremes can be seen.
    if len(lines) > 2:
        lines.append(["least", *_extremes(case.rows, used, min)])
        lines.append(["most", *_extremes(case.rows, used, max)])
    full = ["full training", *_cells(case.full, used)]
    if full not in lines:
        lines.append(full)
    return Section(title, [unit, *_heads(used)], lines)


def _used(columns: Sequence[Column], rows: Sequence[ProfileRow]) -> list[Column]:
    """The columns in which some row has a number other than zero."""
    return [column for column in columns if any(map(column.value, rows))]


def _heads(columns: Sequence[Column]) -> list[str]:
    return [column.head for column in columns]


def _cells(row: ProfileRow, columns: Sequence[Column]) -> list[str]:
    """A row's numbers as they are written; empty where it has none."""
    cells = []
    for column in columns:
        value = column.value(row)
        cells.append("" if value is None else column.show(value))
    return cells


def _extremes(
    rows: Sequence[ProfileRow],
    columns: Sequence[Column],
    pick: Callable[[list[float]], float],
) -> list[str]:
    """The least or the greatest of each column, of the rows that have a number in it."""
    cells = []
    for column in columns:
        found = []
        for row in rows:
            value = column.value(row)
            if value is not None:
                found.append(value)
        cells.append(column.show(pick(found)) if found else "")
    return cells


def _joined(lines: Sequence[list[str]]) -> list[list[str]]:
    """Lines with neighbours that differ in their first cell alone as one."""
    # A run of equal lines grows by its last name: "block_00 to block_22".
    joined: list[list[str]] = []
    first = ""
    for name, *numbers in lines:
        if joined and joined[-1][1:] == numbers:
            joined[-1][0] = f"{first} to {name}"
        else:
            first = name
            joined.append([name, *numbers])
    return joined


def _memory_of_cases(cases: Sequence[Case]) -> Section:
    """A line for each case, of its row that holds the most; and full training."""
    full = cases[0].full
    scale = memory_scale(full)
    rows = [largest_row(case) for case in cases]
    used = _used(_memory_columns(full, scale), (*rows, full))

    # The largest visit of a case decides what a node has to have.
    lines = []
    for case, row in zip(cases, rows, strict=True):
        lines.append([case.train, case.frozen_dtype, row.layer, *_cells(row, used)])

    # Where a case trains all, full training has its line already.
    trained = [row.trained for row in rows]
    if full.trained not in trained:
        lines.append(["full", "-", "all", *_cells(full, used)])
    head = ["train", "frozen as", "of the most", *_heads(used)]
    return Section(f"{scale.unit} that a node holds", head, lines, labels=3)


def formula_section(formulas: Sequence[Formula], cases: Sequence[Case]) -> Section:
    """The papers' formula beside what shapes and the compiler say."""
    full = cases[0].full
    scale = memory_scale(full)
    in_unit = _in_unit(scale, 2)
    lines = []
    for formula in formulas:
        sizes = [in_unit(formula.full_bytes), in_unit(formula.block_bytes)]
        lines.append([formula.counted, f"{formula.params:,}", str(formula.blocks), *sizes])

    # A case that trains all is no part to set against the formula's.
    params = f"{full.params:,}"
    for case in cases:
        row = largest_row(case)
        if row.trained == full.trained:
            continue
        name = f"{case.train}, frozen as {case.frozen_dtype}"
        sizes = [in_unit(full.state.total), in_unit(row.state.total)]
        lines.append([f"state by shapes: {name}", params, "", *sizes])
        if row.built:
            peaks = [_compiled(full, in_unit), _compiled(row, in_unit)]
            lines.append([f"compiled peak: {name}", params, "", *peaks])

    of_block = f"{FROZEN_BYTES} + {TRAINED_BYTES}/N where one of N equal blocks trains"
    by_formula = f"{scale.unit} by the papers' formula, {FULL_BYTES} bytes a parameter in full"
    title = f"{by_formula}, {of_block}; and in truth"
    return Section(title, ["", "parameters", "N", "full", "a part"], lines)


def _compiled(row: ProfileRow, show: Show) -> str:
    """A peak as it is written; empty where nothing was compiled."""
    peak = _peak(row)
    if peak is None:
        return ""
    return "does not fit" if peak == _REFUSED else show(peak)


# Forms


def text_table(section: Section) -> str:
    """The table in columns of one width."""
    # Words stand to the left of their column, numbers to the right.
    lines = [section.head, *section.lines]
    widths = []
    for column in zip(*lines, strict=True):
        widths.append(max(map(len, column)))
    written = [section.title]
    for line in lines:
        cells = []
        for number, (cell, width) in enumerate(zip(line, widths, strict=True)):
            is_label = number < section.labels
            cells.append(cell.ljust(width) if is_label else cell.rjust(width))
        written.append("  ".join(cells).rstrip())
    return "\n".join(written)


def markdown_table(section: Section) -> str:
    """The table in Markdown, under its title."""
    rule = []
    for number in range(len(section.head)):
        rule.append("---" if number < section.labels else "---:")
    written = [section.title, ""]
    for line in (section.head, rule, *section.lines):
        written.append("| " + " | ".join(line) + " |")
    return "\n".join(written)
