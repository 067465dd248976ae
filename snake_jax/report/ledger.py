"""What each place sent and received, and why: the rows of ledger.jsonl added up."""

import json
from pathlib import Path
from typing import Any

from snake_jax.errors import UserError
from snake_jax.nodes.ledger import SERVER
from snake_jax.report.runs import Record, Run

REASONS = (
    "initial",
    "catch-up",
    "update",
    "activations",
    "gradients",
    "labels",
)  # in this order, others after them


def ledger(run: Run) -> dict[str, Any] | None:
    """Bytes sent and received by each place, by reason, beside the metrics' totals; None where no
    ledger was kept.
    """
    rows = _ledger_rows(run.path / "ledger.jsonl")
    if rows is None:
        return None
    reasons = sorted({row["why"] for row in rows}, key=_in_order_of_reasons)
    names = sorted(
        {row[end] for row in rows for end in ("source", "destination")}, key=_server_first
    )
    places: dict[str, dict[str, Any]] = {
        name: {"name": name, "sent": [0] * len(reasons), "received": [0] * len(reasons)}
        for name in names
    }
    for row in rows:
        column = reasons.index(row["why"])
        places[row["source"]]["sent"][column] += row["bytes"]
        places[row["destination"]]["received"][column] += row["bytes"]
    down = sum(row["bytes"] for row in rows if row["source"] == SERVER)
    return {
        "reasons": reasons,
        "places": list(places.values()),
        "transfers": len(rows),
        "bytes_up": sum(row["bytes"] for row in rows) - down,
        "bytes_down": down,
        "metrics_up": sum(record.get("bytes_up") or 0 for record in run.metrics),
        "metrics_down": sum(record.get("bytes_down") or 0 for record in run.metrics),
    }


def _ledger_rows(path: Path) -> list[Record] | None:
    """The rows of a ledger; a last line that is still being written is left out."""
    if not path.exists():
        return None
    rows = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.strip() or not line.endswith("\n"):
            continue
        try:
            row = json.loads(line)
            rows.append({key: row[key] for key in ("source", "destination", "why", "bytes")})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: no row of a ledger; remove the file or run again"
            ) from error
    return rows


def _in_order_of_reasons(why: str) -> tuple[int, str]:
    return (REASONS.index(why), "") if why in REASONS else (len(REASONS), why)


def _server_first(place: str) -> tuple[bool, str, int, str]:
    stem = place.rstrip("0123456789")
    return (place != SERVER, stem, int(place[len(stem) :] or -1), place)
