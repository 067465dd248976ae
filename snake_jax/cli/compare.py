"""Compare runs: accuracy or perplexity beside what it cost in FLOPs, memory, bytes and time.

  python -m experiments.compare DIR DIR ... [--output=DIR] [--format=text|markdown|json]

Each DIR is the --workdir of a run of experiments.classify or experiments.finetune, here or in a
bucket, all of one kind, finished or still going; the first is set against the others. Prints the
table and draws comparison.png: test accuracy or held-out perplexity against iterations, examples or
tokens, bytes, FLOPs and seconds.
"""

import sys

from absl import flags

from snake_jax.cli import launch
from snake_jax.errors import UserError
from snake_jax.report.plots import plot_curves
from snake_jax.report.runs import read_runs
from snake_jax.report.table import FORMATS, comparison_table
from snake_jax.runs import storage

OUTPUT = flags.DEFINE_string(
    "output", "", "folder for comparison.png; by default the one that holds the runs"
)
FORMAT = flags.DEFINE_enum("format", "text", FORMATS, "how the table is printed")


def main(paths: list[str]) -> None:
    """Reads the runs, prints the table, draws the picture."""
    if not paths:
        raise UserError(
            "no runs to compare: give their folders, as in python -m experiments.compare runs/a "
            "runs/b"
        )
    with storage.fetched(paths) as folders:
        runs = read_runs(folders)
        print(comparison_table(runs, FORMAT.value))
        picture = (
            storage.place(OUTPUT.value or storage.common(paths, "output"), "output")
            / "comparison.png"
        )
        with storage.stored(picture) as file:
            plot_curves(runs, file)
    # Beside the table, not in it: standard output may go into a file or a parser.
    print(f"\ncurves: {picture}", file=sys.stderr)


if __name__ == "__main__":
    launch.run(main, arguments=True)
