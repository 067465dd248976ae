"""Checkpoints of a run, written by orbax after every round: all that is needed to go on.

A visit changes a few layers, so a checkpoint writes the arrays that are new and says in which
earlier one the others lie. After `_GENERATION` of them one is written whole again: a *generation*
begins, which reads nothing of the one before. Each carries a checksum of every array, so that a
damaged one is recognised and the one before it used.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from etils import epath

from snake_jax.errors import UserError
from snake_jax.params import PyTree
from snake_jax.runs import storage

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_GENERATION = 16


class Stored(NamedTuple):
    """Where an array of a checkpoint lies.

    Attributes:
      step: the checkpoint that it was written with.
      name: in that one.
      checksum: of its bytes.
    """

    step: int
    name: str
    checksum: int


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
    """The checkpoints in a folder.

    The last two are kept, the last of the generation before, and all that these read. Of a run of
    several processes the first alone opens them (`snake_jax.processes`).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens the folder, here or in a bucket, and makes it where it is not there.

        Raises:
          UserError: it cannot be made, or is no folder.
        """
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._folder = epath.Path(path)
        self._opened: ocp.CheckpointManager | None = None
        with self._usable():
            self._folder.mkdir(parents=True, exist_ok=True)
            is_new = not storage.entries(self._folder)
        # orbax takes most of a second to import: where there is nothing to read yet, that is left
        # to the first checkpoint, which is written while the next round runs.
        if not is_new:
            _ = self._manager
        # What arrays lie on disk, by identity: jax's never change. Holding them keeps their ids.
        self._written: dict[int, tuple[jax.Array, Stored]] = {}
        # Which checkpoints those that this process knows read, and where generations end.
        self._reads: dict[int, frozenset[int]] = {}
        self._in_generation = 0
        self._ended: int | None = None

    @property
    def _manager(self) -> "ocp.CheckpointManager":
        """orbax's, opened on first use."""
        import orbax.checkpoint as ocp

        if self._opened is None:
            here = jax.process_index()
            options = ocp.CheckpointManagerOptions(
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                # Otherwise it would wait for the other processes, which never come here.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=here, active_processes={here}
                ),
                create=False,
            )
            with self._usable():
                folder = storage.absolute(self._folder)
                self._opened = ocp.CheckpointManager(folder, options=options)
        return self._opened

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Says what is wrong with the folder."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be used for checkpoints: {error.strerror or error}"
            ) from error

    def save(self, saved: Saved) -> None:
        """Writes a checkpoint, unless there is one of as many rounds.

        When this returns, a kill at any moment loses nothing of it.
        """
        import orbax.checkpoint as ocp

        steps = self._manager.all_steps()
        if saved.rounds in steps:
            return
        if self._in_generation == _GENERATION:
            self._begin_generation(max(steps, default=None))

        # On the host: orbax writes down where arrays lie, and the next process may have other
        # devices.
        leaves = _flatten(saved.tree)
        new = {}
        for name, leaf in leaves.items():
            if id(leaf) not in self._written:
                new[name] = np.asarray(jax.device_get(leaf))
        stored = self._stored(saved.rounds, leaves, new)
        meta = {**saved.meta, "arrays": stored}
        items = {"meta": ocp.args.JsonSave(meta)}
        if new:
            items["arrays"] = ocp.args.PyTreeSave(new)
        self._manager.save(saved.rounds, args=ocp.args.Composite(**items))

        # It is whole: from now on others may read of it, and what nobody reads can go.
        self._written = {}
        for name, leaf in leaves.items():
            if isinstance(leaf, jax.Array):
                self._written[id(leaf)] = (leaf, stored[name])
        self._reads[saved.rounds] = frozenset(one.step for one in stored.values())
        self._in_generation += 1
        self._forget()

    def _stored(
        self, step: int, leaves: Mapping[str, Any], new: Mapping[str, np.ndarray]
    ) -> dict[str, Stored]:
        """Where each array of a checkpoint lies, once it is written.

        Args:
          step: of the checkpoint.
          leaves: all its arrays, by name.
          new: those of them that are written with it.
        """
        stored = {}
        for name, leaf in leaves.items():
            if name in new:
                stored[name] = Stored(step, name, _checksum(new[name]))
            else:
                _, stored[name] = self._written[id(leaf)]
        return stored

    def _begin_generation(self, last: int | None) -> None:
        """The next checkpoint is written whole; `last` is the one before it."""
        self._written = {}
        self._in_generation = 0
        self._ended = last

    def _forget(self) -> None:
        """Deletes the checkpoints that nobody reads any more."""
        steps = sorted(self._manager.all_steps())
        kept = steps[-2:]
        if self._ended in steps:
            kept.append(self._ended)
        needed = set(kept)
        for step in kept:
            # Of one of another process it is not known, so it may be any before it.
            earlier = {other for other in steps if other < step}
            needed |= self._reads.get(step, earlier)
        for step in steps:
            if step not in needed:
                self._manager.delete(step)

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
        if self._opened is None:
            return None
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
            self._begin_generation(step)
            return saved
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read; give another --workdir to start anew"
            )
        return None

    def _restore(self, step: int, tree_for: Callable[[dict[str, Any]], PyTree]) -> Saved:
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=items)["meta"]
        stored = {name: Stored(*where) for name, where in meta.pop("arrays").items()}
        # What other shapes mean is another model: as unusable as damage, so treated alike.
        target = tree_for(meta)
        arrays = {}
        for name, expected in _flatten(target).items():
            where = stored[name]
            array = self._read(where.step, where.name)
            if array.shape != expected.shape or array.dtype != expected.dtype:
                raise ValueError(f"array {name} is {array.dtype} {array.shape}")
            if _checksum(array) != where.checksum:
                raise ValueError(f"checksum of array {name} differs")
            arrays[name] = array
        self._reads[step] = frozenset(where.step for where in stored.values())
        tree = jax.tree.unflatten(jax.tree.structure(target), arrays.values())
        return Saved(step, tree, meta)

    def _read(self, step: int, name: str) -> np.ndarray:
        """One array of a checkpoint.

        They are read one at a time: where one of several fails, orbax's threads complain about the
        others on stderr later.
        """
        import orbax.checkpoint as ocp

        args = ocp.args.PyTreeRestore(
            {name: 0},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(arrays=args))
        return restored["arrays"][name]

    def close(self) -> None:
        """Ends the manager's threads."""
        if self._opened is not None:
            self._opened.close()


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs every file operation, and damage that `restore` reports."""
    return "orbax" not in Path(record.pathname).parts


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by position: plain names, whatever containers the tree is made of."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _checksum(array: Any) -> int:
    on_host = np.ascontiguousarray(jax.device_get(array))
    return zlib.crc32(on_host.view(np.uint8).data)
