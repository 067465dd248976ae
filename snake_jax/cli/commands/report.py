"""`snake-jax report`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax report RUNS_DIR [--output=report.html]

RUNS_DIR is the folder, here or in a bucket, under which runs of classify and finetune lie at any
depth, finished or still going; accuracy and perplexity have curves of their own. The page opens in
any browser; nothing in it comes from a network, so it can be sent and kept as the one file it is.
"""


def _define(values: FlagValues) -> None:
    flags.DEFINE_string(
        "output", "", "the page's file; by default report.html in RUNS_DIR", flag_values=values
    )


REPORT = Command(
    name="report",
    purpose="makes one HTML page of many runs: table, curves, schedule, ledger and configuration",
    example="snake-jax report runs",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.report",
    newcomers=("output",),
    wants_paths="RUNS_DIR",
)
