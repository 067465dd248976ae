"""Steps timed on a device, against what the device was seen to do at best in the same run."""

import os
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import jax
from jax.typing import DTypeLike

from snake_jax.costs import roofline
from snake_jax.costs.compiled import Compiled
from snake_jax.costs.roofline import Peaks
from snake_jax.costs.timing import Sample, interleaved, paired_ratio
from snake_jax.profiling.rows import Built, MeasuredStep, ProfileRow

FULL = "full"
REPEATS = 9  # rounds
BUDGET_S = 20.0  # seconds after which slow steps leave out rounds


def peaks(device: Any, dtype: DTypeLike) -> Peaks:
    """What a device of this machine was seen to do at best, its products in `dtype`."""
    return roofline.measured_peaks(REPEATS, (dtype,), device)


def free_bytes(device: Any) -> int:
    """Memory that a program may still take: as the device tells, or the operating system."""
    # Accelerators count their own memory; a CPU's is the machine's.
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _free_of_machine_bytes()


def _free_of_machine_bytes() -> int:
    """What the operating system could give without swapping; else, what nobody has."""
    # Linux tells what it could give; elsewhere pages that nobody has are the best that is known.
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def timed_steps(
    rows: Sequence[ProfileRow],
    full: ProfileRow | None,
    runners: Mapping[str, Callable[[], Any]],
    at_best: Peaks,
    device: Any,
) -> dict[str, MeasuredStep]:
    """Times each row's step, and the full one, in turns.

    Load that comes and goes falls on all alike.

    Args:
      rows: compiled ones.
      full: that of full training; None where it does not run here.
      runners: by layer, `FULL` for full training.
      at_best: of the device.
      device: that they run on.

    Returns:
      By layer, `FULL` among them.
    """
    # Full training takes turns with the rows, to be compared with them round by round.
    every = {row.layer: row for row in rows}
    if full is not None:
        every[FULL] = full

    # Memory first: each step is the first of its program, so a peak that grows is its own.
    held, in_turns = {}, {}
    for layer in every:
        held[layer] = _peak_bytes(device, runners[layer])
        in_turns[layer] = runners[layer]
    samples = interleaved(in_turns, REPEATS, BUDGET_S / len(every))
    of_full = samples.get(FULL)
    found = {}
    for layer, row in every.items():
        found[layer] = _measured(row, samples[layer], of_full, held[layer], at_best)
    return found


def _measured(
    row: ProfileRow,
    samples: Sequence[Sample],
    full: Sequence[Sample] | None,
    peak_bytes: int | None,
    at_best: Peaks,
) -> MeasuredStep:
    """Medians of a step's samples; shares of the full step and of the roofline."""
    step_s = median(sample.wall_s for sample in samples)
    ratio = None if full is None else paired_ratio(samples, full)
    return MeasuredStep(step_s, ratio, peak_bytes, least_s(row, at_best) / step_s)


def least_s(row: ProfileRow, at_best: Peaks) -> float:
    """Seconds that the step takes at least, at the peak rates.

    Those of its FLOPs, or of its arguments and results moved once.

    Args:
      row: with its program.
      at_best: the rates.
    """
    moved_bytes = 0
    if row.built is not None and row.built.memory is not None:
        moved_bytes = row.built.memory.arguments + row.built.memory.results
    return at_best.least_s(row.flops.total, moved_bytes)


def runs_here(built: Built | None, device: Any) -> bool:
    """Whether a step was compiled and fits into what is free."""
    if built is None or not isinstance(built.result, Compiled):
        return False
    return built.result.memory.peak < free_bytes(device)


def _peak_bytes(device: Any, runner: Callable[[], Any]) -> int | None:
    """What the device held at most in a step, where it tells and nothing before it held more."""
    # The device keeps the highest mark of its life: where a step does not raise it, an earlier
    # program held more, and nothing is known of this one.
    before_bytes = _held_at_most(device)
    jax.block_until_ready(runner())
    after_bytes = _held_at_most(device)
    return None if after_bytes == before_bytes else after_bytes


def _held_at_most(device: Any) -> int | None:
    """Bytes that the device has ever held; None where it does not tell."""
    stats = device.memory_stats() or {}
    return stats.get("peak_bytes_in_use")
