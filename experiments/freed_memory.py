"""Times steps with freed memory kept by the process, and handed back to the kernel.

  python -m experiments.freed_memory --output=experiments/results/freed_memory.json

Each is the steps of `experiments.accept --scale=small`, in processes of their own, one kind after
the other; a step's number is the median. A launch keeps what it frees (`snake_jax.allocation`)
unless the environment sets the allocator up, as it does here for the other side, with the value
that is glibc's default.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from absl import flags

from snake_jax.cli import launch
from snake_jax.costs.timing import machine
from snake_jax.errors import UserError

OUTPUT = flags.DEFINE_string("output", "runs/freed_memory.json", "file to write")
REPEATS = flags.DEFINE_integer("repeats", 3, "processes of each kind", lower_bound=1)

_KINDS = {"kept": {}, "returned": {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}}


def main(_: list[str]) -> None:
    """Runs all processes, then writes the medians and their ratios."""
    # Before minutes of measuring, whose result could not be written.
    file = Path(OUTPUT.value)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise UserError(
            f"--output={OUTPUT.value}: {error.strerror}; give a file that can be written"
        ) from error
    here = machine()
    times: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in _KINDS}
    for number in range(REPEATS.value):
        for kind, environment in _KINDS.items():
            print(f"{kind}: process {number + 1} of {REPEATS.value}", flush=True)
            for step, step_ms in measured(environment).items():
                times[kind][step].append(step_ms)

    rows = []
    for step in times["kept"]:
        kept, returned = (statistics.median(times[kind][step]) for kind in ("kept", "returned"))
        rows.append(
            {"step": step, "kept_ms": kept, "returned_ms": returned, "ratio": kept / returned}
        )
        print(f"{step}: {kept:.3g} against {returned:.3g} ms, {kept / returned:.3f}")
    content = {
        "command": f"python -m experiments.freed_memory --repeats={REPEATS.value}",
        "machine": here,
        "rows": rows,
        "each_ms": times,
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def measured(environment: dict[str, str]) -> dict[str, float]:
    """Milliseconds of each step, in a process with these variables.

    Raises:
      UserError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "experiments.accept", "--scale=small", "--only=steps"]
        done = subprocess.run(
            [sys.executable, *command, f"--output={folder}"],
            env=os.environ | environment,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(f"the acceptance ended with {done.returncode}: {done.stdout[-300:]}")
        page = json.loads((Path(folder) / "accept.json").read_text())
    (stage,) = (stage for stage in page["stages"] if stage["stage"] == "steps")
    return {row["subject"]: row["value"] for row in stage["rows"] if row["name"] == "step"}


if __name__ == "__main__":
    launch.run(main)
