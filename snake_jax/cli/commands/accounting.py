"""`snake-jax accounting`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax accounting
  snake-jax accounting --output=docs/accounting.md --results=experiments/results/accounting.json

Compiles about fifty programs for the platform at hand (3 to 8 s each on a CPU) and runs none of
them. Prints tables in Markdown, or puts them between two marks of a file, which is made where there
is none.
"""


def _define(values: FlagValues) -> None:
    flags.DEFINE_integer("batch", 32, "examples in a step", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "output", "", "the Markdown file that gets the tables; empty: printed", flag_values=values
    )
    flags.DEFINE_string("results", "", "the file of numbers; empty: none", flag_values=values)


ACCOUNTING = Command(
    name="accounting",
    purpose="counts VGG-11 layer by layer: FLOPs, memory and bytes of a visit, from shapes and by "
    "the compiler",
    example="snake-jax accounting",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.accounting",
    newcomers=("batch", "output", "results"),
)
