"""Rows as tables, for terminals and in Markdown: a line a subject, a column a name."""

from collections.abc import Iterable, Sequence

from experiments.bench.rows import HIGHER, Row

Cells = list[list[str]]


def text(rows: Sequence[Row]) -> str:
    """All tables with their goals, for a terminal."""
    parts = []
    for title, lines in _tables(rows):
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        body = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        parts += [title, *body, *goals([row for row in rows if row.table == title]), ""]
    return "\n".join(parts)


def markdown(rows: Sequence[Row]) -> str:
    """All tables with their goals, in Markdown."""
    parts = []
    for title, lines in _tables(rows):
        rule = [":--"] + ["--:"] * (len(lines[0]) - 1)
        body = ["| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:])]
        said = [f"- {goal}" for goal in goals([row for row in rows if row.table == title])]
        parts += [f"{title}:", "\n".join(body), *(["\n".join(said)] if said else [])]
    return "\n\n".join(parts)


def goals(rows: Sequence[Row]) -> list[str]:
    """One line for every column that has a goal: its bound, and who misses it by how much."""
    lines = []
    held = [row for row in rows if row.limit is not None]
    for name, limit, better in dict.fromkeys((row.name, row.limit, row.better) for row in held):
        column = [row for row in held if (row.name, row.limit, row.better) == (name, limit, better)]
        missed = [f"{row.subject} ({_number(row.value)})" for row in column if not row.met]
        said = f"missed by {', '.join(missed)}" if missed else "met"
        bound = f"{'at least' if better == HIGHER else 'at most'} {limit:g}"
        lines.append(f"{name}, {bound}: {said}; {len(column) - len(missed)} of {len(column)}")
    return lines


def _tables(rows: Sequence[Row]) -> list[tuple[str, Cells]]:
    return [
        (title, _pivot([row for row in rows if row.table == title]))
        for title in _order(r.table for r in rows)
    ]


def _pivot(rows: Sequence[Row]) -> Cells:
    cells = {(row.subject, row.name): row for row in rows}
    subjects = _order(row.subject for row in rows)
    fullest = max(subjects, key=lambda subject: sum(row.subject == subject for row in rows))
    names = _order(
        [row.name for row in rows if row.subject == fullest] + [row.name for row in rows]
    )
    units = {row.name: row.unit for row in rows}
    head = ["", *(f"{name}, {units[name]}" if units[name] else name for name in names)]
    return [
        head,
        *(
            [subject, *(_cell(cells.get((subject, name))) for name in names)]
            for subject in subjects
        ),
    ]


def _cell(row: Row | None) -> str:
    """The value, and in brackets its spread."""
    if row is None:
        return ""
    return _number(row.value) + (f" ({_number(row.spread)})" if row.spread else "")


def _number(value: float) -> str:
    """Three digits, all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
