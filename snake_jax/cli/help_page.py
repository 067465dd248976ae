"""The help pages: what commands there are, and what the flags of one decide."""

import textwrap
from collections.abc import Iterable, Iterator

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands import COMMANDS
from snake_jax.cli.commands.command import Command
from snake_jax.cli.groups import GROUPS, OTHER, group_of

_WIDTH = 100
_COLUMN = 12
_OVERVIEW = """\
snake-jax: layer-wise distributed learning in JAX and Flax.

  snake-jax COMMAND --flag=value ...
"""
_END = """\
snake-jax COMMAND --help explains a command and the flags to begin with, --helpfull all its flags.
Models, data and methods of your own in Python: import snake_jax as sj.
"""


def overview() -> str:
    """Every command with what it is for and one example."""
    parts = [_OVERVIEW]
    for command in COMMANDS.values():
        purpose = textwrap.fill(
            command.purpose,
            _WIDTH,
            initial_indent=f"{command.name:<{_COLUMN}}",
            subsequent_indent=" " * _COLUMN,
        )
        parts.append(f"{purpose}\n{' ' * _COLUMN}{command.example}\n")
    parts.append(_END)
    return "\n".join(parts)


def command_page(command: Command, values: FlagValues, full: bool) -> str:
    """The page of a command.

    Args:
      command: it.
      values: where its flags are defined.
      full: whether all flags are shown, or those that a newcomer needs.
    """
    shown = [name for name in _named(values) if full or name in command.newcomers]
    title = textwrap.fill(f"snake-jax {command.name}: {command.purpose}", _WIDTH)
    parts = [f"{title}\n", command.text]
    for group in (*GROUPS, OTHER):
        members = _in_order(group, shown)
        if members:
            lines = [f"{group}:"]
            lines += [_line(values[name]) for name in members]
            parts.append("\n".join([*lines, ""]))

    # How many are left out of the command's own; absl's are not counted.
    rest = 0
    for name in _named(values):
        if name not in shown and group_of(name) != OTHER:
            rest += 1
    if rest:
        parts.append(f"{rest} more flags: snake-jax {command.name} --helpfull\n")
    return "\n".join(parts)


def _named(values: FlagValues) -> Iterator[str]:
    """The flags by their whole names: `values` has short ones as well."""
    for name in values:
        if values[name].name == name:
            yield name


def _in_order(group: str, shown: Iterable[str]) -> list[str]:
    """The flags of a group among those that are shown, in the table's order."""
    members = [name for name in shown if group_of(name) == group]
    if group == OTHER:
        return sorted(members)
    return sorted(members, key=GROUPS[group].index)


def _line(flag: flags.Flag) -> str:
    """A flag, its help and its default."""
    name = f"[no]{flag.name}" if flag.boolean else flag.name
    default = ""
    says_nothing = flag.default is None or flag.default is False or flag.default in ("", [])
    if not says_nothing:
        words = (flag.default_as_str or "").strip("'")
        default = f" (default {words})"
    meaning = " ".join((flag.help or "").split())
    return textwrap.fill(
        f"--{name}: {meaning}{default}",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="      ",
        break_on_hyphens=False,
        break_long_words=False,
    )
