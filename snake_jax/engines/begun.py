"""How far the visits have come that a thread is training, as another one sees it."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.engines import vitals
from snake_jax.engines.choice import Choice
from snake_jax.engines.contract import Progress


class Part(NamedTuple):
    """A call of a visit's program: an array of jax of its results, and how many steps it does."""

    result: Any
    steps: int


class Begun(NamedTuple):
    """Visits that are being trained, in one program.

    Attributes:
      visits: those.
      since_s: when they were begun, by the monotonic clock.
      parts: the calls so far.
      compiling: whether a program is compiled for them.
    """

    visits: tuple[Visit, ...]
    since_s: float
    parts: list[Part]
    compiling: bool = False


class UnderWay(NamedTuple):
    """Visits that are begun, and what trains them on.

    `training` gives nothing each time before it waits for the device, and outcomes at last.
    """

    begun: Begun
    training: Iterator[list[Outcome]]


NOTHING = Begun((), 0.0, [])


def progress(begun: Begun) -> list[Progress]:
    """How far they have come; side by side all have come equally far."""
    # What the device was asked for is done when its result is there.
    steps = sum(part.steps for part in list(begun.parts) if part.result.is_ready())
    seconds = time.monotonic() - begun.since_s
    load, memory_bytes = vitals.load(), vitals.memory_bytes()
    about = steps, seconds, load, memory_bytes, begun.compiling
    return [Progress(visit, *about) for visit in begun.visits]


def why_given_up(told: Progress | None, still_s: float, limits: Choice) -> str:
    """Why an actor that answers is given up; empty where it is not.

    Args:
      told: of the visit that it carries out; None: it carries out none.
      still_s: seconds since that last changed.
      limits: of the engine.
    """
    visit_s, stall_s = limits.visit_deadline_s, limits.stall_s
    if told is not None and visit_s and told.seconds > visit_s:
        return f"its visit took longer than {visit_s:g} s"
    if stall_s and still_s > stall_s:
        return f"it stayed at step {told.steps if told is not None else 0} for {stall_s:g} s"
    return ""


def place(progress: Progress | None) -> tuple[Visit, int] | None:
    """Where an actor stands: the visit and its steps; None: at none."""
    return None if progress is None else (progress.visit, progress.steps)
