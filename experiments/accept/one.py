"""One stage in this process: `python -m experiments.accept.one STAGE SCALE FOLDER LIMIT_S DATA`.

A process of its own, since a device remembers the most that it ever held, what ends a process
leaves the other stages alone, and a chip has room for one process at a time.
"""

import importlib
import sys
import time
from pathlib import Path

import jax

from experiments.accept import outcome
from experiments.accept.outcome import Outcome, Result
from experiments.accept.sizes import SCALES
from experiments.accept.stages import Given, Runs
from experiments.bench import results


def main(stage: str, scale: str, folder: str, limit_s: str, data: str) -> None:
    """Carries it out and writes its result."""
    began_s = time.monotonic()
    own = Path(folder) / "stages" / stage
    own.mkdir(parents=True, exist_ok=True)
    module: Runs = importlib.import_module(f"experiments.accept.{stage}")
    given = Given(SCALES[scale], own, data, float(limit_s))
    try:
        found = module.run(given)
    except Exception as error:
        found = Outcome((), (outcome.line_of(error),))
    machine = results.header() | {"device": jax.devices()[0].device_kind}
    took_s = time.monotonic() - began_s
    result = Result(stage, outcome.status_of(found), scale, took_s, found, machine)
    outcome.write(Path(folder), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
