"""Carries out `snake-jax compare`: runs side by side, as a table and a picture."""

import sys

from snake_jax.cli.commands.command import Given
from snake_jax.errors import UserError
from snake_jax.report.plots import plot_curves
from snake_jax.report.runs import read_runs
from snake_jax.report.table import comparison_table
from snake_jax.runs import storage


def main(given: Given) -> None:
    """Reads the runs, prints the table, draws the picture."""
    paths = given.paths
    flags = given.flags
    if not paths:
        raise UserError(
            "no runs to compare: give their folders, as in snake-jax compare runs/a runs/b"
        )
    with storage.fetched(paths) as folders:
        runs = read_runs(folders)
        print(comparison_table(runs, flags.format))
        folder = flags.output or storage.common(paths, "output")
        picture = storage.path_of(folder, "output") / "comparison.png"
        with storage.stored(picture) as file:
            plot_curves(runs, file)
    # Beside the table, not in it: standard output may go into a file or a parser.
    print(f"\ncurves: {picture}", file=sys.stderr)
