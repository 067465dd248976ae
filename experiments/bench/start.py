"""From the command to the first result: the stages of a launch, each with its floor.

Every launch is a process of its own, first with no programs kept, then with those of the first.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.rows import Measured, Request, Row, measured
from snake_jax.errors import UserError
from snake_jax.report import stages
from snake_jax.report.stages import Stage

REPEATS = 5
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
NOTES = (
    "Floors: of imports, jax alone; of the first round, its training; of the rest, one copy of "
    "the bytes.",
)


def run(request: Request) -> Measured:
    """Image classification and fine-tuning, with and without programs from before."""
    launches = {"classify, demo": IMAGES, "finetune, tiny-llama": TEXT}
    if request.quick:
        launches = {"classify": QUICK}
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
    return Measured(rows, {}, NOTES)


def _launched(words: Sequence[str], folder: Path, name: str) -> list[Stage]:
    """The stages of a launch in a process of its own."""
    flags = (f"--workdir={folder / name}", f"--compilation_cache_dir={folder / 'programs'}")
    command = [sys.executable, "-m", "snake_jax", *words, *flags, "--verbose"]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"start: {' '.join(words)} failed: {last}")
    return stages.read(ended.stderr)


def _rows(table: str, launches: Sequence[Sequence[Stage]]) -> list[Row]:
    """A line a stage, of the launches' stages in order, and one of all."""
    rows = []
    for same in zip(*launches, strict=True):
        name = same[0].name
        rows.append(measured(table, name, "clock", [one.wall_s for one in same], "s"))
        rows.append(measured(table, name, "cores", [one.cpu_s for one in same], "s"))
        rows.append(measured(table, name, "floor", [one.floor_s for one in same], "s"))
    for name, of in (("clock", "wall_s"), ("cores", "cpu_s"), ("floor", "floor_s")):
        sums = [sum(getattr(stage, of) for stage in launch) for launch in launches]
        rows.append(measured(table, "all", name, sums, "s"))
    return rows
