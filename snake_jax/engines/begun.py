"""How far the visits have come that a thread is training, as another one sees it."""

import time
from typing import Any, NamedTuple

from snake_jax.algorithms.visits import Visit
from snake_jax.engines import vitals
from snake_jax.engines.contract import Progress


class Begun(NamedTuple):
    """Visits that are being trained, in one program.

    Attributes:
      visits: those.
      since_s: when they were begun, by the monotonic clock.
      steps: of finished epochs.
      parts: of an epoch of several calls: a result of each call so far, arrays of jax.
      compiling: whether a program is compiled for them.
    """

    visits: tuple[Visit, ...]
    since_s: float
    steps: int
    parts: list[Any]
    compiling: bool = False


NOTHING = Begun((), 0.0, 0, [])


def progress(begun: Begun) -> list[Progress]:
    """How far they have come; side by side all have come equally far."""
    # What the device was asked for is done when its result is there.
    steps = begun.steps + sum(part.is_ready() for part in list(begun.parts))
    seconds = time.monotonic() - begun.since_s
    load, memory_bytes = vitals.load(), vitals.memory_bytes()
    about = steps, seconds, load, memory_bytes, begun.compiling
    return [Progress(visit, *about) for visit in begun.visits]
