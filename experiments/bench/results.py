"""Results as files, and what got worse since the committed ones.

Times on a shared machine are noise from run to run. What is compared are ratios to a peer, to
another of our own programs or to the matrix product of the same run, measured in turn, and bytes,
which are counted.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.bench.rows import HIGHER, Row
from snake_jax.costs.timing import machine
from snake_jax.errors import UserError

COMMITTED = Path(__file__).parents[1] / "results" / "bench"
RULE = (
    "a ratio or a number of bytes is a regression where it is worse than the committed one by "
    "more than both spreads (between quartiles) together; bytes have none"
)
Result = dict[str, Any]


class Change(NamedTuple):
    """A row that got worse.

    Attributes:
      row: as it is now.
      before: its committed value.
      allowed: by how much it might have been worse.
    """

    row: Row
    before: float
    allowed: float

    def __str__(self) -> str:
        """For people."""
        where = ", ".join(self.row.key)
        change = f"{self.before:.4g} before, {self.row.value:.4g} now"
        return f"{where}: {change}, {self.allowed:.2g} is spread"


def write(folder: Path, result: Result) -> Path:
    """Writes SUITE.json."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result['suite']}.json"
    rows = [row._asdict() for row in result["rows"]]
    text = json.dumps(result | {"rows": rows}, indent=1, allow_nan=False)
    file.write_text(text + "\n")
    return file


def read(file: Path) -> Result:
    """Reads what `write` wrote.

    Raises:
      UserError: the file is no result.
    """
    try:
        result = json.loads(file.read_text())
        rows = [Row(**row) for row in result["rows"]]
        return result | {"rows": rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: no result of a benchmark ({error}); measure it anew with --update"
        ) from None


def kept(file: Path | None) -> list[dict[str, Any]]:
    """The rows that `keep` wrote; none where there is no file yet."""
    if file is None or not file.exists():
        return []
    return json.loads(file.read_text())["rows"]


def keep(file: Path | None, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that are no measurements with what they were seen by; without a file, nothing."""
    if file is not None:
        seen = {"command": command, "machine": header(), "rows": rows}
        file.write_text(json.dumps(seen, indent=1) + "\n")


def kind(of: dict[str, Any]) -> tuple[str, ...]:
    """What two machines must share for their numbers to be compared."""
    return tuple(str(of.get(name)) for name in ("processor", "cores", "architecture", "backend"))


def header() -> dict[str, Any]:
    """The machine, with what its kind takes and without what names the host's kernel."""
    here = dict(machine())
    here.pop("system", None)
    return here | {"architecture": platform.machine()}


def regressions(now: Result, before: Result) -> list[Change]:
    """The rows that got worse, by `RULE`."""
    committed = {row.key: row for row in before["rows"]}
    found = []
    for row in now["rows"]:
        old = committed.get(row.key)
        if old is None or not row.better:
            continue
        worse_by = row.value - old.value
        if row.better == HIGHER:
            worse_by = -worse_by
        allowed = row.spread + old.spread
        if worse_by > allowed:
            found.append(Change(row, old.value, allowed))
    return found


def comparison(now: Result, before: Result | None) -> tuple[list[str], list[Change]]:
    """What to say of the committed result, a line each, and the regressions."""
    if before is None:
        return ["no committed result to compare with"], []
    # Numbers of unlike machines or sizes say nothing of each other.
    if kind(now["machine"]) != kind(before["machine"]):
        other = ", ".join(kind(before["machine"]))
        return [f"not compared: the committed result is of another machine ({other})"], []
    if now["quick"] != before["quick"]:
        return ["not compared: the committed result is of other sizes"], []
    lines = [f"{name} was {old} when committed" for name, old in _other_versions(now, before)]
    missing = _missing(now["rows"], before["rows"])
    if missing:
        lines.append(f"not measured now: {', '.join(missing)}")
    found = regressions(now, before)
    if found:
        lines += [f"REGRESSION {change}" for change in found]
    else:
        lines.append("no regression")
    return lines, found


def _other_versions(now: Result, before: Result) -> list[tuple[str, str]]:
    """What the committed result says of its machine and peers and this one does not, but load."""
    found = []
    for part in ("machine", "peers"):
        for name, old in before[part].items():
            changing = name in ("load_1min", "load_1min_after")
            if not changing and now[part].get(name) != old:
                found.append((f"{part}.{name}", old))
    return found


def _missing(now: Sequence[Row], before: Sequence[Row]) -> list[str]:
    """Lines of tables that the committed result has more of."""
    there = {row.key for row in now}
    missing = set()
    for row in before:
        if row.key not in there:
            missing.add(f"{row.subject}: {row.name}")
    return sorted(missing)
