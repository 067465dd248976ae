"""What strikes the processes around nodes: the controller, the Service Provider, their disk."""

import contextlib
import re
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.faults.runs import ACTORS, SIZES, Seen, ends_as_unbroken, lines_of, waited
from snake_jax.services import client

# Long enough to be struck on its way.
_LONG: dict[str, Any] = SIZES | {"cycles": 10, "local_epochs": 20}
_DISK_BYTES = 32 * 2**20


def controller(name: str, folder: Path, dataset: str) -> Seen:
    """A run's controller is killed; the same command goes on, with a cluster of its own anew."""
    run = folder / "run"
    command = _command(run, dataset)
    with _started(command) as first:
        waited(lambda: lines_of(run) >= 2, first)
        first.kill()
        first.wait()
    done, again_s = lines_of(run), time.time()
    with _started(command) as second:
        merged_s = waited(lambda: lines_of(run) > done, second)
        second.communicate()
    return Seen(
        name, None, merged_s - again_s, "the same command goes on", ends_as_unbroken(run, dataset)
    )


def disk(name: str, folder: Path, dataset: str) -> Seen:
    """The disk of the run's folder fills; once there is room the same command goes on."""
    place = folder / "disk"
    place.mkdir()
    with _small(place) as is_small:
        run = place / "run"
        command = _command(run, dataset)
        with _started(command) as first:
            waited(lambda: lines_of(run) >= 2, first)
            struck_s = time.time()
            _fill(place, first.pid, is_small)
            said = first.communicate()[1]
            noticed_s = time.time()
        (place / "filler").unlink(missing_ok=True)
        assert "no space is left" in said, said
        done, again_s = lines_of(run), time.time()
        with _started(command) as second:
            merged_s = waited(lambda: lines_of(run) > done, second)
            second.communicate()
        how = "of its own" if is_small else "by a limit of the size of files"
        cause = f"ends in a line, no space is left ({how}); the same command goes on"
        equal = ends_as_unbroken(run, dataset)
    return Seen(name, noticed_s - struck_s, merged_s - again_s, cause, equal)


def provider(name: str, folder: Path, dataset: str) -> Seen:
    """The Service Provider is killed while a service runs; started again it has all states."""
    token = secrets.token_urlsafe(32)
    (folder / "token").write_text(token)
    data = Path(dataset.partition(":")[2])
    words = ["serve", f"--root={folder / 'root'}", f"--token_file={folder / 'token'}", "--port=0"]
    command = [sys.executable, "-m", "snake_jax", *words, f"--data_folders={data.parent}"]
    settings = _LONG | {"dataset": f"npz:{data}", "engine": "ray"}
    with _started(command) as first:
        server = client.server(_url(first), token)
        client.submit(server, {"task": "classify", "settings": settings})
        waited(lambda: client.show(server, 1)["rounds"] >= 2, first)
        first.kill()
        first.wait()

    # Its service goes on without it; who comes after knows it at once.
    again_s = time.time()
    with _started(command) as second:
        server = client.server(_url(second), token)
        service = client.show(server, 1)
        known_s = time.time()
        busy = ("waiting", "running", "ending")
        waited(lambda: client.show(server, 1)["state"] not in busy, second)
        ended = client.show(server, 1)
        second.terminate()
        second.wait()
    right = service["rounds"] >= 2 and (ended["state"], ended["attempt"]) == ("finished", 1)
    cause = f"its service was {service['state']} and {ended['state']}, in attempt 1 of it"
    equal = right and ends_as_unbroken(folder / "root/services/1/run", dataset)
    return Seen(name, None, known_s - again_s, cause, equal)


def _command(run: Path, dataset: str) -> list[str]:
    """A launch on processes of its own."""
    flags = [f"--{name}={value}" for name, value in (_LONG | {"dataset": dataset}).items()]
    engine = ["--engine=ray", f"--ray_actors={ACTORS}", f"--workdir={run}"]
    return [sys.executable, "-m", "snake_jax", "classify", *flags, *engine]


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process with its output in pipes; killed at the end, if it is there still."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _url(process: "subprocess.Popen[str]") -> str:
    """The address that a Service Provider prints.

    Raises:
      RuntimeError: it did not start.
    """
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.match(r"(http://127\.0\.0\.1:\d+): ", said)
    if not found:
        raise RuntimeError(f"the Service Provider did not start: {said}")
    return found[1]


@contextlib.contextmanager
def _small(place: Path) -> Iterator[bool]:
    """A small file system in this place, where that is permitted; whether it is."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "faults", str(place)]
    mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def _fill(place: Path, pid: int, is_small: bool) -> None:
    """Leaves a process no room for another byte: on the disk, or in any file of its."""
    if not is_small:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
        return
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            # The last page too.
            file.write(bytes(4096))
