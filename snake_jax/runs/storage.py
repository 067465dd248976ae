"""Where runs lie: folders of this machine, or of Google Cloud Storage buckets.

Both are `etils.epath` paths; one in a bucket is written `gs://BUCKET/FOLDER`. Two things that
folders have and buckets lack are made up for here:

- An object of a bucket is written whole or not at all and cannot be appended to, so to add a line
  is to write the whole object again.
- Some libraries (Matplotlib, the profiler, TensorBoard) know local files only. They get a local
  folder, which is fetched from the bucket before or stored there after.
"""

import contextlib
import errno
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from snake_jax.errors import UserError

if sys.platform != "win32":
    import fcntl

PART = ".part"
"""What the name of a file that is being written ends with."""

_BUCKET = "gs://"  # what paths in buckets begin with
# What reports read of a run.
_RESULTS = ("config.json", "metrics.jsonl", "ledger.jsonl", "events.jsonl", "summary.json")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether the path is in a bucket."""
    return os.fspath(path).startswith(_BUCKET)


def path_of(text: str | os.PathLike, flag: str) -> epath.Path:
    """The path that a flag names.

    Args:
      text: the flag's value.
      flag: its name, for errors.

    Raises:
      UserError: it is neither a folder nor in a bucket, or the bucket cannot be reached.
    """
    kind, separator, rest = os.fspath(text).partition("://")
    if not separator:
        return epath.Path(text)
    if f"{kind}://" != _BUCKET or not rest:
        raise UserError(f"--{flag}={text}: give a folder, or one in a bucket as gs://BUCKET/FOLDER")
    path = epath.Path(text)
    try:
        path.exists()
    except ImportError as error:
        raise UserError(f"--{flag}={text}: buckets need gcsfs; pip install -e '.[gcs]'") from error
    # Whatever the storage library makes of no access, no network or no such bucket.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"--{flag}={text}: the bucket cannot be reached ({reason})") from error
    return path


def absolute(path: epath.Path) -> epath.Path:
    """A path that still leads there when the working folder changes."""
    return path if is_bucket(path) else path.resolve()


def common(paths: Sequence[str], flag: str) -> str:
    """The folder that holds them all.

    Args:
      paths: to hold.
      flag: that names a folder where there is no common one, for errors.

    Raises:
      UserError: they lie in several buckets, or some in one and some here.
    """
    # Names of buckets; empty for paths of this machine.
    buckets = set()
    for path in paths:
        name = path.removeprefix(_BUCKET).partition("/")[0]
        buckets.add(name if is_bucket(path) else "")
    if len(buckets) > 1:
        raise UserError(f"the runs lie in {len(buckets)} places; say with --{flag} where to write")
    if buckets == {""}:
        here = [os.path.realpath(path) for path in paths]
        return os.path.commonpath(here)
    in_bucket = [path.removeprefix(_BUCKET) for path in paths]
    return _BUCKET + os.path.commonpath(in_bucket)


def entries(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder; nothing where there is none. A bucket knows no empty folders."""
    return list(folder.iterdir()) if folder.is_dir() else []


def replace(file: epath.Path, text: str) -> None:
    """Writes the whole file; a kill meanwhile leaves the old one as it was."""
    with whole(file) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def whole(file: epath.Path) -> Iterator[BinaryIO]:
    """Gives a stream to write a file's new content to, which takes the place of the old one at the
    end: a kill, or an error, before that leaves the old one as it was.
    """
    if is_bucket(file):
        content = io.BytesIO()
        yield content
        file.write_bytes(content.getvalue())
        return
    part = part_of(file)
    with part.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def part_of(file: epath.Path) -> epath.Path:
    """Where a file is written before it takes the place of the old one."""
    return file.with_name(file.name + PART)


def append(file: epath.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Adds JSON lines at the end of a file.

    In a bucket that writes the whole object again; those of a run are small.
    """
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if is_bucket(file):
        before = file.read_text() if file.exists() else ""
        replace(file, before + lines)
        return
    with file.open("a") as stream:
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def stored(path: epath.Path) -> Iterator[Path]:
    """Gives a local path to write a file or a folder to; what is written there ends at `path`."""
    if not is_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        yield local
        if local.is_file():
            epath.Path(local).copy(path, overwrite=True)
            return
        for file in sorted(local.rglob("*")):
            if file.is_file():
                target = path / file.relative_to(local).as_posix()
                epath.Path(file).copy(target, overwrite=True)


@contextlib.contextmanager
def fetched(folders: Sequence[str | os.PathLike]) -> Iterator[list[Path]]:
    """Gives local folders with the results of the runs that lie at or under `folders`.

    Those of this machine are given as they are; of those in buckets the results are copied, for as
    long as the context lasts.

    Raises:
      UserError: a folder in a bucket that is not there, or has no run in it.
    """
    with tempfile.TemporaryDirectory() as copies:
        local = []
        for folder in folders:
            if is_bucket(folder):
                local.append(_fetch(folder, Path(copies)))
            else:
                local.append(Path(folder))
        yield local


def _fetch(folder: str | os.PathLike, copies: Path) -> Path:
    """Copies results, under the same names: reports name runs by the ends of their paths."""
    source = path_of(folder, "workdir")
    local = copies / os.fspath(source).removeprefix(_BUCKET)
    todo = [(source, local)]
    while todo:
        at, to = todo.pop()
        found = {entry.name: entry for entry in entries(at)}
        for name in _RESULTS:
            if name in found:
                to.mkdir(parents=True, exist_ok=True)
                found[name].copy(to / name)
        # A run holds no other run.
        if "config.json" not in found:
            for name, entry in found.items():
                if entry.is_dir():
                    todo.append((entry, to / name))
    if not local.exists():
        raise UserError(f"{folder}: no such folder, or no run in it")
    return local


@contextlib.contextmanager
def room(folder: epath.Path) -> Iterator[None]:
    """Around what is written to a run's folder: says in one line that the disk is full.

    The library of checkpoints tells it by a ValueError of its own words.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"--workdir={folder}: no space is left; make some, and the same command goes on from "
            "the last finished round"
        ) from error


class InUse(UserError):
    """Another process has the folder."""


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
    """Keeps other processes out of the folder.

    Raises:
      InUse: another process has it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # A file system without locks keeps nobody out.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUse(
                    f"--workdir={folder} is in use by another process; wait for it to end"
                ) from error
        yield
    finally:
        os.close(descriptor)


def is_in_use(folder: epath.Path) -> bool:
    """Whether another process has the folder; of one that is not there: no."""
    if not folder.is_dir():
        return False
    try:
        with locked(folder):
            return False
    except InUse:
        return True
