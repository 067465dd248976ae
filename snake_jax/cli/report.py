"""Carries out `snake-jax report`: one HTML page of many runs."""

from snake_jax.cli.commands.command import Given
from snake_jax.errors import UserError
from snake_jax.report.html import write_page
from snake_jax.runs import storage


def main(given: Given) -> None:
    """Reads the runs, writes the page, says where it is."""
    paths = given.paths
    output = given.flags.output
    if len(paths) != 1:
        raise UserError(f"one folder of runs is wanted, not {len(paths)}: snake-jax report runs")
    if output:
        page = storage.path_of(output, "output")
    else:
        page = storage.path_of(paths[0], "output") / "report.html"
    with storage.fetched(paths) as (folder,), storage.stored(page) as file:
        _, runs = write_page(folder, file)
        size_bytes = file.stat().st_size
    count = "1 run" if runs == 1 else f"{runs} runs"
    print(f"{page}: {count}, {size_bytes / 1e3:,.0f} kB")
