"""A option of a configuration as a dataclass field: default, help text, and rules that it keeps.

`snake_jax.config` builds its classes from these; launches read the same metadata for their flags.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from snake_jax.errors import UserError

LARGEST = 1e30
"""The greatest number that a option takes: float32 arithmetic has room to spare beyond it."""


def option(default: Any, help: str, **rules: Any) -> Any:
    """A field of a configuration.

    Args:
      default: its value where none is given.
      help: what it means, as the flag's help says.
      **rules: `choices`, `low` (least value), `above` (exclusive bound), `high`, `may_change` (a
        run may go on with another value).
    """
    return dataclasses.field(default=default, metadata={"help": help, **rules})


def pick(flag: str, value: str, allowed: Iterable[str]) -> str:
    """`value` if it is one of `allowed`.

    Args:
      flag: its name, for the message.
      value: given for it.
      allowed: all that may be given.

    Raises:
      UserError: it is not; the message lists what is allowed.
    """
    names = tuple(allowed)
    if value not in names:
        raise UserError(f"--{flag}={value}: not one of {', '.join(names)}")
    return value


def check_value(field: dataclasses.Field, value: Any) -> None:
    """Refuses a value that breaks the rules of its field.

    Raises:
      UserError: it does.
    """
    rules = field.metadata
    if "choices" in rules:
        pick(field.name, value, rules["choices"])
    # Bounds are for numbers; for Python a bool is one too.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    too_large = isinstance(value, float) and abs(value) > LARGEST
    if too_large or not math.isfinite(value):
        raise UserError(f"--{field.name}={value}: must be a finite number of at most {LARGEST:g}")
    if "low" in rules and value < rules["low"]:
        raise UserError(f"--{field.name}={value}: must be at least {rules['low']}")
    if "above" in rules and value <= rules["above"]:
        raise UserError(f"--{field.name}={value}: must be greater than {rules['above']}")
    if "high" in rules and value > rules["high"]:
        raise UserError(f"--{field.name}={value}: must be at most {rules['high']}")
