"""Accepts a device: one command that an accelerator's owner runs.

  python -m experiments.accept --budget_minutes=25
  python -m experiments.accept --scale=small
  python -m experiments.accept --describe=tpu:v5e

The first takes whatever device jax finds through all stages, in the order of their value, each in a
process of its own and with its result written as it ends; the same command goes on after a kill and
repeats only what has not passed. It ends with a page, OUTPUT/accept.md and accept.json, which is
there from the beginning and says what was not reached yet. The second is the same on a CPU, on
narrow networks. The third compiles the programs for a chip that need not be there, of all stages or
of those of --only, and writes OUTPUT/described.md and described.json. Exit code: 0 where all
passed, 1 where something failed, 3 where nothing failed and not all of it fitted into the minutes,
130 after Ctrl-C, 143 after SIGTERM.
"""

import importlib.metadata
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from absl import flags

from experiments.accept import launches, outcome, page, stages
from experiments.accept.outcome import Result
from experiments.accept.sizes import SCALES
from experiments.accept.stages import Stage
from snake_jax.cli import launch, preemption
from snake_jax.config import pick
from snake_jax.errors import UserError

BUDGET = flags.DEFINE_float(
    "budget_minutes", 25.0, "minutes after which no stage goes on", lower_bound=0.1
)
SCALE = flags.DEFINE_string(
    "scale", "", f"{', '.join(SCALES)}; empty: small on a CPU, full on anything else"
)
OUTPUT = flags.DEFINE_string("output", "runs/accept", "folder of results and of the page")
DATA = flags.DEFINE_string(
    "data", "", "CIFAR-10 for the last stage: cifar10 (downloads it) or npz:DIR"
)
ONLY = flags.DEFINE_list("only", [], "stages, by comma; the device's is always there")
DESCRIBE = flags.DEFINE_string(
    "describe", "", "compile for this chip, as tpu:v5e, in the place of running"
)


def main(_: list[str]) -> None:
    """Asks for the device, then carries out the stages."""
    began_s = time.monotonic()
    if DESCRIBE.value:
        sys.exit(_described())

    def left_s() -> float:
        return 60 * BUDGET.value - (time.monotonic() - began_s)

    chosen = stages.chosen(ONLY.value)
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    backend, kind = launches.found_device(folder, left_s())
    scale = SCALE.value or ("small" if backend == "cpu" else "full")
    pick("scale", scale, SCALES)
    launches.check_folder(folder, scale, kind)

    def carried_out(stage: Stage, limit_s: float) -> Result:
        return launches.in_a_process(stage, scale, folder, DATA.value, limit_s)

    def told(results: Sequence[Result]) -> None:
        page.write(folder, _command(), results)

    # Whatever ends this process ends the stage's too, which would keep the device.
    signal.signal(signal.SIGTERM, _terminated)
    _say(f"{kind}, scale {scale}, {BUDGET.value:g} minutes")
    try:
        results = stages.carry_out(chosen, scale, folder, left_s, carried_out, _say, told)
    except KeyboardInterrupt:
        where = " and ".join(str(folder / name) for name in page.NAMES)
        raise KeyboardInterrupt(f"{where} say how far it came; the same command goes on") from None
    for name in page.NAMES:
        _say(str(folder / name))
    sys.exit(page.exit_code(results))


def _terminated(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise preemption.ended("before all stages were done", "the stage that was going on")


def _described() -> int:
    """Compiles for a chip; prints and writes what came of it; the exit code."""
    # Here, since jax is for the stages' processes where a device is run on.
    import jax

    from experiments.accept import describe
    from experiments.bench import results

    began_s = time.monotonic()
    target = DESCRIBE.value

    # A program for a chip that is not here can be kept and not read again.
    jax.config.update("jax_enable_compilation_cache", False)
    scale = pick("scale", SCALE.value or "full", SCALES)
    with tempfile.TemporaryDirectory() as folder:
        sizes = SCALES[scale]
        found = describe.run(sizes, target, Path(folder), _only(describe.STAGES), _say)
    status = outcome.status_of(found)
    took_s = time.monotonic() - began_s
    result = Result(target, status, scale, took_s, found, results.header() | _compiler())
    for file in page.write_described(Path(OUTPUT.value), _command(), result):
        _say(str(file))
    compiled = sum(row.name == "reserved" for row in found.rows)
    _say(f"{target}: {compiled} programs compiled, {len(found.failures)} failed")
    return 1 if status == outcome.FAILED else 0


def _compiler() -> dict[str, str]:
    """The version of the TPU compiler, where there is one."""
    try:
        return {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _only(described: Sequence[str]) -> list[str]:
    """Of --only, stages that have programs to describe."""
    for word in ONLY.value:
        if word not in described:
            known = ", ".join(described)
            raise UserError(f"--only={word}: no stage with programs to describe; there are {known}")
    return list(ONLY.value)


def _command() -> str:
    """What was typed, without this machine's folders."""
    words = [word for word in sys.argv[1:] if not word.startswith(("--output", "--data"))]
    return " ".join(["python -m experiments.accept", *words])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch.run(main)
