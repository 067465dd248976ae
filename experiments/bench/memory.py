"""What a step takes of memory: by formula, by the compiler, and as the process grows.

Full training against Snake's visits and adapters, compiled for this machine's CPU.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.bench import llama, vgg
from experiments.bench.kernels.conv import Network
from experiments.bench.rows import LOWER, Measured, Request, Row, measured
from snake_jax.costs.memory import state_bytes
from snake_jax.models import lora

REPEATS = 3
TABLE = "Memory of a step, MB"
NOTES = (
    "State: weights, gradients and optimizer states, from shapes. Arguments and temporaries: the "
    "compiler's for a lone "
    "step, results that take the place of arguments not counted twice. Grown: the process's "
    "greatest resident memory "
    "during a call over that before it, with all arguments in place.",
)


class TrainingWay(NamedTuple):
    """One way to train.

    Attributes:
      subject: its name in the table.
      state_bytes: by formula.
      step: a program with its arguments in place.
    """

    subject: str
    state_bytes: int
    step: Any


def run(request: Request) -> Measured:
    """All cases, those of a network under its full step."""
    network = vgg.QUICK if request.quick else Network()
    sizes = llama.QUICK if request.quick else llama.SIZES
    rows: list[Row] = []
    for ways in (_vgg(network), _llama(sizes)):
        full_peak = 0.0  # of the first way, which trains everything
        for way in ways:
            request.say(f"memory: {way.subject}")
            mine = _rows(way, request.repeats or REPEATS)
            peak = next(row.value for row in mine if row.name == "compiled peak")
            full_peak = full_peak or peak
            share = Row(TABLE, way.subject, "peak / full", peak / full_peak, better=LOWER)
            rows += [*mine, share]
    return Measured(rows, {}, NOTES)


def _vgg(network: Network) -> Iterator[TrainingWay]:
    step = vgg.local_step(network)
    names = step.model.layer_names
    middle = names[len(names) // 2]
    for trained in (names, (names[0], middle, names[-1]), (middle,)):
        state = state_bytes(step, tuple(trained)).total
        subject = "full" if trained is names else " ".join(trained)
        yield TrainingWay(f"VGG-11, {subject}", state, vgg.Step(network, trained))


def _llama(sizes: llama.Sizes) -> Iterator[TrainingWay]:
    for way in ("full", f"block {sizes.blocks // 2}", "LoRA"):
        step = llama.language_step(sizes, adapted=way == "LoRA")
        adapters = lora.Lora(sizes.rank) if step.adapted else None
        trained = llama.trained(sizes, way)
        state = state_bytes(step, trained, "float32", adapters).total
        yield TrainingWay(f"Llama, {way}", state, llama.Step(sizes, way))


def _rows(way: TrainingWay, repeats: int) -> list[Row]:
    memory = way.step.program.memory_analysis()
    # Results that take the place of arguments are no memory of their own.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + results
    counted = {
        "state": way.state_bytes,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": temporaries,
        "compiled peak": memory.argument_size_in_bytes + temporaries,
    }
    rows = []
    for name, size in counted.items():
        rows.append(Row(TABLE, way.subject, name, size / 1e6, better=LOWER))
    grown_mb = []
    for _ in range(repeats):
        size = grown_bytes(way.step)
        if size is not None:
            grown_mb.append(size / 1e6)
    if grown_mb:
        rows.append(measured(TABLE, way.subject, "grown", grown_mb))
    return rows


def grown_bytes(call: Callable[[], object]) -> int | None:
    """By how much this process's resident memory grows at most during a call.

    None: this system does not tell.
    """
    if sys.platform != "linux":
        return None
    trim()  # what was freed before would hide what is taken now
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the greatest value starts anew: proc(5)
    except OSError:
        return None
    before = resident_bytes("VmRSS")
    jax.block_until_ready(call())
    return resident_bytes("VmHWM") - before


def trim() -> None:
    """Gives the system back what this process has freed, where the C library can."""
    with contextlib.suppress(AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(name: str) -> int:
    """What Linux says of this process by a name of proc(5), such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")
