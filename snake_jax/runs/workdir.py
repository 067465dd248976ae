"""The folder of a run: what it keeps, and how a run goes on from it.

It holds config.json, metrics.jsonl, ledger.jsonl, events.jsonl, checkpoints/ and summary.json;
who asks for nodes to leave or join adds requests.jsonl (`membership`).

A round is finished once its checkpoint is written. Its lines are written before, so on resume lines
past the checkpoint are cut off and their rounds done again, with the same result. Whole files are
replaced in one step, so a kill leaves the old or the new. A lock on the folder, which ends with the
process, keeps a second one out. A run that has ended goes on where it is given more cycles
(`is_longer`).

In a bucket (`storage`) there are no locks: the process that opened the folder last owns it, as
owner.json says, and one that finds itself replaced ends before it writes more. Should both write in
one moment, they write the same results: a folder takes one configuration. Of a run of several
processes the first alone has the folder, and tells the others what it held.
"""

import contextlib
import dataclasses
import functools
import json
import os
import platform
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from snake_jax import processes
from snake_jax.algorithms import schedule
from snake_jax.config import RunConfig
from snake_jax.engines.contract import Compilations
from snake_jax.errors import UserError
from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Transfer
from snake_jax.params import PyTree
from snake_jax.runs import events, json_files, membership, storage
from snake_jax.runs.behind import Behind
from snake_jax.runs.checkpoint import Checkpoints, Saved
from snake_jax.runs.events import Event
from snake_jax.runs.job import state_like
from snake_jax.runs.loop import Report, Setup, State, initial_state
from snake_jax.runs.membership import Request

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = dict[str, Any]

_OWNER = "owner.json"
_SUMMARY = "summary.json"


class Workdir:
    """An open run folder; a stand-in that reads and writes nothing in all processes but the first.

    Attributes:
      path: of the folder.
      records: the lines of metrics.jsonl so far.
      earlier: what was compiled before this process went on with the run.
    """

    def __init__(self, path: str | os.PathLike, config: "DataclassInstance") -> None:
        """Makes the folder or checks that it holds a run of this configuration.

        Raises:
          UserError: it holds a run with other flags, is in use, or is no usable folder.
        """
        self.path = storage.path_of(path, "workdir")
        self.records: list[Record] = []
        self.earlier = Compilations(0, 0.0, None)
        self._ledger_lines, self._event_lines = 0, 0
        self._checkpoints: Checkpoints | None = None
        self._behind = Behind()
        self._open = contextlib.ExitStack()
        if processes.is_first():
            with contextlib.ExitStack() as stack:
                self._checkpoints = self._enter(config, stack)
                self._open = stack.pop_all()

    def _enter(self, config: "DataclassInstance", stack: contextlib.ExitStack) -> Checkpoints:
        # What the stack closes again where a later step fails.
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            in_bucket = storage.is_bucket(self.path)
            if not in_bucket:
                stack.enter_context(storage.locked(self.path))
            self._claim(config)
            self._own = _become_owner(self.path) if in_bucket else None
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"--workdir={self.path}: {reason}; give a folder that can be written"
            ) from error
        checkpoints = Checkpoints(self.path / "checkpoints")
        stack.callback(self._behind.close)
        return checkpoints

    def _claim(self, config: "DataclassInstance") -> None:
        """Writes config.json, unless what is there is another run's or no run's."""
        file = self.path / "config.json"
        ours = dataclasses.asdict(config)
        stored = json_files.read_object(file)
        if stored is None:
            # A kill may have left the part that config.json was being written to.
            names = {entry.name for entry in storage.entries(self.path)}
            if names - {storage.part_of(file).name}:
                raise UserError(
                    f"--workdir={self.path} holds files but no run (no config.json); give a new "
                    f"folder"
                )
        else:
            self._check_same(config, stored)
            if is_longer(config, stored):
                # What ended is to go on: a kill from here on leaves a run that has not ended.
                (self.path / _SUMMARY).unlink(missing_ok=True)
        # They may differ in what a run may change on its way.
        if stored != ours:
            json_files.write_json(file, ours)

    def _check_same(self, config: "DataclassInstance", stored: Record) -> None:
        missing = [name for name in dataclasses.asdict(config) if name not in stored]
        if missing:
            raise UserError(
                f"--workdir={self.path} holds a run begun with another version of snake_jax, which "
                f"had no --{missing[0]}; give another --workdir"
            )
        other = differences(config, stored)
        if other and not is_longer(config, stored):
            why = ""
            if isinstance(config, RunConfig) and stored["cycles"] < config.cycles:
                follows = schedule.rates_follow_length(config)
                why = ", and its learning rates follow its cycles" if follows else ""
            raise UserError(
                f"--workdir={self.path} holds a run with other flags: {', '.join(other)}{why}; "
                "use those, or another --workdir"
            )

    def resume(self, setup: Setup, warn: Callable[[str], None]) -> State:
        """The state to go on from, the same in all processes.

        That of the newest sound checkpoint, or a fresh one.

        Args:
          setup: of this configuration.
          warn: is told of damaged checkpoints.

        Raises:
          UserError: no checkpoint can be read, or the lines do not go with it.
        """
        saved = self.restore(functools.partial(_expected, setup), warn)
        own_rounds = saved.rounds if saved else -1
        rounds = int(processes.from_first(np.int32(own_rounds)))
        if rounds < 0:
            return initial_state(setup)

        # Only the first process has read the checkpoint: it sends the others text, then arrays,
        # whose shapes they must know before.
        own_text = json.dumps([saved.meta, self.records]) if saved else ""
        meta, self.records = json.loads(processes.text_from_first(own_text))
        tree = saved.tree if saved else _zeros(_expected(setup, meta))
        tree = processes.from_first(tree)

        self.earlier = Compilations(meta["num_compilations"], meta["compile_s"], meta["peak_bytes"])
        params, states, memory, nodes = jax.device_put(tree)
        failures = {int(number): tuple(events) for number, events in meta["failures"].items()}
        network = ledger.from_json(meta["network"])
        state = State(params, states, memory, nodes, network, failures, rounds, meta["clock_s"])
        return membership.restored(state, meta["membership"])

    def restore(
        self, expected: Callable[[Record], PyTree], warn: Callable[[str], None]
    ) -> Saved | None:
        """The newest sound checkpoint, lines past it cut off; None where there is none.

        Args:
          expected: the shapes of a checkpoint's arrays, from its description.
          warn: is told of damaged checkpoints.

        Raises:
          UserError: no checkpoint can be read, or the lines do not go with it.
        """
        if not self._checkpoints:
            return None
        saved = self._checkpoints.restore(expected, warn)
        if saved is None:
            self._start_anew()
        else:
            meta = saved.meta
            self._cut(meta["records"], meta["ledger_lines"], meta["event_lines"])
            self._note([events.gone_on(saved.rounds)])
        return saved

    def add(self, report: Report, compiled: Compilations) -> None:
        """Has a round's lines appended and its checkpoint written while the next round runs.

        They are on disk when the next round is added, or after `settle`. A kill before that loses
        the round: it counts when its checkpoint is whole, and lines past that are cut off.

        Args:
          report: of the round.
          compiled: so far, in all processes of the run.

        Raises:
          UserError: of the round before: the folder, in a bucket, is another process's by now, or
            the disk is full.
        """
        if not self._checkpoints:
            self.records.append(report.record)
            return

        def write() -> None:
            with storage.room(self.path):
                self._append(report.record, report.transfers)
                self._note(report.events)
                self._save(report.state, compiled, records)

        # Only the round before is ever being written: the files' lines follow their checkpoints.
        self.settle()
        self.records.append(report.record)
        records = len(self.records)
        self._behind.do(write)

    def settle(self) -> None:
        """Waits until all rounds are on disk.

        Raises:
          UserError: one cannot be written, see `add`.
        """
        self._behind.settle()

    def add_lines(self, record: Record, transfers: Sequence[Transfer]) -> None:
        """Appends a round's line of metrics and its rows of the ledger; `store` comes after.

        Raises:
          UserError: the folder, in a bucket, is another process's by now.
        """
        self.records.append(record)
        if self._checkpoints:
            self._append(record, transfers)

    def _append(self, record: Record, transfers: Sequence[Transfer]) -> None:
        self._check_owner()
        sent = [ledger.to_row(transfer) for transfer in transfers]
        storage.append(self.path / "metrics.jsonl", [record])
        storage.append(self.path / "ledger.jsonl", sent)
        self._ledger_lines += len(transfers)

    def keep(self, state: State, compiled: Compilations) -> None:
        """Writes a checkpoint of a state, unless it is there."""
        self.settle()
        if self._checkpoints:
            self._save(state, compiled, len(self.records))

    def _save(self, state: State, compiled: Compilations, records: int) -> None:
        # Names of what has arrays, so that their shapes are known before they are read.
        meta = {
            "states": list(state.states),
            "nodes": list(state.nodes),
            "failures": {str(number): events for number, events in state.failures.items()},
            "clock_s": state.clock_s,
            "network": ledger.to_json(state.network),
            "membership": membership.to_json(state),
            "num_compilations": compiled.programs,
            "compile_s": compiled.seconds,
            "peak_bytes": compiled.peak_bytes,
        }
        tree = (state.params, state.states, state.memory, dict(state.nodes))
        self._store(Saved(state.rounds, tree, meta), records)

    def store(self, rounds: int, tree: PyTree, meta: Record) -> None:
        """Writes a checkpoint, unless there is one of as many rounds.

        Args:
          rounds: finished so far.
          tree: of arrays.
          meta: all else, as JSON has it.
        """
        if self._checkpoints:
            self._store(Saved(rounds, tree, meta), len(self.records))

    def _store(self, saved: Saved, records: int) -> None:
        # How many lines belong to this round, so that later ones are cut off.
        lines = {
            "records": records,
            "ledger_lines": self._ledger_lines,
            "event_lines": self._event_lines,
        }
        assert self._checkpoints, "only the first process writes"
        self._checkpoints.save(saved._replace(meta={**saved.meta, **lines}))

    def finish(self, summary: Record) -> None:
        """Writes summary.json."""
        self.settle()
        if self._checkpoints:
            self._check_owner()
            json_files.write_json(self.path / _SUMMARY, summary)

    def close(self) -> None:
        """Lets go of the folder, once all rounds are on disk.

        Raises:
          UserError: one cannot be written, see `add`.
        """
        try:
            self.settle()
        finally:
            self._open.close()

    def _check_owner(self) -> None:
        if self._own and json_files.read_object(self.path / _OWNER) != self._own:
            raise UserError(
                f"--workdir={self.path} was taken over by another process, which goes on with the "
                f"run"
            )

    def _start_anew(self) -> None:
        """Without a checkpoint at most the first round's line was written; more are results."""
        file = self.path / "metrics.jsonl"
        lines = file.read_bytes().count(b"\n") if file.exists() else 0
        if lines > 1:
            raise UserError(
                f"{file} has results, but {self.path / 'checkpoints'} has no checkpoint to go on "
                f"from; "
                "give another --workdir to start anew"
            )
        self._cut(0, 0, 0)

    def _note(self, happened: Sequence[Event]) -> None:
        """Appends lines to events.jsonl."""
        if happened:
            rows = [events.to_row(event) for event in happened]
            storage.append(self.path / "events.jsonl", rows)
            self._event_lines += len(rows)

    def requests(self) -> list[Request]:
        """All that was asked of this run's nodes so far; the same in all processes.

        Raises:
          UserError: a line of requests.jsonl is no request.
        """
        text = ""
        if self._checkpoints:
            file = self.path / membership.REQUESTS
            text = file.read_text() if file.exists() else ""
        return membership.read_requests(processes.text_from_first(text))

    def _cut(self, records: int, ledger_lines: int, event_lines: int) -> None:
        self.records = json_files.keep_lines(self.path / "metrics.jsonl", records)
        json_files.keep_lines(self.path / "ledger.jsonl", ledger_lines)
        json_files.keep_lines(self.path / "events.jsonl", event_lines)
        self._ledger_lines, self._event_lines = ledger_lines, event_lines


def _expected(setup: Setup, meta: Record) -> tuple[PyTree, ...]:
    """The shapes of the arrays that a checkpoint with this description holds."""
    return state_like(setup.job, meta["states"], meta["nodes"])


def _become_owner(folder: epath.Path) -> Record:
    own = {"host": platform.node(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    json_files.write_json(folder / _OWNER, own)
    return own


def _zeros(shapes: PyTree) -> PyTree:
    """Arrays of these shapes on the host, to receive others into."""

    def zeros(like: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.zeros(like.shape, like.dtype)

    return jax.tree.map(zeros, shapes)


def differences(here: "DataclassInstance", there: dict[str, Any]) -> list[str]:
    """The flags in which a stored config differs from this one, as `--flag=theirs (here OURS)`.

    What `may_change` does not count.
    """
    ours = dataclasses.asdict(here)
    free = {field.name for field in dataclasses.fields(here) if "may_change" in field.metadata}
    found = []
    for name in ours | there:
        mine = ours.get(name)
        theirs = there.get(name)
        if mine != theirs and name not in free:
            found.append(f"--{name}={theirs} (here {mine})")
    return found


def is_longer(here: "DataclassInstance", there: Record) -> bool:
    """Whether a stored config is this one but for fewer cycles, and its run can go on to these.

    It then ends with the bits of a run that had them from the start: what comes next depends on
    what was, and not on how much is to come. Its old last round has been evaluated besides, and was
    not asked whether it is good enough to end the run (`stops`). Where learning rates follow the
    run's length all that is otherwise, and such a run cannot go on.
    """
    if not isinstance(here, RunConfig) or schedule.rates_follow_length(here):
        return False
    before = there.get("cycles")
    if not isinstance(before, int) or not 0 < before < here.cycles:
        return False
    shorter = dataclasses.replace(here, cycles=before)
    return not differences(shorter, there)
