"""What a suite is asked for and what it gives: numbers with spread, direction and goal."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median, quantiles
from typing import Any, NamedTuple

from snake_jax.costs.timing import Sample

SUITES = (
    "step",
    "visit",
    "memory",
    "rounds_memory",
    "conv",
    "round",
    "many",
    "emulation",
    "finetune",
    "hops",
    "nodes",
    "scct",
    "compile",
    "start",
)
"""Each a module beside this one whose `run(request)` measures."""
LOWER, HIGHER = "lower", "higher"


class Request(NamedTuple):
    """What a suite is asked for.

    Attributes:
      repeats: of every measurement; 0: as many as the suite holds right.
      quick: the smallest sizes, to see that everything runs.
      peer_python: interpreter that has Flower, BAdam and PyTorch.
      fedjax_python: interpreter that has fedjax.
      cores: PyTorch's threads, Flower's CPUs, emulated devices.
      say: takes one line of progress.
    """

    repeats: int
    quick: bool
    peer_python: str
    fedjax_python: str
    cores: int
    say: Callable[[str], None]


class Row(NamedTuple):
    """One number.

    Attributes:
      table: which it belongs to.
      subject: its line there.
      name: its column there.
      value: the median of what was measured, or what was counted.
      unit: of the value; empty: a ratio.
      spread: between the quartiles of the repeats; 0 where it was counted.
      repeats: how many.
      better: `lower` or `higher`; empty for what depends on the load of the machine and is not
        compared.
      limit: the goal, at most or at least by `better`; None: no goal.
    """

    table: str
    subject: str
    name: str
    value: float
    unit: str = ""
    spread: float = 0.0
    repeats: int = 1
    better: str = ""
    limit: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same row in two results."""
        return self.table, self.subject, self.name

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None: there is none."""
        if self.limit is None:
            return None
        return self.value <= self.limit if self.better == LOWER else self.value >= self.limit


class Measured(NamedTuple):
    """What a suite gives.

    Attributes:
      rows: in order.
      peers: who took part, with versions, or why not.
      notes: what a reader of the numbers must know, a sentence each.
      detail: what else is worth keeping, for JSON.
    """

    rows: Sequence[Row]
    peers: dict[str, str]
    notes: Sequence[str] = ()
    detail: Any = None


def spread(values: Sequence[float]) -> float:
    """Between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def measured(
    table: str, subject: str, name: str, values: Sequence[float], unit: str = "", **rest: Any
) -> Row:
    """A row of repeated measurements: their median and spread."""
    return Row(table, subject, name, median(values), unit, spread(values), len(values), **rest)


def walls_ms(samples: Sequence[Sample], steps: int = 1) -> list[float]:
    """Milliseconds a step of samples of several steps."""
    return [1e3 * sample.wall_s / steps for sample in samples]


def paired(samples: Sequence[Sample], base: Sequence[Sample], scale: float = 1.0) -> list[float]:
    """One function's time over another's in the same round: load that comes and goes cancels.

    Args:
      samples: of the one.
      base: of the other; who left earlier ends the rounds.
      scale: multiplied in.
    """
    ratios = []
    for sample, base_sample in zip(samples, base, strict=False):
        ratios.append(scale * sample.wall_s / base_sample.wall_s)
    return ratios


def importable(package: str) -> str:
    """The version of a package that can be imported here; empty: there is none."""
    return version(package) if find_spec(package) is not None else ""
