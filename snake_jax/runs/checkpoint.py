"""Checkpoints of a run, one after every round: all that is needed to go on.

A visit changes a few layers, so a checkpoint writes the arrays that are new and says in which
earlier one the others lie. After `_GENERATION` of them one is written whole again: a *generation*
begins, which reads nothing of the one before. Each carries a checksum of every array, so that a
damaged one is recognised and the one before it used.

A checkpoint has the arrays by their place in the tree, and `meta`, a JSON object as bytes; how it
lies in the folder says `archives`.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from snake_jax.errors import UserError
from snake_jax.params import PyTree
from snake_jax.runs import archives, storage
from snake_jax.runs.archives import Read

_GENERATION = 16
_META = "meta"


class Stored(NamedTuple):
    """Where an array of a checkpoint lies.

    Attributes:
      step: the checkpoint that it was written with.
      name: in that one.
      checksum: of its bytes.
      dtype: of its numbers; numpy's archives know none but its own.
    """

    step: int
    name: str
    checksum: int
    dtype: str


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
        self._folder = epath.Path(path)
        with self._usable():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder = storage.absolute(self._folder)
            self._paths = archives.found(self._folder)
        # What arrays lie on disk, by identity: jax's never change. Holding them keeps their ids.
        self._written: dict[int, tuple[jax.Array, Stored]] = {}
        # Which checkpoints those that this process knows read, and where generations end.
        self._reads: dict[int, frozenset[int]] = {}
        self._in_generation = 0
        self._ended: int | None = None

    @contextlib.contextmanager
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
        if saved.rounds in self._paths:
            return
        if self._in_generation == _GENERATION:
            self._begin_generation(max(self._paths, default=None))

        # Arrays of jax that are written already are left out.
        leaves = _flatten(saved.tree)
        new = {}
        for name, leaf in leaves.items():
            if id(leaf) not in self._written:
                new[name] = np.asarray(jax.device_get(leaf))
        stored = self._stored(saved.rounds, leaves, new)
        meta = json.dumps({**saved.meta, "arrays": stored}).encode()
        arrays = {**new, _META: np.frombuffer(meta, np.uint8)}
        write = archives.write_changes if self._in_generation else archives.write_whole
        path = write(self._folder, saved.rounds, arrays)

        # It is whole: from now on others may read of it, and what nobody reads can go.
        self._written = {}
        for name, leaf in leaves.items():
            if isinstance(leaf, jax.Array):
                self._written[id(leaf)] = (leaf, stored[name])
        self._paths[saved.rounds] = path
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
                array = new[name]
                stored[name] = Stored(step, name, _checksum(array), array.dtype.name)
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
        steps = sorted(self._paths)
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
                self._delete(step)

    def _delete(self, step: int) -> None:
        archives.delete(self._paths.pop(step))

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
        steps = sorted(self._paths, reverse=True)
        for age, step in enumerate(steps):
            try:
                saved = self._restore(step, tree_for)
            # Whatever orbax, numpy and the storage library make of damage.
            except Exception as error:
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                warn(f"checkpoint {self._paths[step]} is damaged and left out ({reason})")
                continue
            for damaged in steps[:age]:
                self._delete(damaged)
            self._begin_generation(step)
            return saved
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read; give another --workdir to start anew"
            )
        return None

    def _restore(self, step: int, tree_for: Callable[[dict[str, Any]], PyTree]) -> Saved:
        with contextlib.ExitStack() as stack:
            readers: dict[int, Read] = {}

            def read(step: int, name: str) -> np.ndarray:
                if step not in readers:
                    opened = archives.opened(self._paths[step])
                    readers[step] = stack.enter_context(opened)
                return readers[step](name)

            meta = json.loads(read(step, _META).tobytes())
            stored = {name: Stored(*where) for name, where in meta.pop("arrays").items()}
            # What other shapes mean is another model: as unusable as damage, so treated alike.
            target = tree_for(meta)
            arrays = {}
            for name, expected in _flatten(target).items():
                where = stored[name]
                arrays[name] = _sound(name, read(where.step, where.name), where, expected)
        self._reads[step] = frozenset(where.step for where in stored.values())
        tree = jax.tree.unflatten(jax.tree.structure(target), arrays.values())
        return Saved(step, tree, meta)


def _sound(name: str, array: np.ndarray, where: Stored, expected: Any) -> np.ndarray:
    """An array as it was saved.

    Raises:
      ValueError: it is not what was saved, or not what is expected.
    """
    if array.shape != expected.shape or where.dtype != expected.dtype.name:
        raise ValueError(f"array {name} is {where.dtype} {array.shape}")
    if _checksum(array) != where.checksum:
        raise ValueError(f"checksum of array {name} differs")
    return array.view(expected.dtype)


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by position: plain names, whatever containers the tree is made of."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _checksum(array: np.ndarray) -> int:
    # Bytes have no shape: an array without axes cannot be seen as bytes.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
