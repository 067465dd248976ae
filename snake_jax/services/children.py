"""The processes of services: started, looked at, told to end. POSIX systems only."""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from snake_jax import pids
from snake_jax.pids import Process
from snake_jax.services import keeper


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
    return Process(pid, pids.started(pid))


def of_attempt(folder: Path, attempt: int) -> Process:
    """The keeper of an attempt whose start was not noted; none where there is none that runs.

    After this none can begin either: a keeper takes its attempt, or this does, whoever is first.
    """
    file = folder / f"keeper_{attempt}"
    own = keeper.taken(file)
    if own is not None:
        os.close(own)
        return Process(0, "")
    with file.open("rb") as stream:
        # It holds the lock as long as it lives, so that its number is no other process's.
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = int(stream.read())
            return Process(pid, pids.started(pid))
    return Process(0, "")


def is_alive(process: Process) -> bool:
    """Whether it runs: one that has ended and waits to be asked for its exit code does not."""
    if not process.pid:
        return False
    # Where it is this process's own child: takes its exit code, so that it is gone. It may be of a
    # Service Provider before this one.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return pids.is_alive(process)


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
