"""Absl flags from the fields of `snake_jax.config`, with their help, defaults and rules."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags
from absl.flags import FlagValues

from snake_jax import names
from snake_jax.config import RunConfig

Kind = TypeVar("Kind", bound=RunConfig)

_REGISTERED = {
    "algorithms": ", ".join(names.ALGORITHMS),
    "models": ", ".join((*names.IMAGE_MODELS, "or a function of yours as MODULE:FUNCTION")),
    "partitions": ", ".join(names.PARTITIONS),
    "augmentations": ", ".join(names.AUGMENTATIONS),
    "presets": ", ".join(names.LANGUAGE_MODELS),
    "templates": ", ".join(names.TEMPLATES),
}
_DEFINE: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}
_BOUNDS = {"low": "at least", "above": "greater than", "high": "at most"}


def define_settings(values: FlagValues, kind: type[RunConfig]) -> None:
    """Defines the flags of a configuration."""
    for field in dataclasses.fields(kind):
        define_flag = _DEFINE[field.type]
        define_flag(field.name, field.default, _help(field), flag_values=values)


def from_flags(values: FlagValues, kind: type[Kind]) -> Kind:
    """The configuration that the command line says.

    Raises:
      UserError: a value is not allowed.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        given[field.name] = values[field.name].value
    return kind(**given)


def _help(field: dataclasses.Field) -> str:
    """The field's help with the values it allows."""
    rules = field.metadata
    allowed_values = rules.get("choices")
    if allowed_values is None:
        bounds = [rule for rule in _BOUNDS if rule in rules]
        allowed_values = [f"{_BOUNDS[rule]} {rules[rule]}" for rule in bounds]
    allowed = ", ".join(allowed_values)
    text = rules["help"].format(**_REGISTERED)
    return f"{text} ({allowed})" if allowed else text
