"""What the compiler says of a function for a TPU that is not here: memory, bytes and cycles."""

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from snake_jax.costs import compiled

CHIPS = ("v5e", "v6e")
PEAKS = {"v5e": (197e12, 819e9), "v6e": (918e12, 1640e9)}
"""bfloat16 FLOP/s and bytes/s of HBM of a chip, as published: cloud.google.com/tpu/docs/v5e and
v6e.
"""

_FUSION = re.compile(r'%(\S+) = .*"estimated_cycles":"(\d+)".*"iteration_bounds":\[([^\]]*)\]')


class _Fusion(NamedTuple):
    estimated_cycles: int
    iterations: int
    is_product: bool


class Described(NamedTuple):
    """Of a program for one chip.

    Attributes:
      temporary_bytes: that it reserves besides arguments and results.
      accessed_bytes: that its instructions read and write by the compiler's count, VMEM among them;
        a Pallas call counts what its author said (`cost_estimate`).
      cycles: of its kernels' schedules, see `scheduled_cycles`; None where none were dumped.
      program: its text.
    """

    temporary_bytes: int
    accessed_bytes: float
    cycles: int | None
    program: str


@contextlib.contextmanager
def dumped_schedules() -> Iterator[Path]:
    """A folder that the TPU compiler dumps schedules into.

    Only before it is first used can it be told.
    """
    before = os.environ.get("LIBTPU_INIT_ARGS", "")
    with tempfile.TemporaryDirectory() as folder:
        # Of all passes' dumps only the last: together they are hundreds of megabytes a program.
        passes = "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true {passes}"
        os.environ["LIBTPU_INIT_ARGS"] = f"{before} {flags}".strip()
        try:
            yield Path(folder)
        finally:
            os.environ["LIBTPU_INIT_ARGS"] = before


def described(
    chip: str,
    function: Callable[..., Any],
    shapes: tuple[Any, ...],
    schedules: Path | None = None,
    steps: int = 1,
) -> Described | None:
    """Compiles for `tpu:chip`; None where the compiler refuses for want of memory.

    Args:
      chip: such as `v5e`.
      function: to compile.
      shapes: its arguments' shapes and types.
      schedules: folder of `dumped_schedules`; None: cycles are not counted.
      steps: of a Pallas call's grid.
    """
    # Dumps of the program before are not this one's.
    if schedules:
        for old in schedules.iterdir():
            old.unlink()
    device = compiled.devices(f"tpu:{chip}")[0]
    with jax.default_device(device):  # kernels ask which chip it is
        program = compiled.compile_placed(function, compiled.placed(device, shapes))
    if isinstance(program, compiled.Refused):
        return None
    text = program.program.as_text()
    cycles = None
    if schedules:
        cycles = scheduled_cycles(text, _bundles(schedules), steps)
    return Described(program.memory.temporaries, program.accessed_bytes, cycles, text)


class Placed(NamedTuple):
    """How many arrays of one shape a program writes to VMEM, and how many to HBM."""

    vmem: int
    hbm: int


def placed(program: str, dtype: str, shape: tuple[int, int]) -> Placed:
    """Where the kernels of a compiled program write arrays of a shape, or of its transpose.

    Args:
      program: as the compiler prints it.
      dtype: such as `f32`.
      shape: of two sides.
    """
    # What a fusion computes inside is written nowhere.
    inside = set(re.findall(r"calls=%([\w.-]+)", program))
    vmem = 0
    hbm = 0
    computation = ""
    for line in program.splitlines():
        header = re.match(r"(?:ENTRY )?%([\w.-]+) \(", line)
        if header:
            computation = header[1]
            continue
        result = re.match(r".* = (.*?) (?:fusion|custom-call|copy)\(", line)
        if computation in inside or not result:
            continue
        written = re.findall(rf"{dtype}\[(\d+),(\d+)\](\{{[^}}]*\}})", result[1])
        for rows, columns, layout in written:
            if sorted([int(rows), int(columns)]) != sorted(shape):
                continue
            # Memory space 1 is VMEM.
            if "S(1)" in layout:
                vmem += 1
            else:
                hbm += 1
    return Placed(vmem, hbm)


def scheduled_cycles(program: str, bundles: dict[str, int], steps: int) -> int | None:
    """Cycles that the kernels of a program are issued in, stalls left out.

    A kernel's bundles of instructions, one a cycle, times the steps of its grid. A matrix product's
    bundles are in loops, so of XLA's own the compiler's estimate is taken.
    """
    if not bundles:
        return None
    lines = [(match, line) for line in program.splitlines() if (match := _FUSION.search(line))]
    of_xla = {
        match[1]: _Fusion(int(match[2]), _product(match[3]), "convolution" in line)
        for match, line in lines
    }
    return sum(
        _issued(of_xla.get(name, _Fusion(0, steps, False)), count)
        for name, count in bundles.items()
    )


def _issued(fusion: _Fusion, bundles: int) -> int:
    return fusion.estimated_cycles if fusion.is_product else bundles * fusion.iterations


def _product(bounds: str) -> int:
    return math.prod(int(bound) for bound in re.findall(r"\d+", bounds))


def _bundles(folder: Path) -> dict[str, int]:
    """Instruction bundles of each kernel, by its name in the program."""
    found = {}
    for path in folder.glob("*schedule-analysis_final_bundles*"):
        name = re.sub(r"-\d+-schedule-analysis.*", "", path.name).split("-", 1)[1]
        if name != "TLP" and not name.startswith("<"):
            (count,) = re.findall(r"total scheduled bundles:\s+(\d+)", path.read_text())
            found[name] = int(count)
    return found
