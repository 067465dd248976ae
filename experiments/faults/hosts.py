"""Two hosts that are cut apart: a daemon of Ray in a network namespace of its own, whose link goes
down while its node trains.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.faults.runs import (
    ACTORS,
    SIZES,
    Seen,
    replay_of,
    same_bits,
    skipped,
    trained,
)
from snake_jax.algorithms.visits import Order
from snake_jax.config import ImageConfig
from snake_jax.engines.choice import HERE, Choice, around
from snake_jax.engines.contract import Engine

# Addresses for tests of devices, RFC 2544.
_HERE, _THERE = "198.18.77.1", "198.18.77.2"
_SPACE, _LINK, _OTHER_END = "snakejax", "snakejax0", "snakejax1"
_MEMORY_BYTES = 80_000_000


class _Cut:
    """An engine whose link to the other host goes down once its node has begun to train."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.at_s, self.turn = 0.0, -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, order: Order) -> None:
        """Passes the order on; cuts the link under the first that goes over it, but for one."""
        pids = self._engine.processes() if self.turn < 0 else []  # type: ignore[attr-defined]
        self._engine.submit(order)
        if pids and order.visit.turn and _is_there(pids[order.visit.node % ACTORS]):
            self.turn = order.visit.turn
            time.sleep(0.3)
            self.at_s = time.time()
            _run("ip", "link", "set", _LINK, "down")


def cut_apart(name: str, folder: Path, dataset: str) -> Seen:
    """One of two hosts is lost with its node and all that it trained; the other takes over."""
    del folder
    config = ImageConfig(**SIZES | {"dataset": dataset, "local_epochs": 400})
    wrapped: list[_Cut] = []

    def wrap(engine: Engine) -> Engine:
        wrapped.append(_Cut(engine))
        return wrapped[0]

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_linked())
        except (OSError, subprocess.CalledProcessError) as error:
            return skipped(name, f"network namespaces are not permitted here ({error})")
        address = stack.enter_context(_daemons())
        place = {"place": 1.0}
        choice = Choice("ray", address, ACTORS, place, deadline_s=5.0, without_tls=True)
        with around(choice):
            reports = trained(config, choice, wrap)
    replayed = trained(ImageConfig(**vars(config) | replay_of(reports)), HERE)

    events = [event for report in reports for event in report.events]
    mine = [event for event in events if event.visit == wrapped[0].turn]
    lost = next(event for event in mine if event.event == "lost")
    taken = next(event for event in mine if event.event == "taken over")
    detect_s, take_over_s = lost.time_s - wrapped[0].at_s, taken.time_s - lost.time_s
    return Seen(name, detect_s, take_over_s, lost.cause, same_bits(reports, replayed))


def _is_there(pid: int) -> bool:
    """Whether a process is on the other host."""
    return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


@contextlib.contextmanager
def _linked() -> Iterator[None]:
    """A network namespace, and a link to it.

    Raises:
      CalledProcessError: it is not permitted.
      OSError: there is no `ip`.
    """
    inside = ("ip", "-n", _SPACE)
    _run("ip", "netns", "add", _SPACE)
    try:
        _run("ip", "link", "add", _LINK, "type", "veth", "peer", "name", _OTHER_END)
        _run("ip", "link", "set", _OTHER_END, "netns", _SPACE)
        _run("ip", "address", "add", f"{_HERE}/30", "dev", _LINK)
        _run(*inside, "address", "add", f"{_THERE}/30", "dev", _OTHER_END)
        _run("ip", "link", "set", _LINK, "up")
        _run(*inside, "link", "set", _OTHER_END, "up")
        _run(*inside, "link", "set", "lo", "up")
        yield
    finally:
        # The link goes with one of its ends.
        _run("ip", "netns", "delete", _SPACE)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def _daemons() -> Iterator[str]:
    """A cluster of both hosts; its address. The first has room for who has to come from there."""
    with socket.create_server((_HERE, 0)) as free:
        address = f"{_HERE}:{free.getsockname()[1]}"
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    start += ["--disable-usage-stats", f"--object-store-memory={_MEMORY_BYTES}"]
    port = address.partition(":")[2]
    head = ["--head", f"--port={port}", "--include-dashboard=false", '--resources={"place": 2}']
    other = ["ip", "netns", "exec", _SPACE, *start, f"--address={address}"]
    # Its own folder, so that whoever looks for the machine's cluster does not find this one.
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        first = [*start, *head, f"--node-ip-address={_HERE}", f"--temp-dir={folder}"]
        second = [*other, f"--node-ip-address={_THERE}", '--resources={"place": 1}']
        with _daemon(first), _daemon(second):
            yield address


@contextlib.contextmanager
def _daemon(command: Sequence[str]) -> Iterator[None]:
    """A daemon in a session of its own, which ends as a whole."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while "--block" not in said:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"Ray did not start: {said}")
                said += line
            yield
        finally:
            _end_session(process.pid)


def _end_session(session: int) -> None:
    """Kills all processes of a session, as proc_pid_stat(5) tells them."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = file.read_text().rpartition(")")[2].split()
            if fields[3] == str(session):
                os.kill(int(file.parent.name), signal.SIGKILL)
