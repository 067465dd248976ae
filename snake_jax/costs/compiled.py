"""What the real compiler says of a program, for devices that need not be there, from shapes alone.

The TPU compiler runs on any machine where `libtpu` is installed: `jax.experimental.topologies`
describes chips, programs are compiled for them, and what does not fit is refused as on the chip.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from snake_jax import compiling
from snake_jax.costs import layers, shapes
from snake_jax.costs.flops import LayerCost
from snake_jax.costs.shapes import BatchShape, Step, StepProgram
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.language import Hidden, LanguageModel
from snake_jax.params import PyTree, without
from snake_jax.training import sharding

_REASON = 200  # characters of a refusal that are told
# The least that there is of each chip.
TOPOLOGIES = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}


class CompiledMemory(NamedTuple):
    """What the compiler reserves on a device, in bytes.

    Attributes:
      arguments: of the program.
      results: those that do not take the place of arguments.
      temporaries: all else.
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


class CompiledCost(NamedTuple):
    """What the compiler counts for a program.

    Attributes:
      flops: all, elementwise work among them.
      argument_bytes: of its arguments.
      temporary_bytes: of results and temporaries.
    """

    flops: int
    argument_bytes: int
    temporary_bytes: int


def devices(target: str) -> list[Any]:
    """The devices of a target: this machine's, or described ones.

    Args:
      target: `cpu`, `gpu` or `tpu` of this machine; `tpu:v5e` or `tpu:v5e:2x4` for any.

    Raises:
      UserError: an unknown target, no such device, or no TPU compiler here.
    """
    # After the colon a target is a described one: its compiler runs anywhere, the chip is nowhere.
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


def placed(device: Any, arguments: PyTree) -> PyTree:
    """Shapes with one device as their place."""
    place = SingleDeviceSharding(device)

    def put(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    return jax.tree.map(put, arguments)


def compile_placed(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    donate: Sequence[int] = (),
    work: str = "",
) -> Compiled | Refused:
    """Compiles a function for the devices that its arguments' shapes are placed on.

    Args:
      function: of arrays.
      arguments: their shapes, `placed`.
      donate: numbers of the arguments whose place results may take.
      work: see `compiling.options`; empty: what an engine does not run.
    """
    # As an engine compiles for that platform, which need not be this process's.
    options = compiling.options(work, _platform(arguments))
    jitted = jax.jit(function, donate_argnums=tuple(donate), compiler_options=options)
    lowered = jitted.lower(*arguments)
    # Too much memory is an answer; whatever else the compiler says is a bug.
    try:
        program: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Refused(_reason(str(error)))

    # Results that take the place of donated arguments are counted with those.
    memory = program.memory_analysis()
    reserved = CompiledMemory(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
    )
    costs = program.cost_analysis() or {}
    flops = costs.get("flops", 0.0)
    accessed_bytes = costs.get("bytes accessed", 0.0)
    return Compiled(reserved, flops, accessed_bytes, program)


def _platform(arguments: PyTree) -> str:
    """That shapes are placed on; empty: they have no place."""
    for leaf in jax.tree.leaves(arguments):
        if leaf.sharding is not None:
            (platform,) = {device.platform for device in leaf.sharding.device_set}
            return str(platform)
    return ""


def compiled_step(program: StepProgram, device: Any = None) -> Compiled | Refused:
    """Compiles one step.

    The compiler counts a loop's body once and the dearest branch of a condition; a step over a
    single batch is what it counts. Results that take the place of donated arguments are not counted
    twice.

    Args:
      program: from `shapes.step_program`. One of a mesh is compiled for that.
      device: to compile for otherwise; None: this machine's.
    """
    # A step on a mesh is for the mesh's devices, described ones too.
    arguments = program.arguments
    if program.mesh is not None:
        arguments = sharding.sharded_shapes(program.mesh, arguments)
    elif device is not None:
        arguments = placed(device, arguments)
    return compile_placed(program.function, arguments, donate=(0, 1), work=program.work)


def compiled_cost(
    step: Step, trained: Sequence[str], batch_size: int, frozen_dtype: str = "float32"
) -> CompiledCost:
    """What the compiler of this machine's device says of one step on images.

    Args:
      step: the local step.
      trained: the layers.
      batch_size: B.
      frozen_dtype: of the others, see `quantization.freeze`.

    Raises:
      MemoryError: it does not fit.
    """
    program = shapes.step_program(step, trained, BatchShape(batch_size), frozen_dtype)
    built = compiled_step(program)
    if isinstance(built, Refused):
        raise MemoryError(built.reason)
    memory = built.memory
    return CompiledCost(
        flops=int(built.flops),
        argument_bytes=memory.arguments,
        temporary_bytes=memory.temporaries + memory.results,
    )


def counted_row_costs(
    model: LanguageModel,
    adapters: lora.Lora | None,
    recompute: str,
    length: int,
    device: Any,
    rank: int = 0,
) -> tuple[LayerCost, ...]:
    """`layers.row_costs` as a device's compiler counts them.

    It is given one block and the output matrix with its loss, each unrolled: the step's own loops
    it would count once, whatever their length. Of a backward pass it tells the sum alone, what is
    computed again in it.

    Args:
      model: the network.
      adapters: that train in the place of blocks; None: whole layers do.
      recompute: what the backward pass keeps of a block, see `stack.run`.
      length: T, tokens.
      device: whose compiler.
      rank: see `layers.row_costs`.

    Raises:
      UserError: a block by itself does not fit.
    """

    def count(function: Callable[..., Any], *arguments: PyTree) -> int:
        built = compile_placed(function, placed(device, arguments))
        if isinstance(built, Refused):
            raise UserError(f"{model.name}: one block does not fit by itself: {built.reason}")
        return int(built.flops)

    # The same differences as in `layers.row_costs`, what is computed again left where it is.
    flops = layers.block_flops(model, adapters, recompute, length, count, rank)
    own_gradient = flops.trained - flops.through
    block = LayerCost(
        name="block",
        params=0,
        forward=flops.forward,
        input_gradient=flops.through,
        weight_gradient=own_gradient,
        inner_gradient=flops.lowest - own_gradient,
        looped=True,
    )
    loss, arguments = _loss_of(model, length)
    return layers.along_model(model, adapters, block, count(loss, *arguments), rank)


def _loss_of(model: LanguageModel, length: int) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """The output matrix and its loss for a row, as a function and its arguments' shapes."""
    params = shapes.model_shapes(model)
    head = without(params["head"], ["lm_head"])
    values = jax.ShapeDtypeStruct((1, length, model.architecture.hidden_size), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(head: PyTree, table: jax.Array, values: jax.Array, ids: jax.Array) -> jax.Array:
        hidden = model.finish(head, Hidden(values, ids, None))
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, ids).sum()

    return loss, (head, model.table(params), values, ids)


def _reason(text: str) -> str:
    """The line of a refusal that has the numbers, else its first."""
    # A refusal is pages long: the line that compares what is needed with what there is says it.
    first, *others = text.splitlines() or [""]
    for line in (first, *others):
        if "Used" in line or "Exceeded" in line or "exceed" in line:
            return line.strip()[:_REASON]
    return first[:_REASON]


def _described(target: str, chip: str, shape: str = "") -> list[Any]:
    """Devices that need not be there, of a chip in a topology such as `2x4`; empty: the least.

    Raises:
      UserError: no such chip or topology, no TPU compiler, or another process has it.
    """
    if chip not in TOPOLOGIES:
        raise UserError(f"--target={target}: want tpu:CHIP with CHIP of {', '.join(TOPOLOGIES)}")
    # Without these the TPU library asks the network for a machine that is not there.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    name = f"{chip}:{shape or TOPOLOGIES[chip]}"
    try:
        _let_flags_be_read(name)
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
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


@functools.cache
def _let_flags_be_read(chip: str) -> None:
    """Has the TPU compiler read `XLA_FLAGS` without what is told to the compilers of CPUs and GPUs.

    It reads them once, when it compiles first, and ends the process at a flag it does not know.

    Args:
      chip: such as `v5e:2x2`.
    """
    told = os.environ.get("XLA_FLAGS", "")
    of_others = ("--xla_cpu_", "--xla_gpu_")
    kept = [flag for flag in told.split() if not flag.startswith(of_others)]
    if len(kept) == len(told.split()):
        return
    # This process's own compiler reads all of them, when its devices are first asked for.
    jax.devices()
    device = topologies.get_topology_desc(chip, platform="tpu").devices[0]
    nothing = jax.jit(lambda: 0, out_shardings=SingleDeviceSharding(device))
    # A kept program can not be read back for a chip that is not here.
    shortest = "jax_persistent_cache_min_compile_time_secs"
    kept_from = getattr(jax.config, shortest)
    jax.config.update(shortest, math.inf)
    os.environ["XLA_FLAGS"] = " ".join(kept)
    try:
        nothing.lower().compile()
    finally:
        os.environ["XLA_FLAGS"] = told
        jax.config.update(shortest, kept_from)
