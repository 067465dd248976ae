"""Flags of experiments: their own where others import them and name flags likewise, and seeds."""

import importlib.util
import sys
from collections.abc import Sequence

from absl import flags

from snake_jax.cli.launch import Parser
from snake_jax.errors import UserError


def seeds(text: str) -> tuple[int, ...]:
    """Of --seeds=0,1,2, each once.

    Raises:
      UserError: one is no whole number.
    """
    found: list[int] = []
    for part in text.split(","):
        word = part.strip()
        if not word.isdecimal():
            raise UserError(
                f"--seeds={text}: {word or 'a gap'} is no seed; want whole numbers as 0,1,2"
            )
        if int(word) not in found:
            found.append(int(word))
    return tuple(found)


def check_pytorch() -> None:
    """Refuses to compare with PyTorch where it is not installed.

    Raises:
      UserError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("one side is PyTorch, which is not installed; pip install torch")


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
