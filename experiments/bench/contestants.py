"""Contestants as processes: started, asked for rounds, what they said kept."""

import contextlib
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Kind(NamedTuple):
    """What a contestant is, for people and for the launch of its process.

    Attributes:
      label: what it is called.
      module: of `experiments.bench`.
      package: that its interpreter needs.
      install: how to get that.
    """

    label: str
    module: str
    package: str = ""
    install: str = ""


KINDS = {
    "ours": Kind("snake_jax", "ours"),
    "snake": Kind("snake_jax, Snake cycle", "ours"),
    "torch": Kind("PyTorch loop", "torch_side", "torch", "pip install torch"),
    "flower": Kind("Flower simulation", "flower_side", "flwr", "pip install 'flwr[simulation]'"),
    "fedjax": Kind("fedjax", "fedjax_side", "fedjax", "pip install fedjax"),
    "blocks": Kind("snake_jax", "blocks_side"),
    "torch_blocks": Kind(
        "PyTorch, requires_grad off", "badam_side", "transformers", "pip install transformers torch"
    ),
    "badam": Kind("BAdam", "badam_side", "badam", "pip install badam transformers torch"),
}


class Contestant:
    """One process; where it cannot run, `missing` says why and rounds are not asked for."""

    def __init__(
        self,
        kind: str,
        variant: str,
        python: str,
        options: dict[str, Any],
        environment: dict[str, str],
    ) -> None:
        """Starts nothing.

        Args:
          kind: of KINDS.
          variant: what sets it apart from others of its kind, in the table.
          python: interpreter.
          options: for its module.
          environment: added to this process's.
        """
        self.kind = kind
        self.name = KINDS[kind].label
        if variant:
            self.name += f", {variant}"
        self.missing = ""
        self.start_s = 0.0
        # What it says of itself, of its first round, and of those that count.
        self.told: dict[str, Any] = {}
        self.first: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []
        self.checked = Path()
        self._python = python
        self._options = options
        self._environment = environment
        self._process: subprocess.Popen[str]
        # Closed, as that of a process that has ended: there is nothing to end before the start.
        self._stdin: IO[str] = io.StringIO()
        self._stdin.close()
        self._stdout: IO[str] = self._stdin
        self._errors = Path()

    def start(self, file: Path) -> None:
        """Launches it and does the first round, until which everything counts as its start.

        Args:
          file: the work; what the contestant writes goes beside it.
        """
        kind = KINDS[self.kind]
        if kind.package and not _importable(self._python, kind.package):
            self.missing = f"{kind.package}: not installed ({kind.install})"
            return
        stem = re.sub(r"[\W_]", "_", self.name)
        self.checked = file.with_name(f"{stem}.npz")
        self._errors = file.with_name(f"{stem}.log")
        command = [
            self._python,
            "-m",
            f"experiments.bench.{kind.module}",
            str(file),
            str(self.checked),
            json.dumps(self._options),
        ]
        # Its last words are kept: they say why it failed.
        with self._errors.open("w") as errors:
            started = time.perf_counter()
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self.told = self._heard()
        self.first = self._asked()
        self.start_s = time.perf_counter() - started

    def round(self, counted: bool = True) -> None:
        """Asks for a round, unless it is out."""
        done = {} if self.missing else self._asked()
        if done and counted:
            self.rounds.append(done)

    @property
    def seconds(self) -> list[float]:
        """Of the rounds that count."""
        return [done["round_s"] for done in self.rounds]

    def versions(self) -> str:
        """Of its packages, as it told them."""
        told = self.told.get("versions", {})
        return ", ".join(f"{name} {version}" for name, version in told.items())

    def close(self) -> None:
        """Ends the process."""
        if not self._stdin.closed:
            self._stdin.close()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._stdout.close()

    def _asked(self) -> dict[str, Any]:
        if self.missing:
            return {}
        with contextlib.suppress(BrokenPipeError):  # it has left; what it last said tells why
            self._stdin.write("round\n")
            self._stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        """Its next line; none: it has failed."""
        line = self._stdout.readline()
        if not line:
            self._process.wait()  # its last words may still be on their way
            self.missing = f"failed: {_last_words(self._errors.read_text())}"
            return {}
        return json.loads(line)


def _importable(python: str, package: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    asked = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True)
    return asked.returncode == 0


def _last_words(errors: str) -> str:
    """The last line of a traceback, without what follows it."""
    last = "it said nothing"
    last_named = ""
    for line in errors.splitlines():
        if not line.strip():
            continue
        last = line.strip()
        # `package.module.SomeError: what happened`
        kind, _, _ = last.partition(":")
        _, _, name = kind.rpartition(".")
        if name.endswith(("Error", "Exception", "Interrupt")):
            last_named = last
    return last_named or last


def fastest(
    variants: Sequence[Contestant], file: Path, rounds: int
) -> tuple[Contestant, dict[str, float]]:
    """The fastest of several and each one's median seconds.

    All were tried one after the other, and have ended. A single one is not tried.

    Args:
      variants: of one contestant.
      file: the work.
      rounds: after the first.
    """
    trials: dict[str, float] = {}
    if len(variants) == 1:
        return variants[0], trials
    for variant in variants:
        variant.start(file)
        for _ in range(rounds):
            variant.round()
        variant.close()
        # What one cannot run the others cannot either.
        if variant.missing:
            return variant, trials
        trials[variant.name] = median(variant.seconds)
        variant.rounds.clear()
    least = min(trials.values())
    chosen = next(variant for variant in variants if trials[variant.name] == least)
    return chosen, trials


def over_base(contestant: Contestant, base: Contestant) -> list[float]:
    """A contestant's seconds over another's, turn by turn."""
    ratios = []
    for seconds, base_seconds in zip(contestant.seconds, base.seconds, strict=True):
        ratios.append(seconds / base_seconds)
    return ratios
