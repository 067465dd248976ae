"""The folder of a run: config.json, metrics.jsonl, ledger.jsonl, checkpoints/, summary.json, and how it goes on.

A round is finished once its checkpoint is written. Its lines are written before, so on resume lines past the checkpoint
are cut off and their rounds done again, with the same result. Whole files are replaced in one step, so a kill leaves
the old or the new. A lock on the folder, which ends with the process, keeps a second one out.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from snake_jax import network
from snake_jax.checkpoint import Checkpoints, Saved
from snake_jax.config import RunConfig, differences
from snake_jax.errors import UserError
from snake_jax.executor import Compilations
from snake_jax.runner import Report, Setup, State, initial_state, state_like

if sys.platform != "win32":
    import fcntl

Record = dict[str, Any]


class Workdir:
    """An open run folder."""

    def __init__(self, path: str | Path, config: RunConfig) -> None:
        """Makes the folder or checks that it holds a run of this configuration.

        Raises:
          UserError: it holds a run with other flags, is in use, or is no usable folder.
        """
        self.path = Path(path)
        self.records: list[Record] = []
        self.earlier = Compilations(0, 0.0, None)
        self._ledger_lines = 0
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(self.path))
                self._claim(config)
            except OSError as error:
                raise UserError(f"--workdir={path}: {error.strerror}; give a folder that can be written") from error
            self._checkpoints = Checkpoints(self.path / "checkpoints")
            stack.callback(self._checkpoints.close)
            self._open = stack.pop_all()

    def _claim(self, config: RunConfig) -> None:
        file = self.path / "config.json"
        stored = _read_object(file)
        if stored is None:
            if {entry.name for entry in self.path.iterdir()} - {_part(file).name}:
                raise UserError(f"--workdir={self.path} holds files but no run (no config.json); give a new folder")
        elif other := differences(config, stored):
            raise UserError(
                f"--workdir={self.path} holds a run with other flags: {', '.join(other)}; "
                "use those, or another --workdir"
            )
        if stored != dataclasses.asdict(config):
            _write_json(file, dataclasses.asdict(config))

    def resume(self, setup: Setup, warn: Callable[[str], None]) -> State:
        """The state to go on from: that of the newest sound checkpoint, or a fresh one.

        Args:
          setup: of this configuration.
          warn: is told of damaged checkpoints.
        """
        saved = self._checkpoints.restore(lambda meta: state_like(setup, meta["states"]), warn)
        if saved is None:
            self._start_anew()
            return initial_state(setup)
        meta = saved.meta
        self.earlier = Compilations(meta["num_compilations"], meta["compile_s"], meta["peak_bytes"])
        self._cut(meta["records"], meta["ledger_lines"])
        params, states, merge = jax.device_put(saved.tree)
        return State(params, states, merge, network.from_json(meta["network"]), saved.rounds, meta["clock_s"])

    def add(self, report: Report, compiled: Compilations) -> None:
        """Appends a round's lines and writes its checkpoint.

        Args:
          report: of the round.
          compiled: so far, in all processes of the run.
        """
        self.records.append(report.record)
        self._ledger_lines += len(report.transfers)
        _append(self.path / "metrics.jsonl", [report.record])
        _append(self.path / "ledger.jsonl", [t._asdict() for t in report.transfers])
        self.keep(report.state, compiled)

    def keep(self, state: State, compiled: Compilations) -> None:
        """Writes a checkpoint of a state, unless it is there."""
        meta = {
            "states": list(state.states),
            "clock_s": state.clock_s,
            "network": network.to_json(state.network),
            "records": len(self.records),
            "ledger_lines": self._ledger_lines,
            "num_compilations": compiled.programs,
            "compile_s": compiled.seconds,
            "peak_bytes": compiled.peak_bytes,
        }
        self._checkpoints.save(Saved(state.rounds, (state.params, state.states, state.merge), meta))

    def finish(self, summary: Record) -> None:
        """Writes summary.json."""
        _write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Lets go of the folder."""
        self._open.close()

    def _start_anew(self) -> None:
        """No checkpoint yet: at most the first round's line was written. More lines are results to be kept."""
        file = self.path / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") > 1:
            raise UserError(
                f"{file} has results, but {self.path / 'checkpoints'} has no checkpoint to go on from; "
                "give another --workdir to start anew"
            )
        self._cut(0, 0)

    def _cut(self, records: int, ledger_lines: int) -> None:
        self.records = _keep_lines(self.path / "metrics.jsonl", records)
        _keep_lines(self.path / "ledger.jsonl", ledger_lines)
        self._ledger_lines = ledger_lines


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
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
                raise UserError(f"--workdir={folder} is in use by another process; wait for it to end") from error
        yield
    finally:
        os.close(descriptor)


def _keep_lines(file: Path, count: int) -> list[Record]:
    """Cuts a file of JSON lines to its first `count` and returns them."""
    try:
        lines = file.read_text().splitlines()[:count] if file.exists() else []
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); give another --workdir") from error
    if len(lines) < count:
        raise UserError(f"{file} has {len(lines)} lines, its checkpoint knows {count}; give another --workdir")
    _replace(file, "".join(line + "\n" for line in lines))
    return records


def _append(file: Path, rows: Sequence[Record]) -> None:
    with file.open("a") as stream:
        stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        stream.flush()
        os.fsync(stream.fileno())


def _write_json(file: Path, content: Record) -> None:
    _replace(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _replace(file: Path, text: str) -> None:
    """Writes the whole file or, if killed meanwhile, leaves the old one."""
    with _part(file).open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    _part(file).replace(file)


def _part(file: Path) -> Path:
    return file.with_name(file.name + ".part")


def _read_object(file: Path) -> Record | None:
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
