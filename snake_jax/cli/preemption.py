"""A SIGTERM, which clouds send before they take a machine: the run ends so that it can go on.

The round (a visit, with most methods) that is being trained may end within `--grace_s`; then it is
kept as every round is, and the run ends. Otherwise the process ends in the middle of it: what is
kept is the round before, whole, and the next process does this one anew. Both ways the exit code is
143, and what the run comes to is the same bit for bit. Nothing is saved within a round: it would be
other things with every method and executor, to win a round at most.

Python runs its own handlers between two of its instructions, and a compiled epoch is one. So the C
handler wakes a thread, which counts the seconds.
"""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from snake_jax.cli import cluster, launch

CODE = 128 + signal.SIGTERM


def ended(where: str, goes_on_from: str = "there") -> launch.Ended:
    """What ends a launch after SIGTERM: one line, exit code 143."""
    return launch.Ended(f"terminated {where}; the same command goes on from {goes_on_from}", CODE)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    del number, frame


@contextlib.contextmanager
def heeded(grace_s: float) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a SIGTERM has come.

    `grace_s` seconds after one, the process is ended.

    Args:
      grace_s: how long what is done inside may go on after it.
    """
    come = threading.Event()  # the signal
    over = threading.Event()  # what is done inside
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def wait() -> None:
        # Every signal writes its number; nothing is read once the writer is closed.
        number = reader.recv(1)
        while number and number[0] != signal.SIGTERM:
            number = reader.recv(1)
        if not number:
            return
        come.set()
        if not over.wait(grace_s):
            cluster.end_all(ended("before the next round was finished", "the last one"))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    # Python's handler does nothing: what wakes the thread is the byte that the C handler writes.
    handler = signal.signal(signal.SIGTERM, _do_nothing)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield come.is_set
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        over.set()
        writer.close()
        thread.join()
        reader.close()
