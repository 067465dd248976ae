"""Stage `training`: launches that learn, that are killed and gone on with.

This process uses no device before the launches have ended: a chip has room for one process.
"""

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.accept import material
from experiments.accept.outcome import Outcome, last_line, line_of
from experiments.accept.stages import Given
from experiments.bench.rows import HIGHER, LOWER, Row
from experiments.faults.runs import lines_of, same_params, trained
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.choice import HERE
from snake_jax.runs import loop
from snake_jax.runs.workdir import Workdir

TABLE = "Launches, killed with SIGKILL and gone on with"
LEAST_ACCURACY = 0.3
"""Of ten classes: guessing reaches 0.1."""
_KILLED_AFTER = 2  # lines of metrics


class Launch(NamedTuple):
    """A command and what it is told.

    Attributes:
      command: of `snake-jax`.
      flags: its settings.
      workdir: where it keeps its run.
    """

    command: str
    flags: Mapping[str, Any]
    workdir: Path


def run(given: Given) -> Outcome:
    """Images, then text; what fails in one leaves the other alone."""
    text = {**given.sizes.text, "data": material.write_pairs(given.folder)}
    launches = [
        Launch("classify", given.sizes.images, given.folder / "images"),
        Launch("finetune", text, given.folder / "text"),
    ]
    rows: list[Row] = []
    failures = []
    # All launches before the first comparison, since that takes the device.
    ended = []
    for launch in launches:
        try:
            rows += _carried_out(launch)
            ended.append(launch)
        except Exception as error:
            failures.append(f"{launch.command}: {line_of(error)}")
    for launch in ended:
        try:
            rows.append(_as_unbroken(launch))
        except Exception as error:
            failures.append(f"{launch.command}, without a kill: {line_of(error)}")
    return Outcome(rows, failures)


def _carried_out(launch: Launch) -> list[Row]:
    """Begun, killed, begun again; what it learned."""
    began_s = time.monotonic()
    killed_after = _killed(launch)
    done = subprocess.run(_words(launch), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {last_line(done.stderr)}")
    took_s = time.monotonic() - began_s
    subject = f"{launch.flags['model']}, {launch.flags['algorithm']}"
    lines = lines_of(launch.workdir)
    return [
        Row(TABLE, subject, "both launches", took_s, "s"),
        Row(TABLE, subject, "lines before the kill", killed_after, better=HIGHER, limit=1),
        Row(TABLE, subject, "lines in all", lines),
        _learned(launch, subject),
    ]


def _killed(launch: Launch) -> int:
    """The lines of metrics after which a launch was killed.

    Raises:
      RuntimeError: it ended before it could be.
    """
    process = subprocess.Popen(
        _words(launch), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            while lines_of(launch.workdir) < _KILLED_AFTER:
                if process.poll() is not None:
                    _, said = process.communicate()
                    raise RuntimeError(f"it ended before the kill: {last_line(said)}")
                time.sleep(0.005)
        finally:
            process.kill()
    return lines_of(launch.workdir)


def _words(launch: Launch) -> list[str]:
    flags = [f"--{name}={value}" for name, value in launch.flags.items()]
    program = [sys.executable, "-m", "snake_jax", launch.command]
    return [*program, *flags, f"--workdir={launch.workdir}"]


def _learned(launch: Launch, subject: str) -> Row:
    """Accuracy after training, or the perplexity over that before."""
    summary = json.loads((launch.workdir / "summary.json").read_text())
    if launch.command == "classify":
        accuracy = summary["final_accuracy"]
        return Row(TABLE, subject, "accuracy", accuracy, better=HIGHER, limit=LEAST_ACCURACY)
    after, before = summary["perplexity_after"], summary["perplexity_before"]
    share = after / before if after is not None else math.inf
    return Row(TABLE, subject, "perplexity / before", share, better=LOWER, limit=0.9)


def _as_unbroken(launch: Launch) -> Row:
    """Whether the same run, which nothing strikes, ends with the same parameters."""
    stored = json.loads((launch.workdir / "config.json").read_text())
    kind = ImageConfig if launch.command == "classify" else TextConfig
    config = kind(**stored)
    reports = trained(config, HERE)
    workdir = Workdir(launch.workdir, dataclasses.replace(config))
    with contextlib.closing(workdir):
        state = workdir.resume(loop.prepare(config), _tell_nobody)
    last = reports[-1].state
    equal = state.rounds == last.rounds and same_params(state, last)
    subject = f"{launch.flags['model']}, {launch.flags['algorithm']}"
    return Row(TABLE, subject, "same bits as unbroken", float(equal), better=HIGHER, limit=1.0)


def _tell_nobody(text: str) -> None:
    del text
