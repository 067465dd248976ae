"""Report on many runs: one HTML page with table, curves, schedule, ledger and configuration.

  python -m experiments.report RUNS_DIR [--output=report.html]

RUNS_DIR is the folder, here or in a bucket, under which runs of experiments.classify and
experiments.finetune lie at any depth, finished or still going; accuracy and perplexity have curves
of their own. The page opens in any browser; nothing in it comes from a network, so it can be sent
and kept as the one file it is.
"""

from absl import flags

from snake_jax.cli import launch
from snake_jax.errors import UserError
from snake_jax.report.html import write_page
from snake_jax.runs import storage

OUTPUT = flags.DEFINE_string("output", "", "the page's file; by default report.html in RUNS_DIR")


def main(paths: list[str]) -> None:
    """Reads the runs, writes the page, says where it is."""
    if len(paths) != 1:
        raise UserError(
            f"one folder of runs is wanted, not {len(paths)}: python -m experiments.report runs"
        )
    page = (
        storage.place(OUTPUT.value, "output")
        if OUTPUT.value
        else storage.place(paths[0], "output") / "report.html"
    )
    with storage.fetched(paths) as (folder,), storage.stored(page) as file:
        _, runs = write_page(folder, file)
        size_bytes = file.stat().st_size
    print(f"{page}: {runs} run{'s' * (runs != 1)}, {size_bytes / 1e3:,.0f} kB")


if __name__ == "__main__":
    launch.run(main, arguments=True)
