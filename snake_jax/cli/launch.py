"""What every launch shares.

Wrong input is one line on stderr and exit code 2, --help is exit code 0.
"""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from snake_jax import allocation
from snake_jax.errors import UserError

Main = Callable[[list[str]], None]
Parser = Callable[[Sequence[str]], list[str]]


def run(
    main: Main,
    arguments: bool = False,
    parser: Parser = flags.FLAGS,
    argv: list[str] | None = None,
) -> None:
    """Parses the command line and calls `main(arguments)`; never returns.

    Args:
      main: takes the arguments that are no flags.
      arguments: whether there may be any.
      parser: takes the command line, gives the program's name and the arguments that are no flags.
      argv: the command line; None: that of the process.
    """

    def call(rest: list[str]) -> int:
        return _call(main, rest[1:])

    def parse(words: Sequence[str]) -> list[str]:
        return _parse(words, arguments, parser)

    allocation.keep_freed()
    try:
        app.run(call, argv=argv, flags_parser=parse)
    except BrokenPipeError:  # the reader of our output has left, as in `... | head`
        # What is still to be written goes nowhere, also in the flush at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        sys.exit(141)


def _parse(argv: Sequence[str], arguments: bool, parser: Parser) -> list[str]:
    try:
        rest = parser(argv)
    except UserError as error:
        sys.exit(fail(error))
    except (flags.Error, ValueError) as error:
        # ValueError: a value after --noFLAG, a flagfile that is no text
        sys.exit(fail(f"{str(error).removeprefix('ERROR:: ')}; --help lists the flags"))
    except SystemExit:  # absl ends --help with 1, but whoever asked for help was served
        sys.exit(0)
    if not flags.FLAGS.is_parsed():
        # A command has flags of its own; what libraries define for the process keeps its defaults.
        flags.FLAGS.mark_as_parsed()
    if flags.FLAGS["verbosity"].using_default_value:
        # Warnings; absl's own 0 has libraries tell of every device they look for.
        flags.FLAGS.verbosity = -1  # type: ignore[assignment]
    if rest[1:] and not arguments:
        sys.exit(
            fail(f"{rest[1]}: flags begin with -- and take their value after =; --help lists them")
        )
    return rest


def _call(main: Main, arguments: list[str]) -> int:
    try:
        main(arguments)
        sys.stdout.flush()  # here, so that a reader who has left is noticed
    except (UserError, Ended, KeyboardInterrupt) as error:
        line, code = ending(error)
        print(line, file=sys.stderr)
        return code
    return 0


class Ended(Exception):
    """Ends a launch with a line on stderr and an exit code."""

    def __init__(self, line: str, code: int) -> None:
        """The line is printed as it is."""
        super().__init__(line)
        self.line, self.code = line, code


def ending(error: BaseException) -> tuple[str | None, int]:
    """The line that a launch ends with and its exit code.

    There is no line where the error is a bug, or was told of.
    """
    if isinstance(error, UserError):
        return _error_line(error), 2
    if isinstance(error, Ended):
        return error.line, error.code
    if isinstance(error, KeyboardInterrupt):
        return "; ".join(("interrupted", *error.args)), 130
    return None, 1


def failed(message: object) -> Ended:
    """What ends a launch that went wrong after its input was found right: one line, exit code 1."""
    return Ended(_error_line(message), 1)


def fail(message: object, code: int = 2) -> int:
    """Prints the message as one line on stderr; returns the exit code, 2 for wrong input."""
    print(_error_line(message), file=sys.stderr)
    return code


def _error_line(message: object) -> str:
    return f"error: {' '.join(str(message).split())}"


def say(line: str) -> None:
    """Prints a line on stderr, which no reader of results sees."""
    print(line, file=sys.stderr)


def warn(message: str) -> None:
    """Prints a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr)
