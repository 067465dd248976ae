"""Times functions on a machine that others use too: interleaved repeats, medians and spreads."""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import NamedTuple

import jax

LEAST_REPEATS = 3


class Sample(NamedTuple):
    """One call: `wall_s` seconds on the clock, `cpu_s` seconds of all threads of this process."""

    wall_s: float
    cpu_s: float


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int, budget_s: float = 6.0
) -> dict[str, list[Sample]]:
    """Calls every function once a round, `repeats` rounds, after one round that is not counted.

    A function that has used `budget_s` seconds leaves after its third round, so a slow one does not
    hold up the rest; sample i of every function is from the same round.
    """
    # The round that is not counted: compilation and first touches of memory fall into it.
    samples: dict[str, list[Sample]] = {}
    for name, function in functions.items():
        samples[name] = []
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            taken_s = sum(sample.wall_s for sample in samples[name])
            if len(samples[name]) < LEAST_REPEATS or taken_s < budget_s:
                samples[name].append(_sample(function))
    return samples


def _sample(function: Callable[[], object]) -> Sample:
    """One call, until its results are there."""
    cpu_start_s = _cpu_s()
    wall_start_s = time.perf_counter()
    jax.block_until_ready(function())
    wall_s = time.perf_counter() - wall_start_s
    cpu_s = _cpu_s() - cpu_start_s
    return Sample(wall_s, cpu_s)


def _cpu_s() -> float:
    """Of all threads of this process, in its own code and in the system's."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def sample_summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Milliseconds of all samples, and their number.

    The keys: `median_ms`, `fastest_ms`, `spread_ms` (between the quartiles), `cpu_ms` (the median)
    and `repeats`.
    """
    walls_ms, cpus_ms = [], []
    for sample in samples:
        walls_ms.append(1e3 * sample.wall_s)
        cpus_ms.append(1e3 * sample.cpu_s)

    # One sample has no quartiles: nothing lies between.
    spread_ms = 0.0
    if len(walls_ms) > 1:
        lower_ms, _, upper_ms = quantiles(walls_ms, n=4, method="inclusive")
        spread_ms = upper_ms - lower_ms
    return {
        "median_ms": median(walls_ms),
        "fastest_ms": min(walls_ms),
        "spread_ms": spread_ms,
        "cpu_ms": median(cpus_ms),
        "repeats": len(samples),
    }


def paired_ratio(samples: Sequence[Sample], base: Sequence[Sample]) -> float:
    """Median over the rounds of one function's time over another's.

    Load that comes and goes falls on both and cancels.

    Args:
      samples: of the one function, from `interleaved`.
      base: of the other; rounds that one of both left out do not count.
    """
    # Sample i of both is from the same round, so load at that time fell on both.
    ratios = []
    for sample, base_sample in zip(samples, base, strict=False):
        ratios.append(sample.wall_s / base_sample.wall_s)
    return median(ratios)


def machine() -> dict[str, object]:
    """What the numbers depend on: processor, cores, load and versions."""
    load_1min, _, _ = os.getloadavg()
    found: dict[str, object] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1min": round(load_1min, 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "backend": jax.default_backend(),
    }
    for package in ("jax", "jaxlib", "torch"):
        found[package] = _version(package)
    return found


def _processor() -> str:
    """Of the processor, by the operating system, or what Python knows of it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    """Of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
