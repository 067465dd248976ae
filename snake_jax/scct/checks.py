"""Checks of what a scenario's file says, part by part: each complaint is one line that names the
key and the way out.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import numpy as np

from snake_jax.errors import UserError

_SMALLEST, _LARGEST = 1e-30, 1e30
_LARGEST_COUNT = 1_000_000


def mapping(
    where: str, said: object, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """What is said, where its keys are these names.

    Raises:
      UserError: it is no object, or has a key too many or too few.
    """
    if not isinstance(said, dict):
        raise UserError(f"{where}: want an object with the keys {', '.join(names)}")
    for key in said:
        if key not in names:
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(names)}")
    for name in names:
        if name not in said and name not in optional:
            raise UserError(f"{where}: the key {name!r} is missing; add it")
    return said


def figures(where: str, said: object, kind: type) -> dict[str, Any]:
    """The arguments of a dataclass, each checked by its field's type.

    Raises:
      UserError: as `mapping` says, or a value is not of its field's kind.
    """
    items = dataclasses.fields(kind)
    given = mapping(where, said, tuple(item.name for item in items))
    found: dict[str, Any] = {}
    for item in items:
        at, value = f"{where}.{item.name}", given[item.name]
        if item.type is float:
            found[item.name] = number_of(at, value)
        elif get_origin(item.type) is Literal:
            found[item.name] = _one_of(at, value, get_args(item.type))
        elif value is None and type(None) in get_args(item.type):
            found[item.name] = None
        else:
            found[item.name] = whole(at, value)
    return found


def number_of(where: str, value: object) -> float:
    """A finite number above zero.

    Raises:
      UserError: it is none.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Compared as it is: a whole number may be too large for a float.
        number = float(value) if -_LARGEST <= value <= _LARGEST else math.inf
    if not _SMALLEST <= number <= _LARGEST:
        raise UserError(
            f"{where}: {_short(value)} is not a number above zero, from {_SMALLEST:g} to "
            f"{_LARGEST:g}"
        )
    return number


def whole(where: str, value: object) -> int:
    """A whole number from 1.

    Raises:
      UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_COUNT:
        raise UserError(
            f"{where}: {_short(value)} is not a whole number from 1 to {_LARGEST_COUNT}"
        )
    return value


def table(where: str, said: object, nodes: int) -> np.ndarray:
    """Numbers [Q, N].

    Raises:
      UserError: no sample, a ragged one, or a number that is none.
    """
    if not isinstance(said, list) or not said:
        raise UserError(f"{where}: want a list of at least one sample, each a list of numbers")
    rows = []
    for index, row in enumerate(said):
        at = f"{where}[{index}]"
        if not isinstance(row, list) or len(row) != nodes:
            found = f"{len(row)} numbers" if isinstance(row, list) else _short(row)
            raise UserError(f"{at}: {found} for {nodes} devices; give one number a device")
        rows.append([number_of(f"{at}[{node}]", value) for node, value in enumerate(row)])
    return np.array(rows)


def _one_of(where: str, value: object, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{where}: {_short(value)} is not one of {', '.join(known)}")
    return value


def _short(value: object) -> str:
    """A value as a line can name it."""
    said = json.dumps(value, default=str)
    return said if len(said) <= 40 else f"{said[:37]}..."
