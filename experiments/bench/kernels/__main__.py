"""Benchmarks of the kernels: `python -m experiments.bench.kernels SUITE [--json] [--repeats N]`."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

SUITES = ("conv", "distill_xent", "quant_matmul")
"""Each a module here: `run(repeats)` measures, `report(result)` says it in text."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one suite and prints its table, or with --json one JSON document. Wrong arguments: one
    line, exit code 2.
    """
    parser = _Parser(
        prog="python -m experiments.bench.kernels", description="Times the kernels of snake_jax."
    )
    parser.add_argument("suite", help=", ".join(SUITES))
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--repeats", type=int, default=15, help="rounds of interleaved measurements"
    )
    flags = parser.parse_args(argv)
    if flags.suite not in SUITES:
        parser.error(f"suite {flags.suite!r} is not one of {', '.join(SUITES)}")
    if flags.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {flags.repeats}")
    suite = importlib.import_module(f"experiments.bench.kernels.{flags.suite}")
    result = suite.run(repeats=flags.repeats)
    print(json.dumps(result) if flags.json else suite.report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
