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
    samples: dict[str, list[Sample]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            taken_s = sum(sample.wall_s for sample in samples[name])
            if len(samples[name]) < LEAST_REPEATS or taken_s < budget_s:
                samples[name].append(_sample(function))
    return samples


def _sample(function: Callable[[], object]) -> Sample:
    cpu_s, start_s = _cpu_s(), time.perf_counter()
    jax.block_until_ready(function())
    return Sample(time.perf_counter() - start_s, _cpu_s() - cpu_s)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def sample_summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Milliseconds of all samples, and their number.

    The keys: `median_ms`, `fastest_ms`, `spread_ms` (between the quartiles), `cpu_ms` (the median)
    and `repeats`.
    """
    walls_ms = [1e3 * s.wall_s for s in samples]
    quartiles = walls_ms * 3
    if len(walls_ms) > 1:
        quartiles = quantiles(walls_ms, n=4, method="inclusive")
    return {
        "median_ms": median(walls_ms),
        "fastest_ms": min(walls_ms),
        "spread_ms": quartiles[2] - quartiles[0],
        "cpu_ms": median(1e3 * s.cpu_s for s in samples),
        "repeats": len(samples),
    }


def paired_ratio(samples: Sequence[Sample], base: Sequence[Sample]) -> float:
    """Median over the rounds of one function's time over another's.

    Load that comes and goes falls on both and cancels.

    Args:
      samples: of the one function, from `interleaved`.
      base: of the other; rounds that one of both left out do not count.
    """
    return median(s.wall_s / b.wall_s for s, b in zip(samples, base, strict=False))


def machine() -> dict[str, object]:
    """What the numbers depend on: processor, cores, load and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        **{name: _version(name) for name in ("jax", "jaxlib", "torch")},
    }


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
    try:
        return version(package)
    except PackageNotFoundError:
        return None
