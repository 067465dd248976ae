"""From the command to the first result, and to the end: the stages of a launch, and `make demo`.

Every launch is a process of its own, first with no programs kept, then with those of the first.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.rows import Measured, Request, Row, measured
from snake_jax.errors import UserError
from snake_jax.report import stages
from snake_jax.report.stages import Stage

REPEATS = 5
DEMO_REPEATS = 3
IMAGES = ("classify", "--preset=demo_snake", "--cycles=1")
TEXT = ("finetune", "--preset=demo_llm_snake", "--cycles=1", "--prompt=")
QUICK = (
    "classify",
    "--algorithm=fedavg",
    "--model=mlp",
    "--width=0.1",
    "--dataset=digits",
    "--nodes=2",
    "--cycles=1",
)
DEMO = {
    "snake": ("classify", "--preset=demo_snake", "--workdir={folder}/snake"),
    "fedavg": ("classify", "--preset=demo_fedavg", "--workdir={folder}/fedavg"),
    "compare": ("compare", "{folder}/snake", "{folder}/fedavg", "--output={folder}"),
}
"""What `make demo` types, as the Makefile has it."""
BYTE_CODE = "import snake_jax.cli.classify, snake_jax.cli.finetune, snake_jax.report.plots"
"""What `make` has Python import when it installs, as the Makefile has it."""
FIRST_RESULT = "first round"
NOTES = (
    "Floors: of imports, jax alone; of rounds, their training; of the rest, one copy of the bytes, "
    "or nothing.",
    "All: up to the first round. Python: what is left of the process's time, its start and exit.",
    "Byte code of what is imported is there, as `make` leaves it.",
)


def run(request: Request) -> Measured:
    """Image classification and fine-tuning, with and without programs from before."""
    launches = {"classify, demo": IMAGES, "finetune, tiny-llama": TEXT}
    if request.quick:
        launches = {"classify": QUICK}
    _write_byte_code()
    rows: list[Row] = []
    for subject, words in launches.items():
        request.say(f"start: {subject}")
        first, second = list[Sequence[Stage]](), list[Sequence[Stage]]()
        for _ in range(request.repeats or REPEATS):
            with tempfile.TemporaryDirectory() as folder:
                first.append(_launched(words, Path(folder), "first"))
                second.append(_launched(words, Path(folder), "second"))
        rows += _rows(f"{subject}, first launch", first)
        rows += _rows(f"{subject}, programs kept", second)
    request.say("start: make demo")
    rows += _demo(request.repeats or DEMO_REPEATS)
    return Measured(rows, {}, NOTES)


def _write_byte_code() -> None:
    """Has Python write the byte code of what launches import, also where it is told not to."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", BYTE_CODE], env=environment, check=True)


def _launched(words: Sequence[str], folder: Path, name: str) -> list[Stage]:
    """The stages of a launch in a process of its own, and at the end what is left of its time."""
    flags = (f"--workdir={folder / name}", f"--compilation_cache_dir={folder / 'programs'}")
    began, before = time.perf_counter(), os.times()
    ended = _process((*words, *flags, "--verbose"))
    wall_s, after = time.perf_counter() - began, os.times()
    user_s = after.children_user - before.children_user
    cpu_s = user_s + after.children_system - before.children_system

    found = stages.read(ended.stderr)
    left_s = wall_s - sum(stage.wall_s for stage in found)
    left_cpu_s = cpu_s - sum(stage.cpu_s for stage in found)
    return [*found, Stage("Python", left_s, left_cpu_s, 0.0, "nothing")]


def _process(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A command that has ended well.

    Raises:
      UserError: it has not.
    """
    command = [sys.executable, "-m", "snake_jax", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"start: {' '.join(words)} failed: {last}")
    return ended


def _rows(table: str, launches: Sequence[Sequence[Stage]]) -> list[Row]:
    """A line a stage, of the launches' stages in order; one of all up to the first result, and one
    of the whole process.
    """
    rows = []
    for number, same in enumerate(zip(*launches, strict=True), start=1):
        rows += _three(table, same[0].name, [[one] for one in same])
        if same[0].name == FIRST_RESULT:
            rows += _three(table, "all", [launch[:number] for launch in launches])
    return [*rows, *_three(table, "process", launches)]


def _three(table: str, subject: str, launches: Sequence[Sequence[Stage]]) -> list[Row]:
    """Clock, cores and floor of some stages together, of each launch."""
    rows = []
    for name, of in (("clock", "wall_s"), ("cores", "cpu_s"), ("floor", "floor_s")):
        sums = [sum(getattr(stage, of) for stage in launch) for launch in launches]
        rows.append(measured(table, subject, name, sums, "s"))
    return rows


def _demo(repeats: int) -> list[Row]:
    """The three commands of `make demo` on the clock, with and without programs from before."""
    first, second = list[list[float]](), list[list[float]]()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            first.append(_demo_s(Path(folder, "first")))
            second.append(_demo_s(Path(folder, "second")))
    rows = []
    for column, of in (("first, programs not kept", first), ("second, programs kept", second)):
        for number, subject in enumerate(DEMO):
            rows.append(measured("make demo", subject, column, [one[number] for one in of], "s"))
        rows.append(measured("make demo", "all three", column, [sum(one) for one in of], "s"))
    return rows


def _demo_s(folder: Path) -> list[float]:
    """Seconds of each command of `make demo`; programs are kept beside the folder."""
    found = []
    for words in DEMO.values():
        command = [word.format(folder=folder) for word in words]
        if command[0] == "classify":
            command.append(f"--compilation_cache_dir={folder.parent / 'programs'}")
        began = time.perf_counter()
        _process(command)
        found.append(time.perf_counter() - began)
    return found
