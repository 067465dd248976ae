"""The fault matrix: what can go wrong around a run, and what becomes of it.

    python -m experiments.faults --output=faults.json
    python -m experiments.faults --only=disk
    python -m experiments.faults --schedules=100 --output=schedules.json

Printed are seconds until a fault was noticed, from then until the run had got on by a merged visit,
and whether it ends with the same bits as a run in one process. `--schedules=N` draws N schedules of
faults of nodes by their seeds instead; with the same `--output` it goes on where it was.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench import results
from experiments.faults import hosts, nodes, processes
from experiments.faults.runs import ACTORS, SIZES, Seen, write_images
from snake_jax.config import ImageConfig
from snake_jax.engines.choice import Choice, around

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "", "JSON file of what was seen", flag_values=FLAGS)
flags.DEFINE_integer("schedules", 0, "drawn schedules instead of the matrix", flag_values=FLAGS)
flags.DEFINE_string("only", "", "a part of the cases' names", flag_values=FLAGS)

CHOICE = Choice("ray", actors=ACTORS, deadline_s=60.0)
# What is struck by what is not a node, each with its own cluster.
_AROUND: Mapping[str, Callable[[str, Path, str], Seen]] = {
    "SIGKILL of the controller": processes.controller,
    "SIGKILL of the Service Provider": processes.provider,
    "disk full at the controller": processes.disk,
    "two hosts cut apart": hosts.cut_apart,
}


def main(arguments: Sequence[str]) -> int:
    """Prints a line a fault; the exit code is 1 where bits differ."""
    FLAGS(arguments)
    output = Path(FLAGS.output) if FLAGS.output else None
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_images(Path(folder))
        base = ImageConfig(dataset=dataset, **SIZES)
        if FLAGS.schedules:
            with around(CHOICE):
                rows = run_schedules(base, FLAGS.schedules, output)
        else:
            rows = run_matrix(base, Path(folder), FLAGS.only)
            write(output, "python -m experiments.faults", rows)
    return 0 if all(row["same_bits"] is not False for row in rows) else 1


def run_schedules(base: ImageConfig, count: int, output: Path | None) -> list[dict[str, Any]]:
    """Prints a line a drawn schedule; those that the file has already are not run again."""
    rows: list[dict[str, Any]] = []
    if output is not None and output.exists():
        rows = json.loads(output.read_text())["rows"]
    for seed in range(len(rows), count):
        began_s = time.monotonic()
        faults, equal = nodes.schedule_replays(seed, base, CHOICE)
        took_s = round(time.monotonic() - began_s, 1)
        rows.append({"seed": seed, "faults": faults, "same_bits": equal, "seconds": took_s})
        print(f"seed {seed}: {faults}: {_said(equal)}", flush=True)
        # After each, so that what was interrupted goes on where it was.
        write(output, f"python -m experiments.faults --schedules={count}", rows)
    return rows


def run_matrix(base: ImageConfig, folder: Path, part: str) -> list[dict[str, Any]]:
    """Prints a line a case whose name has this part."""
    rows: list[dict[str, Any]] = []
    cases = [case for case in nodes.CASES if part in case.name]
    if cases:
        with around(CHOICE):
            for case in cases:
                rows.append(_shown(nodes.carried_out(case, base, CHOICE)))
    for number, (name, strike) in enumerate(_AROUND.items()):
        if part in name:
            own = folder / str(number)
            own.mkdir()
            rows.append(_shown(strike(name, own, base.dataset)))
    return rows


def write(output: Path | None, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with what they were seen by; without a file, nothing."""
    if output is not None:
        seen = {"command": command, "machine": results.header(), "rows": rows}
        output.write_text(json.dumps(seen, indent=1) + "\n")


def _shown(seen: Seen) -> dict[str, Any]:
    """Prints a case; gives its row."""
    times = f"{_seconds(seen.detect_s)} noticed, {_seconds(seen.take_over_s)} taken over"
    print(f"{seen.name}: {times}, {_said(seen.same_bits)}: {seen.cause}", flush=True)
    return seen._asdict()


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _said(equal: bool | None) -> str:
    if equal is None:
        return "not run"
    return "same bits" if equal else "OTHER BITS"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
