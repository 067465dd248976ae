"""`snake-jax compare`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax import names
from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax compare DIR DIR ... [--output=DIR] [--format=text|markdown|json]

Each DIR is the --workdir of a run of classify or finetune, here or in a bucket, all of one kind,
finished or still going; the first is set against the others. Prints the table and draws
comparison.png: test accuracy or held-out perplexity against iterations, examples or tokens, bytes,
FLOPs and seconds.
"""


def _define(values: FlagValues) -> None:
    flags.DEFINE_string(
        "output",
        "",
        "folder for comparison.png; by default the one that holds the runs",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format", "text", names.TABLE_FORMATS, "how the table is printed", flag_values=values
    )


COMPARE = Command(
    name="compare",
    purpose="sets runs side by side: accuracy or perplexity beside what it cost in FLOPs, memory, "
    "bytes and time",
    example="snake-jax compare runs/snake runs/fedavg",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.compare",
    newcomers=("output", "format"),
    wants_paths="DIR DIR ...",
)
