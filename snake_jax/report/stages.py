"""The stages of a launch, each with its floor; printed by `--verbose`."""

import time
from collections.abc import Callable
from typing import NamedTuple

STARTED_S = time.perf_counter()
"""When this was imported: a command reads its line first, then imports what it works with."""
COPY_BYTES = 1 << 22


class Stage(NamedTuple):
    """A part of a launch.

    Attributes:
      name: of it.
      wall_s: seconds on the clock.
      cpu_s: seconds of all cores of this process.
      floor_s: what no launch can be under here.
      floor: what that is.
    """

    name: str
    wall_s: float
    cpu_s: float
    floor_s: float
    floor: str

    def __str__(self) -> str:
        """One line for people, and for whoever reads it back: see `read`."""
        times = f"{self.wall_s:.2f} s, {self.cpu_s:.2f} s of cores"
        return f"stage {self.name}: {times}; floor {self.floor_s:.3f} s: {self.floor}"


class Stages:
    """Says each stage when it ends; it begins where the one before ended."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        """Begins with the launch; None: nothing is said."""
        self._say = say
        self._since = STARTED_S, 0.0

    @property
    def heard(self) -> bool:
        """Whether anybody listens, so that a floor is worth measuring."""
        return self._say is not None

    def ended(self, name: str, floor_s: float, floor: str) -> None:
        """Says how long it took since the stage before.

        Args:
          name: of the stage.
          floor_s: what no launch can be under here.
          floor: what that is.
        """
        if self._say is None:
            return
        wall, cpu = self._since
        now = time.perf_counter(), time.process_time()
        self._say(str(Stage(name, now[0] - wall, now[1] - cpu, floor_s, floor)))
        self._since = now

    def ended_copying(self, name: str, num_bytes: int) -> None:
        """The same of a stage that makes or moves so many bytes: its floor is one copy of them."""
        floor_s = num_bytes * _copy_s_per_byte() if self.heard else 0.0
        self.ended(name, floor_s, f"one copy of {num_bytes / 1e6:.1f} MB")


SILENT = Stages(None)


def read(text: str) -> list[Stage]:
    """The stages that a launch printed, in order."""
    found = []
    for line in text.splitlines():
        if not line.startswith("stage "):
            continue
        name, rest = line.removeprefix("stage ").split(": ", 1)
        times, floor = rest.split("; floor ", 1)
        wall, cpu = times.split(" s, ", 1)
        floor_s, about = floor.split(" s: ", 1)
        cpu_s = float(cpu.removesuffix(" s of cores"))
        found.append(Stage(name, float(wall), cpu_s, float(floor_s), about))
    return found


def _copy_s_per_byte() -> float:
    """Seconds to copy a byte, of a few MB that lie in memory: the least of some tries."""
    source = bytearray(COPY_BYTES)
    least = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        bytes(source)
        least = min(least, time.perf_counter() - began)
    return least / COPY_BYTES
