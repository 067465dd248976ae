"""What a command is, and what it is given.

Nothing here or in `commands/` imports jax, so that help and wrong flags are answered at once.
"""

import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl.flags import FlagValues

from snake_jax.report.stages import SILENT, Stages


class Command(NamedTuple):
    """One of `snake-jax`'s commands, as far as its help page and its flags go.

    Attributes:
      name: what is typed after `snake-jax`.
      purpose: what it is for, in a sentence.
      example: one line that a newcomer can type.
      text: the rest of the help page: more examples, what goes in and what comes out.
      define: defines its flags in the values it is given.
      module: where `main(given)` is that does the work.
      newcomers: the flags that `--help` shows; `--helpfull` shows all.
      wants_paths: whether it takes arguments that are no flags, and how they are written.
    """

    name: str
    purpose: str
    example: str
    text: str
    define: Callable[[FlagValues], None]
    module: str
    newcomers: tuple[str, ...]
    wants_paths: str = ""


class Given(NamedTuple):
    """What the command line says.

    Attributes:
      name: of the command.
      words: as they were typed, without the command.
      flags: their values.
      paths: the arguments that are no flags.
      stages: is told what ends on the way to the first result.
    """

    name: str
    words: Sequence[str]
    flags: FlagValues
    paths: list[str]
    stages: Stages = SILENT

    @property
    def line(self) -> str:
        """The command as it can be typed again."""
        return shlex.join(["snake-jax", self.name, *self.words])
