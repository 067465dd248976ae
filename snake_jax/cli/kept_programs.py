"""Compiled programs are kept in a folder, for later launches."""

import contextlib
import os
import stat
from pathlib import Path

import jax

from snake_jax.cli import launch
from snake_jax.errors import UserError
from snake_jax.runs import storage

_MOST_BYTES = 2 * 1024**3
"""Of compiled programs in the user's own folder; the ones written longest ago go first."""


def keep_programs(path: str) -> None:
    """Has compiled programs kept in a folder, for later runs.

    Raises:
      UserError: it cannot be written to.
    """
    folder = storage.path_of(path, "compilation_cache_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; give a folder that can be written"
        raise UserError(f"--compilation_cache_dir={folder}: {reason}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def keep_programs_at_home(path: str) -> None:
    """Has compiled programs kept for later runs where the user asked for nothing.

    Where jax has a folder for them already, by its own setting, that one stays. A folder that
    cannot be written to costs time and no result, so the launch says so and goes on.

    Args:
      path: of the folder; it may begin with `~`.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        keep_programs(os.path.expanduser(path))
    except UserError as error:
        launch.warn(f"compiled programs are not kept for later runs: {error}")
        return
    _forget_oldest(Path(os.path.expanduser(path)), _MOST_BYTES)


def _forget_oldest(folder: Path, most_bytes: int) -> None:
    """Removes the files written longest ago until what is left is small enough.

    Another launch may remove the same ones, or read one that goes: it compiles anew. jax bounds its
    cache itself, but not where processes with and without a bound share a folder.
    """
    found = []
    # On a GPU the compiler keeps what it tuned in folders of its own below.
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            about = file.stat()
            if stat.S_ISREG(about.st_mode):
                found.append((about.st_mtime, about.st_size, file))
    in_all = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if in_all <= most_bytes:
            return
        file.unlink(missing_ok=True)
        in_all -= size
