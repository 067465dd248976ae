"""The parity table, and its place in docs/models.md."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.parity.measure import Parity

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "experiments/results/parity.json"
PAGE = ROOT / "docs/models.md"
_MARKED = re.compile(r"(<!-- parity: begin -->\n).*?(<!-- parity: end -->)", re.DOTALL)


def read() -> dict[str, Any]:
    """The committed result."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found


def section(result: dict[str, Any]) -> str:
    """Command, versions and table, as Markdown."""
    versions = [f"{name} {version}" for name, version in result["versions"].items()]
    lines = [
        f"`{result['command']}`; {', '.join(versions)}",
        "",
        "| variant | `model_type` | logits | saved back | generated | LoRA in peft | int8 | nf4 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(_line(Parity(**row)))
    return "\n".join(lines) + "\n"


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with the result between its marks."""

    def between_marks(part: re.Match[str]) -> str:
        begin, end = part.groups()
        return f"{begin}{section(result)}{end}"

    return _MARKED.sub(between_marks, page)


def _line(row: Parity) -> str:
    """A row in Markdown."""
    cells = [
        f"`{row.variant}`",
        f"`{row.model_type}`",
        _number(row.logits),
        _number(row.saved),
        f"{row.generated} of {row.asked}",
        _number(row.adapted),
        _number(row.int8),
        _number(row.nf4),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Two digits; 0 where it is exactly that."""
    if value == 0:
        return "0"
    return f"{value:.1e}"
