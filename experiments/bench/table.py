"""Rows as tables, for terminals and in Markdown: a line a subject, a column a name."""

from collections.abc import Sequence

from experiments.bench.rows import HIGHER, Row

Cells = list[list[str]]
"""Lines of a table, the head first."""


def text(rows: Sequence[Row]) -> str:
    """All tables with their goals, for a terminal."""
    parts = []
    for title, mine in _by_table(rows).items():
        parts.append(title)
        lines = _cells(mine)
        # Columns are as wide as their widest cell; names stand left, numbers right.
        widths = []
        for column in zip(*lines, strict=True):
            widths.append(max(len(cell) for cell in column))
        for subject, *cells in lines:
            padded = [subject.ljust(widths[0])]
            for cell, width in zip(cells, widths[1:], strict=True):
                padded.append(cell.rjust(width))
            parts.append("  ".join(padded))
        parts += goals(mine)
        parts.append("")
    return "\n".join(parts)


def markdown(rows: Sequence[Row]) -> str:
    """All tables with their goals, in Markdown."""
    parts = []
    for title, mine in _by_table(rows).items():
        head, *body = _cells(mine)
        rule = [":--"]
        for _ in head[1:]:
            rule.append("--:")
        lines = [f"| {' | '.join(line)} |" for line in (head, rule, *body)]
        parts.append(f"{title}:")
        parts.append("\n".join(lines))
        said = [f"- {goal}" for goal in goals(mine)]
        if said:
            parts.append("\n".join(said))
    return "\n\n".join(parts)


def goals(rows: Sequence[Row]) -> list[str]:
    """One line for every column that has a goal: its bound, and who misses it by how much."""
    # A column may have several goals: one for each kind of peer.
    columns: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        if row.limit is not None:
            key = (row.name, row.limit, row.better)
            columns.setdefault(key, []).append(row)
    lines = []
    for (name, limit, better), column in columns.items():
        missed = []
        for row in column:
            if not row.met:
                missed.append(f"{row.subject} ({number(row.value)})")
        said = f"missed by {', '.join(missed)}" if missed else "met"
        bound = "at least" if better == HIGHER else "at most"
        met = len(column) - len(missed)
        lines.append(f"{name}, {bound} {limit:g}: {said}; {met} of {len(column)}")
    return lines


def _by_table(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each table, tables in the order of their first rows."""
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.table, []).append(row)
    return tables


def _cells(rows: Sequence[Row]) -> Cells:
    """The lines of one table."""
    lines: dict[str, dict[str, Row]] = {}
    units = {}
    for row in rows:
        lines.setdefault(row.subject, {})[row.name] = row
        units[row.name] = row.unit

    # Columns stand in the order of the line that has most of them, then those that it has not.
    fullest = max(lines.values(), key=len)
    names = list(dict.fromkeys([*fullest, *units]))
    head = [""]
    for name in names:
        unit = units[name]
        head.append(f"{name}, {unit}" if unit else name)
    body = []
    for subject, line in lines.items():
        cells = [_cell(line.get(name)) for name in names]
        body.append([subject, *cells])
    return [head, *body]


def _cell(row: Row | None) -> str:
    """The value, and in brackets its spread."""
    if row is None:
        return ""
    if not row.spread:
        return number(row.value)
    return f"{number(row.value)} ({number(row.spread)})"


def number(value: float) -> str:
    """Three digits, all those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
