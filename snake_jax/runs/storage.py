"""Where runs lie: folders of this machine, and folders of Google Cloud Storage buckets
(`gs://BUCKET/FOLDER`).

Both are `etils.epath` paths. What a bucket lacks is said here: an object is written whole or not at
all and cannot be appended to, so a line more is the whole object again; and what only knows local
files gets a local folder, which is fetched before or stored after.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from snake_jax.errors import UserError

_BUCKET = "gs://"
# What reports read of a run.
_RESULTS = ("config.json", "metrics.jsonl", "ledger.jsonl", "summary.json")


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether it is in a bucket."""
    return os.fspath(path).startswith(_BUCKET)


def place(text: str | os.PathLike, flag: str) -> epath.Path:
    """The path that a flag names.

    Args:
      text: the flag's value.
      flag: its name, for errors.

    Raises:
      UserError: it is no place of a kind that there is, or its bucket cannot be reached.
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
    except Exception as error:  # no access shows as whatever the storage library makes of it
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"--{flag}={text}: the bucket cannot be reached ({reason})") from error
    return path


def absolute(path: epath.Path) -> epath.Path:
    """A path that a change of the working folder does not change."""
    return path if is_bucket(path) else path.resolve()


def common(paths: Sequence[str], flag: str) -> str:
    """The folder that holds them all.

    Args:
      paths: of one bucket, or all here.
      flag: with which a folder is given where there is no such one.
    """
    buckets = {
        path.removeprefix(_BUCKET).partition("/")[0] if is_bucket(path) else "" for path in paths
    }
    if len(buckets) > 1:
        raise UserError(f"the runs lie in {len(buckets)} places; say with --{flag} where to write")
    if buckets == {""}:
        return os.path.commonpath([os.path.realpath(path) for path in paths])
    return _BUCKET + os.path.commonpath([path.removeprefix(_BUCKET) for path in paths])


def entries(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder; nothing where there is none, as an empty one of a bucket is."""
    return list(folder.iterdir()) if folder.is_dir() else []


def replace(file: epath.Path, text: str) -> None:
    """Writes the whole file or, if killed meanwhile, leaves the old one."""
    if is_bucket(file):
        file.write_text(text)
        return
    part = part_of(file)
    with part.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def part_of(file: epath.Path) -> epath.Path:
    """Where a file is written before it takes the place of the old one."""
    return file.with_name(file.name + ".part")


def append(file: epath.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Adds JSON lines at the end; on a bucket by writing the object anew, of which a run's are
    small.
    """
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if is_bucket(file):
        replace(file, (file.read_text() if file.exists() else "") + lines)
        return
    with file.open("a") as stream:
        stream.write(lines)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def stored(path: epath.Path) -> Iterator[Path]:
    """Gives a local path to write a file or a folder to, which is at `path` afterwards."""
    if not is_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        yield local
        files = (
            [local]
            if local.is_file()
            else [file for file in sorted(local.rglob("*")) if file.is_file()]
        )
        for file in files:
            target = path / file.relative_to(local).as_posix() if local.is_dir() else path
            epath.Path(file).copy(target, overwrite=True)


@contextlib.contextmanager
def fetched(folders: Sequence[str | os.PathLike]) -> Iterator[list[Path]]:
    """Gives local folders with the results of the runs in or under these, of which some may be in
    buckets.
    """
    with tempfile.TemporaryDirectory() as copies:
        yield [
            _fetch(folder, Path(copies)) if is_bucket(folder) else Path(folder)
            for folder in folders
        ]


def _fetch(folder: str | os.PathLike, copies: Path) -> Path:
    """Copies the results, into folders of the same names: reports call runs by the ends of their
    paths.
    """
    source = place(folder, "workdir")
    local = copies / os.fspath(source).removeprefix(_BUCKET)
    todo = [(source, local)]
    while todo:
        at, to = todo.pop()
        found = {entry.name: entry for entry in entries(at)}
        for name in _RESULTS:
            if name in found:
                to.mkdir(parents=True, exist_ok=True)
                found[name].copy(to / name)
        if "config.json" not in found:  # a run holds no other run
            todo += [(entry, to / name) for name, entry in found.items() if entry.is_dir()]
    if not local.exists():
        raise UserError(f"{folder}: no such folder, or no run in it")
    return local
