"""Fair use of slots: who is started next, who makes room, and what an ended process comes to.

Services wait in a queue. Where all slots are taken and others wait, a service that has had its turn
ends after its round and goes to the end of the queue; it goes on from there later, with the same
bits. Pure functions of the services as they stand.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax.services.store import CANCELLED, FAILED, FINISHED, RUNNING, WAITING, Service

# Exit codes of commands that say what is wrong: the input (2), or the training (1).
_SAYS_WHY = (1, 2)


class ServiceEnding(NamedTuple):
    """What a service comes to when its process has ended.

    Attributes:
      state: that it has now.
      event: what is told of it.
      cause: why.
      crashed: whether it was killed by something else than the Service Provider.
    """

    state: str
    event: str
    cause: str
    crashed: bool = False


def first_in_line(services: Sequence[Service]) -> Service | None:
    """The waiting service to start next: of the owner with the fewest slots in use, and of those
    the one that has waited longest. None overtakes it, so one that takes many slots gets them.
    """
    in_use: Counter[str] = Counter()
    for service in services:
        if service.state != WAITING:
            in_use[service.owner] += service.slots
    waiting = [service for service in services if service.state == WAITING]
    return min(
        waiting,
        key=lambda one: (in_use[one.owner], one.waiting_s, one.number),
        default=None,
    )


def free_slots(services: Sequence[Service], slots: int) -> int:
    """How many slots no service has."""
    return slots - sum(service.slots for service in services if service.state != WAITING)


def makes_room(
    services: Sequence[Service], rounds: Mapping[int, int], now: float, turn_s: float
) -> Service | None:
    """The running service that has to let others go on: the one whose turn is over longest.

    None where no turn is over. A turn lasts `turn_s`, and at least until a round is finished in it:
    otherwise one with long rounds would never come to an end.

    Args:
      services: that are not over.
      rounds: finished rounds of the running ones, by number.
      now: seconds since 1970.
      turn_s: of a turn.
    """
    over = []
    for service in services:
        had_turn = service.state == RUNNING and now - service.started_s >= turn_s
        if had_turn and rounds.get(service.number, 0) > service.rounds:
            over.append(service)
    return min(over, key=lambda one: (one.started_s, one.number), default=None)


def ending(service: Service, code: int | None, last_line: str) -> ServiceEnding:
    """What a service comes to.

    Args:
      service: whose process has ended.
      code: its exit code, or minus a signal; None: not known.
      last_line: of its output.
    """
    if code == 0:
        return ServiceEnding(FINISHED, "finished", "")
    if service.wanted == CANCELLED:
        return ServiceEnding(CANCELLED, "cancelled", service.cause)
    if service.wanted == FAILED:
        return ServiceEnding(FAILED, "failed", service.cause)
    if service.wanted == WAITING:
        return ServiceEnding(WAITING, "turn over", service.cause)
    if code in _SAYS_WHY:
        return ServiceEnding(FAILED, "failed", last_line or f"it ended with exit code {code}")
    how = "its process was lost"
    if code is not None:
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if service.crashes < service.restarts:
        return ServiceEnding(
            WAITING, "lost", f"{how}; it goes on from its last round", crashed=True
        )
    times = service.crashes + 1
    return ServiceEnding(
        FAILED, "failed", f"{how}, {times} times in all: no restarts are left", True
    )
