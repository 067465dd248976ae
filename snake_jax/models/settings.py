"""Reading `config.json`: what is missing, unknown or unsupported is refused by its name."""

from collections.abc import Mapping
from typing import Any

from snake_jax.errors import UserError
from snake_jax.models.linear import ACTIVATIONS

Config = Mapping[str, Any]


def required(config: Config, name: str) -> Any:
    """The setting of this name.

    Raises:
      UserError: it is left out or null.
    """
    value = config.get(name)
    if value is None:
        raise UserError(
            f"config.json of a {config.get('model_type')} model lacks {name}: complete it"
        )
    return value


def optional(config: Config, name: str, default: Any) -> Any:
    """The setting of this name, or the default where it is left out or null."""
    value = config.get(name)
    return default if value is None else value


def only(config: Config, name: str, *supported: Any) -> None:
    """Refuses any value of this setting but those, None among them."""
    value = config.get(name)
    if value is not None and value not in supported:
        known = " or ".join(str(one) for one in supported) or "none"
        raise UserError(f"config.json: {name}={value} is not supported, only {known}")


def activation(config: Config, name: str, default: str) -> str:
    """The name of an activation that is there."""
    only(config, name, *ACTIVATIONS)
    return str(optional(config, name, default))


def divisible(config: Config, name: str, number: int, by: str, divisor: int) -> None:
    """Refuses a number that the divisor does not divide."""
    if divisor < 1 or number % divisor:
        raise UserError(
            f"config.json of a {config.get('model_type')} model: {name}={number} is no multiple "
            f"of {by}={divisor}"
        )


def token_ids(
    config: Config, name: str, default: int | None = None
) -> int | tuple[int, ...] | None:
    """A special token's id, or several; None where there is none."""
    value = config.get(name, default)
    if isinstance(value, list):
        return tuple(value)
    return value
