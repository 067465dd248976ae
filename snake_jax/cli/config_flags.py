"""Absl flags from the table in `snake_jax.config`: a flag for every field, with its help, default
and rules.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from absl import flags

from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import ImageConfig, RunConfig
from snake_jax.data.images.augmentation import AUGMENTATIONS
from snake_jax.data.partition import PARTITIONS
from snake_jax.data.text.templates import TEMPLATES
from snake_jax.models.presets import PRESETS
from snake_jax.models.registry import MODELS

# they belong to the launch that calls `define`, so that its --help lists them
flags.disclaim_key_flags()

Kind = TypeVar("Kind", bound=RunConfig)

_REGISTERED = {
    "algorithms": ", ".join(ALGORITHMS),
    "models": ", ".join(MODELS),
    "partitions": ", ".join(PARTITIONS),
    "augmentations": ", ".join(AUGMENTATIONS),
    "presets": ", ".join(PRESETS),
    "templates": ", ".join(TEMPLATES),
}
_DEFINE: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}
_BOUNDS = {"low": "at least", "above": "greater than", "high": "at most"}


def define(kind: type[RunConfig] = ImageConfig) -> None:
    """Defines the flags of a configuration, as flags of the launch that calls this."""
    for field in dataclasses.fields(kind):
        _DEFINE[field.type](field.name, field.default, _help(field))


def from_flags(kind: type[Kind]) -> Kind:
    """The configuration that the command line says.

    Raises:
      UserError: a value is not allowed.
    """
    values: dict[str, Any] = {
        field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(kind)
    }
    return kind(**values)


def _help(field: dataclasses.Field) -> str:
    """The field's help with the values it allows."""
    rules = field.metadata
    bounds = [f"{words} {rules[rule]}" for rule, words in _BOUNDS.items() if rule in rules]
    allowed = ", ".join(rules.get("choices", bounds))
    text = rules["help"].format(**_REGISTERED)
    return f"{text} ({allowed})" if allowed else text
