"""Benchmarks: what a step, a visit, a round and their memory cost, beside peers measured in the
same run.

  python -m experiments.bench step                 measure, print, compare with the committed result
  python -m experiments.bench all --update         measure all; make it the committed result
  python -m experiments.bench round finetune --peer_python=PEER_VENV/bin/python

Suites: step, visit, memory, rounds_memory, conv, round, many, emulation, finetune, hops, nodes,
scct, compile, start; `all` is all of them. Several run one after the other, each in a process of
its own and each with its file written when it is done; one that fails leaves the others alone. What
a result is compared by is said with it. Peers that are not installed are named and left out;
docs/performance.md says how to install them.
"""

import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.bench import document, results
from experiments.bench.rows import SUITES, Request
from snake_jax.cli import launch
from snake_jax.errors import UserError

REPEATS = flags.DEFINE_integer(
    "repeats", 0, "of every measurement; 0: as many as suits the suite", lower_bound=0
)
QUICK = flags.DEFINE_bool(
    "quick", False, "the smallest sizes, to see that everything runs; their numbers mean nothing"
)
UPDATE = flags.DEFINE_bool(
    "update", False, "make the result the committed one, and write docs/performance.md anew"
)
OUTPUT = flags.DEFINE_string(
    "output", "runs/bench", "folder for SUITE.json where the result is not to be committed"
)
PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "interpreter that has Flower, BAdam and PyTorch"
)
FEDJAX_PYTHON = flags.DEFINE_string(
    "fedjax_python", "", "interpreter that has fedjax; empty: that of the other peers"
)
CORES = flags.DEFINE_integer(
    "cores", os.cpu_count() or 1, "of peers, and emulated devices of ours", lower_bound=1
)
FAIL = flags.DEFINE_bool(
    "fail_on_regression", False, "end with exit code 1 where something got worse"
)


def main(arguments: list[str]) -> None:
    """One suite here, several in a process each."""
    suites = SUITES if arguments == ["all"] else tuple(arguments)
    for name in suites:
        if name not in SUITES:
            raise UserError(f"{name}: not one of {', '.join(SUITES)}, all")
    if not suites:
        raise UserError(f"say which: {', '.join(SUITES)} or all")
    if UPDATE.value and QUICK.value:
        raise UserError(
            "--update --quick: the smallest sizes are not to be committed; leave one of them out"
        )
    if len(suites) > 1:
        sys.exit(_each(suites))
    sys.exit(_one(suites[0]))


def _one(suite: str) -> int:
    """Measures and reports; the exit code."""
    module = importlib.import_module(f"experiments.bench.{suite}")
    peer_python = PEER_PYTHON.value
    request = Request(
        REPEATS.value,
        QUICK.value,
        peer_python,
        FEDJAX_PYTHON.value or peer_python,
        CORES.value,
        _say,
    )
    machine = results.header()
    started = time.perf_counter()
    measured = module.run(request)
    took_s = time.perf_counter() - started

    # The load before and after says whether others were at work.
    load_1min, _, _ = os.getloadavg()
    machine |= {"load_1min_after": round(load_1min, 2), "cores_used": CORES.value}
    result = {
        "suite": suite,
        "command": _command(suite),
        "quick": QUICK.value,
        "machine": machine,
        **measured._asdict(),
        "took_s": round(took_s),
    }
    text, found = document.report(result)
    print(text)
    folder = results.COMMITTED if UPDATE.value else Path(OUTPUT.value)
    _say(f"wrote {results.write(folder, result)}")
    if UPDATE.value:
        document.update()
    return 1 if found and FAIL.value else 0


def _each(suites: Sequence[str]) -> int:
    """Every suite in a process of its own; the greatest exit code."""
    failed = []
    greatest_code = 0
    for suite in suites:
        _say(f"suite {suite}")
        command = [sys.executable, "-m", "experiments.bench", suite, *_given()]
        code = subprocess.run(command).returncode
        # Who interrupts one wants them all to end.
        if code == 130:
            raise KeyboardInterrupt
        if code:
            failed.append(suite)
            greatest_code = max(greatest_code, code)
    if failed:
        again = _command(" ".join(failed))
        _say(f"failed: {', '.join(failed)}; again: {again}")
    return greatest_code


def _given() -> list[str]:
    """The flags of this process, for another."""
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    return [flag.serialize() for flag in own if flag.present]


def _command(suites: str) -> str:
    """What was typed, without where interpreters lie."""
    places = ("--peer_python", "--fedjax_python", "--output")
    words = [word for word in _given() if not word.startswith(places)]
    for name in ("peer", "fedjax"):
        if flags.FLAGS[f"{name}_python"].present:
            words.append(f"--{name}_python={name.upper()}_VENV/bin/python")
    return f"python -m experiments.bench {suites} {shlex.join(words)}".strip()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch.run(main, arguments=True)
