"""Checkpoints of a run, written by orbax after every round: arrays, and what else is needed to go on.

Each carries a checksum of every array, so that a damaged one is recognised and the one before it used.
"""

import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from snake_jax.errors import UserError
from snake_jax.layers import PyTree


class Saved(NamedTuple):
    """A checkpoint: rounds finished, a tree of arrays, and a JSON-able dict."""

    rounds: int
    tree: PyTree
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, making it where needed."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every file operation otherwise
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, create=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder

    def save(self, saved: Saved) -> None:
        """Writes a checkpoint unless there is one of so many rounds; when it returns, a kill loses nothing of it."""
        if saved.rounds in self._manager.all_steps():
            return
        arrays = _flatten(saved.tree)
        meta = {**saved.meta, "checksums": {name: _checksum(value) for name, value in arrays.items()}}
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        self._manager.save(saved.rounds, args=items)

    def restore(self, tree_for: Callable[[dict[str, Any]], PyTree], warn: Callable[[str], None]) -> Saved | None:
        """The newest sound checkpoint, None where there is none yet.

        Args:
          tree_for: the expected tree (shapes suffice), given the checkpoint's meta dict.
          warn: is told of every damaged checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, tree_for)
            except Exception as error:  # damage shows as whatever the storage library makes of it
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                warn(f"checkpoint {self._folder / str(step)} is corrupt ({reason}); trying the one before")
                self._manager.delete(step)
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read; give another --workdir to start anew")
        return None

    def _restore(self, step: int, tree_for: Callable[[dict[str, Any]], PyTree]) -> Saved:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        target = tree_for(meta)
        expected = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in _flatten(target).items()}
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(_on_host(expected)))
        )["arrays"]
        for name, checksum in meta.pop("checksums").items():
            if _checksum(arrays[name]) != checksum:
                raise ValueError(f"checksum of {name} differs")
        leaves = [arrays[name] for name in expected]
        return Saved(step, jax.tree.unflatten(jax.tree.structure(target), leaves), meta)

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by position: plain names, whatever containers the tree is made of."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _on_host(expected: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    return {name: np.zeros(x.shape, x.dtype) for name, x in expected.items()}


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(jax.device_get(array)).view(np.uint8).data)
