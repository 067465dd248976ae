"""Flags of an experiment's own, for modules that others import and that name flags likewise."""

import sys
from collections.abc import Sequence

from absl import flags

from snake_jax.cli.launch import Parser


def parser(values: flags.FlagValues, about: str) -> Parser:
    """What `launch.run` takes to parse a command line into these flags; adds --help to them.

    Args:
      values: the flags.
      about: what --help says before them.
    """
    help_flag = flags.DEFINE_bool("help", False, "show this", flag_values=values)

    def parsed(words: Sequence[str]) -> list[str]:
        rest = values(words)
        if help_flag.value:
            print(f"{about}\n{values.get_help()}")
            sys.exit(0)
        return rest

    return parsed
