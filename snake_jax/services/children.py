"""The processes of services: started, looked at, told to end. POSIX systems only."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from snake_jax.services import keeper


class Process(NamedTuple):
    """A running process; `started` tells it from a later one of the same pid."""

    pid: int
    started: str


def start(
    folder: Path, attempt: int, words: Sequence[str], environment: Mapping[str, str]
) -> Process:
    """Starts a command under a keeper, in a session of its own: it outlives this process.

    Args:
      folder: of the service; the command's working folder.
      attempt: number that its output and exit code are kept under.
      words: program and arguments, as they are: no shell reads them.
      environment: of the command.

    Raises:
      OSError: there are no processes or files left.
    """
    program = [sys.executable, "-I", "-S", os.fspath(Path(keeper.__file__).resolve())]
    # posix_spawn: no copy of this process, whose threads may hold locks, runs any code.
    pid = os.posix_spawn(
        sys.executable,
        [*program, os.fspath(folder.resolve()), str(attempt), *words],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
    )
    return Process(pid, _started(pid))


def is_alive(process: Process) -> bool:
    """Whether it runs: one that has ended and waits to be asked for its exit code does not."""
    if not process.pid:
        return False
    # Where it is this process's own child: takes its exit code, so that it is gone. It may be of a
    # Service Provider before this one.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return bool(process.started) and _started(process.pid) == process.started


def end(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    """Signals a process that is alive: SIGTERM to its keeper, SIGKILL to all of its session."""
    if not is_alive(process):
        return
    try:
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        # It ended meanwhile.
        return


def exit_code(folder: Path, attempt: int) -> int | None:
    """How the command ended: its exit code, or minus the signal that killed it.

    None: nobody knows, since its keeper was killed.
    """
    try:
        return int((folder / f"exit_{attempt}").read_text())
    except FileNotFoundError:
        return None


def ended_s(folder: Path, attempt: int, otherwise: float) -> float:
    """When the command ended, in seconds since 1970: when its exit code was written.

    Where nobody knows, when it last printed something; `otherwise` where there is no trace of it.
    """
    for name in (f"exit_{attempt}", f"output_{attempt}.log"):
        with contextlib.suppress(FileNotFoundError):
            return (folder / name).stat().st_mtime
    return otherwise


def _started(pid: int) -> str:
    """When a process was started, as the system counts it; empty: there is none, or it ended."""
    if sys.platform != "linux":
        command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        state, _, since = said.partition(" ")
        return "" if state.startswith("Z") else since.strip()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name before may hold spaces and brackets; the state comes next, and the start, field
        # 22 of proc_pid_stat(5), in ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"
