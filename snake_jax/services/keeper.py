"""Runs one command and writes down how it ended: `python keeper.py FOLDER ATTEMPT WORD...`.

It stands between the Service Provider and a service's process, so that the exit code of a process
is known though the Service Provider was away when it ended. The standard library only, and nothing
of this package: it is a file that a fresh Python runs.

FOLDER gets `keeper_ATTEMPT`, which says who runs it, `output_ATTEMPT.log` and, in the end,
`exit_ATTEMPT`. A lock on the folder, which the command inherits, has a second keeper wait until the
first one's command is gone.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_S = 0.05
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    """Runs the command of the command line."""
    folder, attempt, *words = sys.argv[1:]
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    os.chdir(folder)
    # A Service Provider that was killed before it had noted this process finds it here, and one
    # that looked before this line has taken the attempt itself: then nothing is to run.
    if taken(Path(f"keeper_{attempt}")) is None:
        return
    lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600)
    code = _TERMINATED
    if _locked(lock, told):
        with open(f"output_{attempt}.log", "ab") as output:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                preexec_fn=_dying_with_this(),
            )
        code = _waited(child, told)
    part = Path(f"exit_{attempt}.part")
    part.write_text(f"{code}\n")
    part.replace(f"exit_{attempt}")


def taken(file: Path) -> int | None:
    """Makes a file that holds this process's number, unless it is there already.

    Returns:
      The open file, on which this process has a lock as long as it is open; None: another process
      was first.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, b"%d" % os.getpid())
    # A second name for the same file: it is whole and locked from the moment that it is there.
    try:
        os.link(part, file)
    except FileExistsError:
        os.close(descriptor)
        return None
    finally:
        part.unlink()
    return descriptor


def _locked(lock: int, told: list[int]) -> bool:
    """Waits for the lock; False where this is told to end before it has it."""
    while not told:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOOK_S)
    return False


def _waited(child: subprocess.Popen[bytes], told: list[int]) -> int:
    """Waits for the command, and passes SIGTERM on, once for each that came."""
    passed = 0
    while True:
        if len(told) > passed:
            passed = len(told)
            child.terminate()
        try:
            return child.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            pass


def _dying_with_this() -> Callable[[], object] | None:
    """What has the command killed, should this process be: on Linux alone."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(_DIES_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    main()
