"""How a checkpoint lies in a folder: whole ones as orbax writes them, changes as numpy does.

    ROUNDS/      all arrays of a run: a checkpoint of orbax, which other programs read too
    ROUNDS.npz   the few that a visit changed: an archive of numpy, written in a small part of the
                 time that orbax, made for large trees, takes for a small one

Both take their name when they are whole, so that a kill leaves all of one or nothing.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath

from snake_jax.runs import storage

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_CHANGES = ".npz"
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what orbax has not finished

Read = Callable[[str], np.ndarray]
"""The array of this name; of a type that numpy does not know, as bfloat16, maybe its bytes."""


def found(folder: epath.Path) -> dict[int, epath.Path]:
    """The checkpoints of a folder by their rounds.

    What a kill left half written is removed; what is no checkpoint's is left alone.
    """
    paths = {}
    for entry in storage.entries(folder):
        if entry.name.endswith(f"{_CHANGES}{storage.PART}"):
            entry.unlink()
        elif _UNFINISHED in entry.name:
            entry.rmtree()
        rounds = entry.name.removesuffix(_CHANGES)
        if not rounds.isdecimal():
            continue
        if entry.name == rounds and not _is_finished(entry):
            entry.rmtree()
            continue
        paths[int(rounds)] = entry
    return paths


def _is_finished(path: epath.Path) -> bool:
    # In a bucket, which cannot rename a folder, orbax marks what is whole by a file.
    import orbax.checkpoint as ocp

    return ocp.utils.is_checkpoint_finalized(path)


def write_whole(folder: epath.Path, rounds: int, arrays: Mapping[str, np.ndarray]) -> epath.Path:
    """Writes all arrays of a run; where."""
    path = folder / str(rounds)
    with _orbax() as checkpointer:
        checkpointer.save(path, dict(arrays))
    return path


def write_changes(folder: epath.Path, rounds: int, arrays: Mapping[str, np.ndarray]) -> epath.Path:
    """Writes the arrays that are new; where."""
    path = folder / f"{rounds}{_CHANGES}"
    with storage.whole(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return path


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[Read]:
    """Gives what reads a checkpoint's arrays, each when it is asked for."""
    if path.name.endswith(_CHANGES):
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            yield archive.__getitem__
        return
    with _orbax() as checkpointer:

        def read(name: str) -> np.ndarray:
            # One at a time: where one of several fails, orbax's threads complain about the others
            # on stderr later.
            import orbax.checkpoint as ocp

            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
            wanted = ocp.args.PyTreeRestore({name: 0}, as_numpy, partial_restore=True)
            return checkpointer.restore(path, args=wanted)[name]

        yield read


def delete(path: epath.Path) -> None:
    """Removes a checkpoint."""
    if path.name.endswith(_CHANGES):
        path.unlink()
    else:
        path.rmtree()


@contextlib.contextmanager
def _orbax() -> Iterator["ocp.Checkpointer"]:
    """What writes and reads whole checkpoints, of this process alone: others never come here."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_not_from_orbax)
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        yield checkpointer


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs every file operation, and damage that `restore` reports."""
    return "orbax" not in Path(record.pathname).parts
