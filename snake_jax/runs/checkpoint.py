"""Checkpoints of a run, written by orbax after every round: all that is needed to go on.

Each carries a checksum of every array, so that a damaged one is recognised and the one before it
used.
"""

import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from snake_jax.errors import UserError
from snake_jax.params import PyTree
from snake_jax.runs import storage


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      rounds: how many rounds of the run were finished.
      tree: of arrays.
      meta: a JSON object with all else.
    """

    rounds: int
    tree: PyTree
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder; the last two are kept.

    Of a run of several processes the first alone opens them (`snake_jax.processes`).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens the folder, here or in a bucket, and makes it where it is not there.

        Raises:
          UserError: it cannot be made, or is no folder.
        """
        logging.getLogger("absl").addFilter(_not_from_orbax)
        here = jax.process_index()
        folder = epath.Path(path)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
            # Otherwise it would wait for the other processes, which never come here.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=here, active_processes={here}
            ),
            create=False,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(storage.absolute(folder), options=options)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be used for checkpoints: {error.strerror or error}"
            ) from error
        self._folder = folder

    def save(self, saved: Saved) -> None:
        """Writes a checkpoint, unless there is one of as many rounds.

        When this returns, a kill at any moment loses nothing of it.
        """
        if saved.rounds in self._manager.all_steps():
            return
        # On the host: orbax writes down where arrays lie, and the next process may have other
        # devices.
        on_host = jax.device_get(saved.tree)
        arrays = _flatten(on_host)
        checksums = {name: _checksum(array) for name, array in arrays.items()}
        meta = {**saved.meta, "checksums": checksums}
        items = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta))
        self._manager.save(saved.rounds, args=items)

    def restore(
        self, tree_for: Callable[[dict[str, Any]], PyTree], warn: Callable[[str], None]
    ) -> Saved | None:
        """The newest sound checkpoint; None where there is none yet.

        Damaged ones that are newer are deleted then, so that they are out of the way of the rounds
        that are done again.

        Args:
          tree_for: the expected tree (shapes suffice), given the checkpoint's meta dict.
          warn: is told of every damaged checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read; they are left as they are.
        """
        # From the newest on, until one can be read whole.
        steps = sorted(self._manager.all_steps(), reverse=True)
        for age, step in enumerate(steps):
            try:
                saved = self._restore(step, tree_for)
            # Whatever the storage library makes of damage.
            except Exception as error:
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                warn(f"checkpoint {self._folder / str(step)} is damaged and left out ({reason})")
                continue
            for damaged in steps[:age]:
                self._manager.delete(damaged)
            return saved
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read; give another --workdir to start anew"
            )
        return None

    def _restore(self, step: int, tree_for: Callable[[dict[str, Any]], PyTree]) -> Saved:
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=items)["meta"]
        checksums = meta.pop("checksums")
        # What other shapes mean is another model: as unusable as damage, so treated alike.
        target = tree_for(meta)
        arrays = {}
        for name, expected in _flatten(target).items():
            array = self._read(step, name)
            if array.shape != expected.shape or array.dtype != expected.dtype:
                raise ValueError(f"array {name} is {array.dtype} {array.shape}")
            if _checksum(array) != checksums[name]:
                raise ValueError(f"checksum of array {name} differs")
            arrays[name] = array
        tree = jax.tree.unflatten(jax.tree.structure(target), arrays.values())
        return Saved(step, tree, meta)

    def _read(self, step: int, name: str) -> np.ndarray:
        """One array of a checkpoint.

        They are read one at a time: where one of several fails, orbax's threads complain about the
        others on stderr later.
        """
        args = ocp.args.PyTreeRestore(
            {name: 0},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(arrays=args))
        return restored["arrays"][name]

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs every file operation, and damage that `restore` reports."""
    return "orbax" not in Path(record.pathname).parts


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by position: plain names, whatever containers the tree is made of."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _checksum(array: Any) -> int:
    on_host = np.ascontiguousarray(jax.device_get(array))
    return zlib.crc32(on_host.view(np.uint8).data)
