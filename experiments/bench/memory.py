"""What a step takes of memory: state by formula, what the compiler reserves, what the process grows
by.

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


class Case(NamedTuple):
    """One way to train: what its state takes by formula, and a program with its arguments in
    place.
    """

    subject: str
    state_bytes: int
    step: Any


def run(request: Request) -> Measured:
    """All cases, those of a network under its full step."""
    network, sizes = (vgg.QUICK, llama.QUICK) if request.quick else (Network(), llama.SIZES)
    rows: list[Row] = []
    for cases in (_vgg(network), _llama(sizes)):
        full: dict[str, float] = {}
        for case in cases:
            request.say(f"memory: {case.subject}")
            own = _rows(case, request.repeats or REPEATS)
            full = full or {row.name: row.value for row in own}
            peak = next(row for row in own if row.name == "compiled peak")
            share = Row(
                TABLE, case.subject, "peak / full", peak.value / full["compiled peak"], better=LOWER
            )
            rows += [*own, share]
    return Measured(rows, {}, NOTES)


def _vgg(network: Network) -> Iterator[Case]:
    step, names = vgg.local_step(network), network.build(vgg.OURS).layer_names
    middle = names[len(names) // 2]
    for trained in (names, (names[0], middle, names[-1]), (middle,)):
        state = state_bytes(step, tuple(trained)).total
        subject = "full" if trained is names else " ".join(trained)
        yield Case(f"VGG-11, {subject}", state, vgg.Step(network, trained))


def _llama(sizes: llama.Sizes) -> Iterator[Case]:
    for way in ("full", f"block {sizes.blocks // 2}", "LoRA"):
        step = llama.language_step(sizes, adapted=way == "LoRA")
        adapters = lora.Lora(sizes.rank) if step.adapted else None
        trained = llama.trained(sizes, way)
        state = state_bytes(step, trained, "float32", adapters).total
        yield Case(f"Llama, {way}", state, llama.Step(sizes, way))


def _rows(case: Case, repeats: int) -> list[Row]:
    memory = case.step.program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + results
    counted = {
        "state": case.state_bytes,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": temporaries,
        "compiled peak": memory.argument_size_in_bytes + temporaries,
    }
    rows = [
        Row(TABLE, case.subject, name, size / 1e6, better=LOWER) for name, size in counted.items()
    ]
    grown = [
        size / 1e6 for _ in range(repeats) for size in [grown_bytes(case.step)] if size is not None
    ]
    return [*rows, *([measured(TABLE, case.subject, "grown", grown)] if grown else [])]


def grown_bytes(call: Callable[[], object]) -> int | None:
    """By how much this process's resident memory grows at most during a call; None: this system
    does not tell.
    """
    if sys.platform != "linux":
        return None
    with contextlib.suppress(AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the greatest value starts anew: proc(5)
    except OSError:
        return None
    before = _resident_bytes("VmRSS")
    jax.block_until_ready(call())
    return _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
