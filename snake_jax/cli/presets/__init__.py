"""Presets: settings that belong together, as flag files that come with the package.

`--preset=NAME` puts a preset's flags before those of the command line, so that any of these wins
wherever it stands. A preset's header says what it is, how it is started, on what and how long it
runs, what to expect of it and where it is weak.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.presets import nearest
from snake_jax.errors import UserError

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.flags")))
# The lines that every header has, in this order, after a first one that says what it is.
HEADER = ("command", "hardware", "time", "expected", "weaknesses")


class Preset(NamedTuple):
    """A preset.

    Attributes:
      name: for `--preset`.
      summary: what it is, in a line.
      header: what `HEADER` names, by these names.
      flags: as on a command line.
      text: the whole file.
    """

    name: str
    summary: str
    header: dict[str, str]
    flags: tuple[str, ...]
    text: str

    @property
    def command(self) -> str:
        """The name of the command that it is for."""
        return self.header["command"].split()[1]


def read(name: str) -> Preset:
    """The preset of that name.

    Raises:
      UserError: there is none.
    """
    if name not in NAMES:
        raise UserError(
            f"--preset={name}: no such preset{nearest.guess(name, NAMES)}; snake-jax presets lists "
            f"them"
        )
    text = (_FOLDER / f"{name}.flags").read_text()
    lines = text.splitlines()
    summary, *comments = itertools.takewhile(_is_comment, lines)
    header: dict[str, str] = {}
    for comment in comments:
        words = comment.removeprefix("#").strip()
        key, colon, rest = words.partition(": ")
        if colon and key in HEADER:
            last = key
            header[key] = rest
        else:
            # A long value goes on in the next line.
            header[last] = f"{header[last]} {words}"
    given = tuple(line for line in lines if line.startswith("--"))
    return Preset(name, summary.removeprefix("# "), header, given, text)


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def define_flag(values: FlagValues) -> None:
    """Defines `--preset`."""
    flags.DEFINE_string(
        "preset",
        "",
        "settings that come with the package, which other flags override; snake-jax presets lists "
        "them",
        flag_values=values,
    )


def flags_before(name: str, command: str) -> Sequence[str]:
    """The flags of a preset for this command.

    Raises:
      UserError: there is no such preset, or it is for another command.
    """
    preset = read(name)
    if preset.command != command:
        raise UserError(
            f"--preset={name} is for another command: snake-jax {preset.command} --preset={name}"
        )
    return preset.flags
