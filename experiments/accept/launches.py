"""Stages as processes, and what a folder of their results is of."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from experiments.accept import outcome, stages
from experiments.accept.outcome import Result, failed, left_out
from experiments.accept.stages import Stage
from snake_jax.errors import UserError

ROOT = Path(__file__).parents[2]
_ASKED_S = 300.0  # what a device may take to be found


def found_device(folder: Path, left_s: float) -> tuple[str, str]:
    """Platform and kind of the device, asked in a process that then leaves it to the stages.

    Args:
      folder: of the results.
      left_s: seconds that are left for all.

    Raises:
      UserError: there is none, or none in time.
    """
    limit_s = min(_ASKED_S, left_s)
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    words = [sys.executable, "-c", code]
    environment = _environment(folder, {})
    try:
        asked = subprocess.run(
            words, capture_output=True, text=True, env=environment, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"jax has found no device in {limit_s:.0f} s") from None
    if asked.returncode:
        raise UserError(f"jax finds no device: {outcome.last_line(asked.stderr)}")
    backend, _, kind = outcome.last_line(asked.stdout).partition("|")
    return backend, kind


def check_folder(folder: Path, scale: str, kind: str) -> None:
    """Raises UserError where a folder has results of another scale or device."""
    for stage in stages.STAGES:
        before = outcome.read(folder, stage.name)
        if before is None:
            continue
        other = before.machine.get("device", kind)
        if before.scale != scale or other != kind:
            raise UserError(
                f"--output={folder}: it holds results of {other} at scale {before.scale}; give "
                f"another folder"
            )


def in_a_process(stage: Stage, scale: str, folder: Path, data: str, limit_s: float) -> Result:
    """A stage's result, whatever becomes of its process.

    One that is ended because no minutes are left did not fit; one that had time enough failed.
    """
    began_s = time.monotonic()
    log = folder / "stages" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    file = outcome.file_of(folder, stage.name)
    file.unlink(missing_ok=True)
    words = [sys.executable, "-m", "experiments.accept.one", stage.name, scale, str(folder)]
    words += [f"{limit_s:.0f}", data]

    # A group of its own, so that what it has started ends with it.
    with log.open("w") as said:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=_environment(folder, stage.environment),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    took_s = time.monotonic() - began_s
    found = outcome.read(folder, stage.name)
    if found is not None:
        return found._replace(took_s=took_s)
    expected = f"it was expected to take {stage.expected_s[scale]:.0f} s"
    if code is None and limit_s < stages.patience_s(stage, scale):
        line = f"ended after {limit_s:.0f} s, when the minutes were over: {expected}"
        return left_out(stage.name, scale, took_s, line)
    if code is None:
        line = f"ended after {limit_s:.0f} s: {expected}"
    else:
        line = f"its process ended with {code}: {outcome.last_line(log.read_text())[:300]}"
    return failed(stage.name, scale, took_s, line)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it has started and that is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path, own: Mapping[str, str]) -> dict[str, str]:
    """That of a stage: programs that were compiled are kept for the next time."""
    found = dict(os.environ)
    found.setdefault("JAX_COMPILATION_CACHE_DIR", str((folder / "programs").resolve()))
    # All of them, since stages and their launches have many small ones in common.
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    for name, value in own.items():
        before = found.get(name, "") if name == "XLA_FLAGS" else ""
        found[name] = f"{before} {value}".strip()
    return found
