"""docs/performance.md from the committed results.

`python -m experiments.bench.document` writes it anew.
"""

import re
from typing import Any

from experiments.bench import limits, results, table

PAGE = results.COMMITTED.parents[2] / "docs" / "performance.md"
LIMITS = "limits"
"""The block of all suites together, at the head of the page."""
_PART = re.compile(r"(<!-- bench (\w+): begin -->\n).*?(<!-- bench \2: end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with every committed result between its marks.

    They are `<!-- bench SUITE: begin -->` and `... end -->`.
    """

    def between_marks(part: re.Match[str]) -> str:
        begin, suite, end = part.groups()
        return f"{begin}{_section(suite)}{end}"

    return _PART.sub(between_marks, page)


def update() -> None:
    """Writes the page anew."""
    PAGE.write_text(filled(PAGE.read_text()))


def heading(result: dict[str, Any]) -> str:
    """Command, machine, versions and peers, a line each."""
    known = []
    for name, value in result["machine"].items():
        if value is not None:
            known.append(f"{name} {value}")
    lines = [f"`{result['command']}`, {result['took_s']} s", ", ".join(known)]
    peers = [f"{name} {version}" for name, version in result["peers"].items()]
    if peers:
        lines.append(f"peers: {'; '.join(peers)}")
    return "\n".join(lines)


def report(result: results.Result) -> tuple[str, list[results.Change]]:
    """A result, and what it is compared with, as text; the regressions."""
    file = results.COMMITTED / f"{result['suite']}.json"
    committed = results.read(file) if file.exists() else None
    lines, found = results.comparison(result, committed)
    text = [
        heading(result),
        "",
        table.text(result["rows"]),
        *result["notes"],
        "",
        *lines,
        results.RULE,
    ]
    return "\n".join(text), found


def _section(suite: str) -> str:
    if suite == LIMITS:
        return f"\n{limits.markdown()}\n\n"
    file = results.COMMITTED / f"{suite}.json"
    if not file.exists():
        return f"\nNot measured yet: `python -m experiments.bench {suite} --update`.\n\n"
    result = results.read(file)
    parts = [
        heading(result).replace("\n", "  \n"),
        table.markdown(result["rows"]),
        *result["notes"],
    ]
    return "\n" + "\n\n".join(parts) + "\n\n"


if __name__ == "__main__":
    update()
