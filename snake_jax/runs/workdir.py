"""The folder of a run: config.json, metrics.jsonl, ledger.jsonl, checkpoints/, summary.json, and
how it goes on.

A round is finished once its checkpoint is written. Its lines are written before, so on resume lines
past the checkpoint are cut off and their rounds done again, with the same result. Whole files are
replaced in one step, so a kill leaves the old or the new. A lock on the folder, which ends with the
process, keeps a second one out.

In a bucket (`storage`) there are no locks: the process that opened the folder last owns it, as
owner.json says, and one that finds itself replaced ends before it writes more. Should both write in
one moment, they write the same results: a folder takes one configuration. Of a run of several
processes the first alone has the folder, and tells the others what it held.
"""

import contextlib
import dataclasses
import json
import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from snake_jax import processes
from snake_jax.config import RunConfig, differences
from snake_jax.engines.contract import Compilations
from snake_jax.errors import UserError
from snake_jax.nodes import ledger
from snake_jax.runs import storage
from snake_jax.runs.checkpoint import Checkpoints, Saved
from snake_jax.runs.job import state_like
from snake_jax.runs.loop import Report, Setup, State, initial_state

if sys.platform != "win32":
    import fcntl

Record = dict[str, Any]

_OWNER = "owner.json"


class Workdir:
    """An open run folder; in all processes but the first a stand-in that reads and writes
    nothing.
    """

    def __init__(self, path: str | os.PathLike, config: RunConfig) -> None:
        """Makes the folder or checks that it holds a run of this configuration.

        Raises:
          UserError: it holds a run with other flags, is in use, or is no usable folder.
        """
        self.path = storage.place(path, "workdir")
        self.records: list[Record] = []
        self.earlier = Compilations(0, 0.0, None)
        self._ledger_lines = 0
        self._checkpoints: Checkpoints | None = None
        self._open = contextlib.ExitStack()
        if processes.is_first():
            with contextlib.ExitStack() as stack:
                self._checkpoints = self._enter(config, stack)
                self._open = stack.pop_all()

    def _enter(self, config: RunConfig, stack: contextlib.ExitStack) -> Checkpoints:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not storage.is_bucket(self.path):
                stack.enter_context(_lock(self.path))
            self._claim(config)
            self._own = _become_owner(self.path) if storage.is_bucket(self.path) else None
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"--workdir={self.path}: {reason}; give a folder that can be written"
            ) from error
        checkpoints = Checkpoints(self.path / "checkpoints")
        stack.callback(checkpoints.close)
        return checkpoints

    def _claim(self, config: RunConfig) -> None:
        file = self.path / "config.json"
        stored = _read_object(file)
        if stored is None:
            if {entry.name for entry in storage.entries(self.path)} - {storage.part_of(file).name}:
                raise UserError(
                    f"--workdir={self.path} holds files but no run (no config.json); give a new "
                    f"folder"
                )
        elif missing := [name for name in dataclasses.asdict(config) if name not in stored]:
            raise UserError(
                f"--workdir={self.path} holds a run begun with another version of snake_jax, which "
                f"had no --{missing[0]}; give another --workdir"
            )
        elif other := differences(config, stored):
            raise UserError(
                f"--workdir={self.path} holds a run with other flags: {', '.join(other)}; "
                "use those, or another --workdir"
            )
        if stored != dataclasses.asdict(config):
            _write_json(file, dataclasses.asdict(config))

    def resume(self, setup: Setup, warn: Callable[[str], None]) -> State:
        """The state to go on from: that of the newest sound checkpoint, or a fresh one; the same in
        all processes.

        Args:
          setup: of this configuration.
          warn: is told of damaged checkpoints.
        """
        saved = self._restore(setup, warn) if self._checkpoints else None
        rounds = int(processes.from_first(np.int32(saved.rounds if saved else -1)))
        if rounds < 0:
            return initial_state(setup)
        meta, self.records = json.loads(
            processes.text_from_first(json.dumps([saved.meta, self.records] if saved else ""))
        )
        tree = processes.from_first(
            saved.tree if saved else _zeros(state_like(setup.job, meta["states"], meta["nodes"]))
        )
        self.earlier = Compilations(meta["num_compilations"], meta["compile_s"], meta["peak_bytes"])
        params, states, memory, nodes = jax.device_put(tree)
        failures = {int(number): tuple(events) for number, events in meta["failures"].items()}
        network = ledger.from_json(meta["network"])
        return State(params, states, memory, nodes, network, failures, rounds, meta["clock_s"])

    def _restore(self, setup: Setup, warn: Callable[[str], None]) -> Saved | None:
        assert self._checkpoints is not None
        saved = self._checkpoints.restore(
            lambda meta: state_like(setup.job, meta["states"], meta["nodes"]), warn
        )
        if saved is None:
            self._start_anew()
        else:
            self._cut(saved.meta["records"], saved.meta["ledger_lines"])
        return saved

    def add(self, report: Report, compiled: Compilations) -> None:
        """Appends a round's lines and writes its checkpoint.

        Args:
          report: of the round.
          compiled: so far, in all processes of the run.

        Raises:
          UserError: the folder, in a bucket, is another process's by now.
        """
        self.records.append(report.record)
        self._ledger_lines += len(report.transfers)
        if self._checkpoints:
            self._check_owner()
            storage.append(self.path / "metrics.jsonl", [report.record])
            storage.append(self.path / "ledger.jsonl", [*map(ledger.to_row, report.transfers)])
        self.keep(report.state, compiled)

    def keep(self, state: State, compiled: Compilations) -> None:
        """Writes a checkpoint of a state, unless it is there."""
        if not self._checkpoints:
            return
        meta = {
            "states": list(state.states),
            "nodes": list(state.nodes),
            "failures": {str(number): events for number, events in state.failures.items()},
            "clock_s": state.clock_s,
            "network": ledger.to_json(state.network),
            "records": len(self.records),
            "ledger_lines": self._ledger_lines,
            "num_compilations": compiled.programs,
            "compile_s": compiled.seconds,
            "peak_bytes": compiled.peak_bytes,
        }
        tree = (state.params, state.states, state.memory, dict(state.nodes))
        self._checkpoints.save(Saved(state.rounds, tree, meta))

    def finish(self, summary: Record) -> None:
        """Writes summary.json."""
        if self._checkpoints:
            self._check_owner()
            _write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Lets go of the folder."""
        self._open.close()

    def _check_owner(self) -> None:
        if self._own and _read_object(self.path / _OWNER) != self._own:
            raise UserError(
                f"--workdir={self.path} was taken over by another process, which goes on with the "
                f"run"
            )

    def _start_anew(self) -> None:
        """No checkpoint yet: at most the first round's line was written. More lines are results to
        be kept.
        """
        file = self.path / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") > 1:
            raise UserError(
                f"{file} has results, but {self.path / 'checkpoints'} has no checkpoint to go on "
                f"from; "
                "give another --workdir to start anew"
            )
        self._cut(0, 0)

    def _cut(self, records: int, ledger_lines: int) -> None:
        self.records = _keep_lines(self.path / "metrics.jsonl", records)
        _keep_lines(self.path / "ledger.jsonl", ledger_lines)
        self._ledger_lines = ledger_lines


def _become_owner(folder: epath.Path) -> Record:
    own = {"host": platform.node(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    _write_json(folder / _OWNER, own)
    return own


@contextlib.contextmanager
def _lock(folder: epath.Path) -> Iterator[None]:
    """Keeps other processes out of the folder."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"--workdir={folder} is in use by another process; wait for it to end"
                ) from error
        yield
    finally:
        os.close(descriptor)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)


def _keep_lines(file: epath.Path, count: int) -> list[Record]:
    """Cuts a file of JSON lines to its first `count` and returns them."""
    try:
        lines = file.read_text().splitlines()[:count] if file.exists() else []
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); give another --workdir") from error
    if len(lines) < count:
        raise UserError(
            f"{file} has {len(lines)} lines, its checkpoint knows {count}; give another --workdir"
        )
    storage.replace(file, "".join(line + "\n" for line in lines))
    return records


def _write_json(file: epath.Path, content: Record) -> None:
    storage.replace(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _read_object(file: epath.Path) -> Record | None:
    """The JSON object in the file, None where there is no file."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); give another --workdir") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged (a JSON object was expected); give another --workdir")
    return content
