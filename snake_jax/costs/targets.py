"""Programs compiled for chips that need not be there: what the real compiler says of a program,
from shapes alone.

The TPU compiler runs on any machine where `libtpu` is installed: `jax.experimental.topologies`
describes chips, programs are compiled for them, and what does not fit is refused as on the chip.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from snake_jax.errors import UserError
from snake_jax.params import PyTree

TOPOLOGIES = {
    "v4": "2x2x1",
    "v5e": "2x2",
    "v5p": "2x2x1",
    "v6e": "2x2",
}  # the least that there is of each


class CompiledMemory(NamedTuple):
    """What the compiler reserves on a device, in bytes: arguments, results not in their place, and
    temporaries.
    """

    arguments: int
    results: int
    temporaries: int

    @property
    def peak(self) -> int:
        """The sum."""
        return sum(self)


class Compiled(NamedTuple):
    """What the compiler says of a program, for each device.

    Attributes:
      memory: bytes that it reserves.
      flops: as it counts them: a loop's body once whatever its length, of a condition the dearer
        branch.
      accessed_bytes: that its instructions read and write, counted likewise.
      program: the executable; it runs where the target is this machine's device.
    """

    memory: CompiledMemory
    flops: float
    accessed_bytes: float
    program: Any


class Refused(NamedTuple):
    """The compiler's reason why the program does not fit."""

    reason: str


def devices(target: str) -> list[Any]:
    """The devices of a target: this machine's (`cpu`, `gpu`, `tpu`), or described ones: `tpu:v5e`,
    `tpu:v5e:2x4`.

    Raises:
      UserError: an unknown target, no such device, or no TPU compiler here.
    """
    kind, *described = target.split(":")
    if kind == "tpu" and 1 <= len(described) <= 2:
        return _described(target, *described)
    if described or kind not in ("cpu", "gpu", "tpu"):
        raise UserError(
            f"--target={target}: want cpu, gpu, tpu or tpu:CHIP with CHIP of "
            f"{', '.join(TOPOLOGIES)}"
        )
    try:
        return jax.devices(kind)
    except RuntimeError:
        raise UserError(
            f"--target={target}: there is no {kind} here; tpu:CHIP targets compile anywhere"
        ) from None


def on(device: Any, arguments: PyTree) -> PyTree:
    """Shapes with one device as their place."""
    place = SingleDeviceSharding(device)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)


def compiled(
    function: Callable[..., Any], arguments: tuple[Any, ...], donate: Sequence[int] = ()
) -> Compiled | Refused:
    """Compiles a function for the devices that its arguments' shapes are placed on."""
    lowered = jax.jit(function, donate_argnums=tuple(donate)).lower(*arguments)
    try:
        program: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Refused(_reason(str(error)))
    memory, costs = program.memory_analysis(), program.cost_analysis() or {}
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    reserved = CompiledMemory(memory.argument_size_in_bytes, results, memory.temp_size_in_bytes)
    return Compiled(reserved, costs.get("flops", 0.0), costs.get("bytes accessed", 0.0), program)


def _reason(text: str) -> str:
    lines = [
        line.strip()
        for line in text.splitlines()
        if "Used" in line or "Exceeded" in line or "exceed" in line
    ]
    return " ".join(lines[:1] or text.splitlines()[:1])[:200]


def _described(target: str, chip: str, shape: str = "") -> list[Any]:
    if chip not in TOPOLOGIES:
        raise UserError(f"--target={target}: want tpu:CHIP with CHIP of {', '.join(TOPOLOGIES)}")
    # Without these the TPU library asks the network for a machine that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return list(
            topologies.get_topology_desc(
                f"{chip}:{shape or TOPOLOGIES[chip]}", platform="tpu"
            ).devices
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if "lockfile" in str(error):
            way = "wait, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1"
            raise UserError(
                f"--target={target}: another process uses the TPU compiler; {way}"
            ) from None
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"--target={target}: no TPU compiler here ({reason}); pip install libtpu"
        ) from None
