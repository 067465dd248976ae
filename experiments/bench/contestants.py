"""Contestants as processes: started, asked for rounds, what they said kept."""

import contextlib
import io
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Kind(NamedTuple):
    """What a contestant is called, its module here, the package that it needs and how to get
    that.
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
        self.kind, self.name = kind, f"{KINDS[kind].label}{variant and ', '}{variant}"
        self.missing, self.start_s = "", 0.0
        self.told: dict[str, Any] = {}
        self.first: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []
        self.checked = Path()
        self._python, self._options, self._environment = python, options, environment
        self._process: subprocess.Popen[str]
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
        stem = "".join(c if c.isalnum() else "_" for c in self.name)
        self.checked, self._errors = file.with_name(f"{stem}.npz"), file.with_name(f"{stem}.log")
        command = [
            self._python,
            "-m",
            f"experiments.bench.{kind.module}",
            str(file),
            str(self.checked),
        ]
        with self._errors.open("w") as errors:
            started = time.perf_counter()
            self._process = subprocess.Popen(
                [*command, json.dumps(self._options)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
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
    return subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def _last_words(errors: str) -> str:
    """The last line of a traceback, without what follows it."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [
        line
        for line in lines
        if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception", "Interrupt"))
    ]
    return (named or lines or ["it said nothing"])[-1]


def fastest(
    variants: Sequence[Contestant], file: Path, rounds: int
) -> tuple[Contestant, dict[str, float]]:
    """The fastest of several and each one's median seconds; all were tried one after the other, and
    have ended.

    A single one is not tried.

    Args:
      variants: of one contestant.
      file: the work.
      rounds: after the first.
    """
    trials: dict[str, float] = {}
    for variant in variants if len(variants) > 1 else ():
        variant.start(file)
        for _ in range(rounds):
            variant.round()
        variant.close()
        if variant.missing:
            return variant, trials
        trials[variant.name] = median(variant.seconds)
        variant.rounds.clear()
    return min(variants, key=lambda variant: trials.get(variant.name, 0.0)), trials
