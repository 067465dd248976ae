"""Absl flags from the table in `snake_jax.config`: a flag for every field, with its help, default and rules."""

import dataclasses

from absl import flags

from snake_jax.algorithms import ALGORITHMS
from snake_jax.config import Config
from snake_jax.data import AUGMENTATIONS, PARTITIONS
from snake_jax.models import MODELS

_REGISTERED = {
    "algorithms": ", ".join(ALGORITHMS),
    "models": ", ".join(MODELS),
    "partitions": ", ".join(PARTITIONS),
    "augmentations": ", ".join(AUGMENTATIONS),
}
_DEFINE = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}


def define() -> None:
    """Defines the flags, as key flags of the launch that calls this."""
    for field in dataclasses.fields(Config):
        _DEFINE[field.type](field.name, field.default, _help(field))
        flags.declare_key_flag(field.name)


def from_flags() -> Config:
    """The configuration that the command line says.

    Raises:
      UserError: a value is not allowed.
    """
    return Config(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Config)})


def _help(field: dataclasses.Field) -> str:
    text = field.metadata["help"].format(**_REGISTERED)
    choices = field.metadata.get("choices")
    return f"{text} ({', '.join(choices)})" if choices else text
