"""What each place sent and received, and why: the transfers of ledger.jsonl added up."""

import json
from pathlib import Path
from typing import Any

from snake_jax.errors import UserError
from snake_jax.nodes.places import CLOUD, SERVER
from snake_jax.report.merits import Record
from snake_jax.report.runs import Run

# Why something was sent, in this order; others after them.
REASONS = ("initial", "catch-up", "update", "activations", "gradients", "labels")
_SERVER = str(SERVER)
_CLOUD = str(CLOUD)


def ledger(run: Run) -> dict[str, Any] | None:
    """Bytes sent and received by each place, by reason, beside the totals of the metrics.

    Up and down are as in `nodes.ledger.bytes_up_down`. None where no ledger was kept.

    Raises:
      UserError: a line of ledger.jsonl that is no transfer.
    """
    transfers = _read_transfers(run.path / "ledger.jsonl")
    if transfers is None:
        return None

    # Columns and rows of the table: every reason and every place that some transfer names.
    whys: set[str] = set()
    names: set[str] = set()
    for transfer in transfers:
        whys.add(transfer["why"])
        names.add(transfer["source"])
        names.add(transfer["destination"])
    reasons = sorted(whys, key=_in_order_of_reasons)
    places: dict[str, dict[str, Any]] = {}
    for name in sorted(names, key=_server_first):
        sent = [0 for _ in reasons]
        received = [0 for _ in reasons]
        places[name] = {"name": name, "sent": sent, "received": received}

    # Every transfer counts twice: where it left, and where it arrived.
    up = 0
    down = 0
    for transfer in transfers:
        source = transfer["source"]
        destination = transfer["destination"]
        size = transfer["bytes"]
        column = reasons.index(transfer["why"])
        places[source]["sent"][column] += size
        places[destination]["received"][column] += size
        if source == _CLOUD or (source == _SERVER and destination != _CLOUD):
            down += size
        else:
            up += size

    # The metrics count the same bytes on their own; the page says whether both agree.
    metrics_up = sum(record.get("bytes_up") or 0 for record in run.metrics)
    metrics_down = sum(record.get("bytes_down") or 0 for record in run.metrics)
    return {
        "reasons": reasons,
        "places": list(places.values()),
        "transfers": len(transfers),
        "bytes_up": up,
        "bytes_down": down,
        "metrics_up": metrics_up,
        "metrics_down": metrics_down,
    }


def _read_transfers(path: Path) -> list[Record] | None:
    """The transfers of a ledger; a last line that is still being written is left out."""
    if not path.exists():
        return None
    transfers = []
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        # A run may be in the middle of writing it.
        if not line.strip() or not line.endswith("\n"):
            continue
        try:
            record = json.loads(line)
            keys = ("source", "destination", "why", "bytes")
            transfers.append({key: record[key] for key in keys})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: no row of a ledger; remove the file or run again"
            ) from error
    return transfers


def _in_order_of_reasons(why: str) -> tuple[int, str]:
    if why in REASONS:
        return REASONS.index(why), ""
    return len(REASONS), why


def _server_first(place: str) -> tuple[bool, str, int, str]:
    """The server, then by name, and numbers at the end of a name by value: node9 before node10."""
    stem = place.rstrip("0123456789")
    number = place[len(stem) :]
    return (place != _SERVER, stem, int(number) if number else -1, place)
