"""What the Service Provider offers, is asked for, tells and refuses."""

from collections.abc import Mapping
from typing import NamedTuple

from snake_jax.errors import UserError
from snake_jax.services import results
from snake_jax.services.admission import Allowed, Setting
from snake_jax.services.pool import Machines


class NotThere(UserError):
    """There is no service, or no file, of that name."""


class WrongState(UserError):
    """A service does not stand as what is asked of it needs."""


class Offer(NamedTuple):
    """What the Service Provider has for services.

    Attributes:
      slots: services that run at a time, where each takes one.
      turn_s: how long one runs while others wait.
      grace_s: how long a round may go on after its process was told to end.
      allowed: what callers may reach.
      machines: of a pool of nodes that services share; None: each plays its nodes itself.
    """

    slots: int = 2
    turn_s: float = 600.0
    grace_s: float = 20.0
    allowed: Allowed = Allowed()
    machines: Machines | None = None


class ServiceTerms(NamedTuple):
    """A service as it is asked for; `Service` says what its fields are."""

    task: str
    settings: Mapping[str, Setting]
    name: str = ""
    owner: str = ""
    slots: int = 1
    run_s: float = 0.0
    restarts: int = 3


class ServiceProgress(NamedTuple):
    """How far a service is: its lines of metrics, one a round, and the last of them."""

    place: results.ReadPosition = results.ReadPosition()
    last: str = ""
