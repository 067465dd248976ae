"""Reads what happened to a run's nodes: `events.jsonl` in its folder.

It is the one place that reads it, for reports, pages and whoever else shows a run's events.
`snake_jax.runs.events` writes it.
"""

import json
from pathlib import Path
from typing import Any

FILE = "events.jsonl"
FIELDS = ("time_s", "round", "visit", "node", "event", "cause")


def read_events(folder: str | Path, after: int = 0) -> list[dict[str, Any]]:
    """The events of a run, in order, each with all of `FIELDS`; none where the run has no file.

    A process may be in the middle of the last line, which is left out then.

    Args:
      folder: of the run.
      after: how many of them to pass over.
    """
    file = Path(folder) / FILE
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    events = []
    for line in lines[after:]:
        row = json.loads(line)
        events.append({field: row.get(field) for field in FIELDS})
    return events
