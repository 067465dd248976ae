"""The folder of a run: config.json, metrics.jsonl, ledger.jsonl, checkpoints/, summary.json, and how it goes on.

A round is finished once its checkpoint is written. Its lines are written before, so on resume lines past the checkpoint
are cut off and their rounds done again, with the same result.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from snake_jax import network
from snake_jax.checkpoint import Checkpoints, Saved
from snake_jax.config import Config, differences
from snake_jax.errors import UserError
from snake_jax.runner import Report, Setup, State, initial_state, state_like

Record = dict[str, Any]


class Workdir:
    """An open run folder."""

    def __init__(self, path: str | Path, config: Config) -> None:
        """Makes the folder or checks that it holds a run of this configuration.

        Raises:
          UserError: it holds a run with other flags, or is no usable folder.
        """
        self.path = Path(path)
        self._claim(config)
        self._checkpoints = Checkpoints(self.path / "checkpoints")
        self.records: list[Record] = []
        self.earlier: dict[str, Any] = {}
        self._ledger_lines = 0

    def _claim(self, config: Config) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={self.path}: {error.strerror}; give a folder that can be written") from error
        stored, file = _read_json(self.path / "config.json"), self.path / "config.json"
        if stored is None:
            if any(self.path.iterdir()):
                raise UserError(f"--workdir={self.path} holds files but no run (no config.json); give a new folder")
            _write_json(file, dataclasses.asdict(config))
        elif other := differences(config, stored):
            raise UserError(
                f"--workdir={self.path} holds a run with other flags: {', '.join(other)}; "
                "use those, or another --workdir"
            )

    def resume(self, setup: Setup, warn: Callable[[str], None]) -> State:
        """The state to go on from: that of the newest sound checkpoint, or a fresh one.

        Args:
          setup: of this configuration.
          warn: is told of damaged checkpoints.
        """
        saved = self._checkpoints.restore(lambda meta: state_like(setup, meta["states"]), warn)
        if saved is None:
            self._cut(0, 0)
            return initial_state(setup)
        self.earlier = saved.meta
        self._cut(saved.meta["records"], saved.meta["ledger_lines"])
        params, states, merge = jax.device_put(saved.tree)
        return State(params, states, merge, network.from_json(saved.meta["network"]), saved.rounds)

    def add(self, report: Report, compile_s: float, num_compilations: int) -> None:
        """Appends a round's lines and writes its checkpoint.

        Args:
          report: of the round.
          compile_s: seconds of compilation so far, in all processes of the run.
          num_compilations: likewise.
        """
        self.records.append(report.record)
        self._ledger_lines += len(report.transfers)
        _append(self.path / "metrics.jsonl", [report.record])
        _append(self.path / "ledger.jsonl", [t._asdict() for t in report.transfers])
        self.keep(report.state, compile_s, num_compilations)

    def keep(self, state: State, compile_s: float, num_compilations: int) -> None:
        """Writes a checkpoint of a state, unless it is there."""
        meta = {
            "states": list(state.states),
            "network": network.to_json(state.network),
            "records": len(self.records),
            "ledger_lines": self._ledger_lines,
            "compile_s": compile_s,
            "num_compilations": num_compilations,
        }
        self._checkpoints.save(Saved(state.rounds, (state.params, state.states, state.merge), meta))

    def finish(self, summary: Record) -> None:
        """Writes summary.json."""
        _write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Lets go of the checkpoints."""
        self._checkpoints.close()

    def _cut(self, records: int, ledger_lines: int) -> None:
        self.records = _keep_lines(self.path / "metrics.jsonl", records)
        _keep_lines(self.path / "ledger.jsonl", ledger_lines)
        self._ledger_lines = ledger_lines


def _keep_lines(file: Path, count: int) -> list[Record]:
    """Cuts a file of JSON lines to its first `count` and returns them."""
    lines = file.read_text().splitlines()[:count] if file.exists() else []
    if len(lines) < count:
        raise UserError(f"{file} has {len(lines)} lines, its checkpoint knows {count}; give another --workdir")
    _replace(file, "".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]


def _append(file: Path, rows: Sequence[Record]) -> None:
    with file.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
        stream.flush()
        os.fsync(stream.fileno())


def _write_json(file: Path, content: Record) -> None:
    _replace(file, json.dumps(content, indent=2) + "\n")


def _replace(file: Path, text: str) -> None:
    """Writes the whole file or, if killed meanwhile, leaves the old one."""
    part = file.with_name(file.name + ".part")
    part.write_text(text)
    part.replace(file)


def _read_json(file: Path) -> Record | None:
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not readable ({error}); give another --workdir") from error
