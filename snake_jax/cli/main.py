"""The program `snake-jax`: which command is meant, and what its flags say.

snake-jax --help
python -m snake_jax --help
"""

import importlib
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from absl.flags import FlagValues

import snake_jax
from snake_jax.cli import help_page, home, launch, presets
from snake_jax.cli.commands import COMMANDS
from snake_jax.cli.commands.command import Command, Given
from snake_jax.cli.presets import nearest
from snake_jax.report.stages import SILENT, Stages

_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")
_HELP_FULL = ("--helpfull", "-helpfull")


def main() -> None:
    """Carries out `snake-jax COMMAND ...`; never returns."""
    words = sys.argv[1:]
    if not words or words[0] in (*_HELP, *_HELP_FULL, "help"):
        print(help_page.overview(), end="")
        sys.exit(0)
    if words[0] == "--version":
        print(f"snake-jax {snake_jax.__version__}")
        sys.exit(0)
    name, *rest = words
    if name not in COMMANDS:
        guess = nearest.guess(name, COMMANDS)
        sys.exit(launch.fail(f"{name}: no such command{guess}; snake-jax --help lists them"))
    run(name, rest)


def door(name: str) -> None:
    """Carries out the command of that name with the flags of another program; never returns."""
    run(name, sys.argv[1:])


def run(name: str, words: Sequence[str]) -> None:
    """Carries out a command; never returns.

    Args:
      name: of the command.
      words: what was typed after it.
    """
    command = COMMANDS[name]
    values = define(command)

    def parsed(argv: Sequence[str]) -> list[str]:
        return parse(command, values, argv)

    def work(paths: list[str]) -> None:
        # Imported now that the flags are right: it takes jax, and so a second or two.
        stages = SILENT
        if "verbose" in values and values.verbose:
            stages = Stages(launch.say)
            stages.ended("command line", 0.0, "nothing")
        began = time.perf_counter()
        if stages.heard:
            importlib.import_module("jax")
        jax_s = time.perf_counter() - began
        module = importlib.import_module(command.module)
        stages.ended("imports", jax_s, "jax alone")
        module.main(Given(name, words, values, paths, stages))

    launch.run(work, bool(command.wants_paths), parsed, [sys.argv[0], *words])


def define(command: Command) -> FlagValues:
    """The flags of a command, and those that absl brings: of logging, debugging, flag files."""
    values = FlagValues()
    command.define(values)
    flags.DEFINE_bool("help", False, "explain the command", short_name="h", flag_values=values)
    flags.DEFINE_bool("helpfull", False, "explain it with all its flags", flag_values=values)
    # absl reads the files before it looks at flags; it is defined for the help page.
    flags.DEFINE_string(
        "flagfile",
        "",
        "a file of flags, one a line, which stand where it is named",
        flag_values=values,
    )
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module in ("absl.app", "absl.logging"):
            for flag in found:
                if not flag.name.startswith("help"):
                    values[flag.name] = flag
    return values


def parse(command: Command, values: FlagValues, argv: Sequence[str]) -> list[str]:
    """Reads the command line into the flags; ends the program where it asks for help.

    Args:
      command: whose flags they are.
      values: of `define`.
      argv: the program's name and the words after the command.

    Returns:
      The program's name and the arguments that are no flags.

    Raises:
      flags.Error: there is no such flag, or it takes no such value.
      UserError: there is no such preset.
    """
    program, *words = argv
    # Before anything else is looked at: whoever asks for help may have got other words wrong.
    if any(word in (*_HELP, *_HELP_FULL) for word in words):
        _explain(command, values, full=any(word in _HELP_FULL for word in words))
    _forget(values)
    rest = values([program, *words])
    # As --help=true, or in a file of flags.
    if values.help or values.helpfull:
        _explain(command, values, full=values.helpfull)
    if "preset" in values and values.preset:
        # Once more, now with the preset's flags in front: the last one of a name is the one that
        # counts, so whatever was typed counts, wherever it stands.
        before = presets.flags_before(values.preset, command.name)
        _forget(values)
        rest = values([program, *before, *words])
    home.expand_flags(values)
    paths = [home.expanded(path) for path in rest[1:]]
    return [rest[0], *paths]


def _explain(command: Command, values: FlagValues, full: bool) -> NoReturn:
    print(help_page.command_page(command, values, full), end="")
    sys.exit(0)


def _forget(values: FlagValues) -> None:
    """Has all flags at their defaults; absl's own are those of the whole process."""
    values.unparse_flags()
    for name in values:
        values[name].unparse()
