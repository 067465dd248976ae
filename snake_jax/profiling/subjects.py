"""What a profile is of: a step on a batch with one way to store, of images or of language alike.

All that shapes and compilers say of it, as functions of what trains.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from snake_jax.costs import compiled, flops, layers, memory, shapes
from snake_jax.costs.compiled import Compiled, Refused
from snake_jax.costs.flops import LayerCost, StepFlops
from snake_jax.costs.memory import StateBytes
from snake_jax.costs.shapes import BatchShape, Step, StepProgram
from snake_jax.models import lora
from snake_jax.models.attention import SCORE_BYTES
from snake_jax.models.language import LanguageModel
from snake_jax.params import LayerNames
from snake_jax.profiling.rows import Counted, ProfileRow, Sent


class Subject(NamedTuple):
    """One way to train and store a model.

    Attributes:
      step: the local step.
      batch: what it takes at once.
      frozen_dtype: of what does not train, see `quantization.freeze`.
      target: see `compiled.devices`; empty: nothing is compiled.
      adapters: that train in the place of blocks; None: whole layers do.
      rank: how many columns of them the node trains; 0: all.
    """

    step: Step
    batch: BatchShape
    frozen_dtype: str
    target: str = ""
    adapters: lora.Lora | None = None
    rank: int = 0


def row_of(
    subject: Subject, layer: str, trained: LayerNames, sent: Sent | None = None
) -> ProfileRow:
    """What shapes alone say of an assignment.

    Args:
      subject: that is profiled.
      layer: the one that the row is about.
      trained: what trains.
      sent: bytes that the visit sends.
    """
    params = 0
    for cost in _costs(subject):
        if cost.name in trained:
            params += cost.params
    return ProfileRow(
        layer=layer,
        trained=trained,
        params=params,
        flops=subject_flops(subject, trained),
        state=state(subject, trained),
        sent=sent,
    )


def subject_flops(subject: Subject, trained: LayerNames) -> StepFlops:
    """FLOPs of a step, by what they are for."""
    return _walked(subject, _costs(subject), trained)


def state(subject: Subject, trained: LayerNames) -> StateBytes:
    """Bytes that a node holds through a visit."""
    # Alike blocks hold the same: counted once for all assignments of as many.
    return _state(subject, shapes.first_alike(subject.step, trained))


@functools.lru_cache(maxsize=256)
def _state(subject: Subject, trained: LayerNames) -> StateBytes:
    held = subject.frozen_dtype, subject.adapters, subject.batch.size
    return memory.state_bytes(subject.step, trained, *held, rank=subject.rank)


def compile_subject(subject: Subject, trained: LayerNames) -> Compiled | Refused:
    """A step, compiled for the subject's target."""
    return compiled.compiled_step(_program(subject, trained), _device(subject))


def counted(subject: Subject, trained: LayerNames, built: Compiled | Refused) -> Counted | None:
    """The compiler's count of a step's FLOPs beside the formula's; None where there is none.

    Args:
      subject: that is profiled.
      trained: what trains.
      built: from `compiled_step`. Of language models its count is of no use, since it counts the
        loops over blocks once: they are counted a block at a time, in rows that are short enough.
    """
    model, batch = subject.step.model, subject.batch
    if not isinstance(model, LanguageModel):
        # Networks for images have no loops: the step as compiled is what is counted.
        if isinstance(built, Refused):
            return None
        return Counted(built.flops, subject_flops(subject, trained).total)

    # The compiler is given a row of text, the formula the whole batch.
    length = unbroken_length(model, batch.length)
    short = subject._replace(batch=batch._replace(length=length))
    recompute = shapes.recompute_of(subject.step)
    costs = _compilers_costs(model, subject.adapters, recompute, length, subject.rank)
    row_flops = _walked(short, costs, trained).total
    formula_flops = subject_flops(short, trained).total
    return Counted(batch.size * row_flops, formula_flops)


def runner(
    subject: Subject, trained: LayerNames, built: Compiled, arrays: list[Any]
) -> Callable[[], Any]:
    """A function of nothing that does one step more on this machine's device.

    Args:
      subject: that is profiled.
      trained: what trains.
      built: its program.
      arrays: the arguments that all runners of this program share: made here where it is empty, and
        replaced as the program takes their place.
    """
    program = _program(subject, trained)
    with jax.default_device(_device(subject)):
        if not arrays:
            arrays += shapes.zeros(program)
        _, _, *rest = program.aimed(tuple(arrays))

    # What trains and its optimizer states are donated: the results are the next step's.
    def one_step() -> Any:
        arrays[0], arrays[1], stats = built.program(arrays[0], arrays[1], *rest)
        return stats

    return one_step


def unbroken_length(model: LanguageModel, length: int) -> int:
    """The length, halved until attention of a row is computed whole.

    In parts it would be a loop, which the compiler counts once.
    """
    heads = model.architecture.num_attention_heads
    # The scores of a row, [heads, length, length] in float32, 4 bytes each.
    while 4 * heads * length**2 > SCORE_BYTES:
        length //= 2
    return length


def _program(subject: Subject, trained: LayerNames) -> StepProgram:
    return shapes.step_program(
        subject.step,
        trained,
        subject.batch,
        subject.frozen_dtype,
        subject.adapters,
        subject.rank,
    )


def _device(subject: Subject) -> Any:
    """The first of the target's."""
    return compiled.devices(subject.target)[0] if subject.target else None


def _walked(subject: Subject, costs: tuple[LayerCost, ...], trained: LayerNames) -> StepFlops:
    """FLOPs of a step by the costs of its layers, with the step's teacher and dropout."""
    step = subject.step
    return flops.step_parts(
        costs,
        trained,
        teacher=step.distillation is not None,
        stochastic=step.model.stochastic,
    )


@functools.lru_cache(maxsize=32)
def _costs(subject: Subject) -> tuple[LayerCost, ...]:
    """Of a batch."""
    return layers.batch_costs(subject.step, subject.batch, subject.adapters, subject.rank)


@functools.lru_cache(maxsize=32)
def _compilers_costs(
    model: LanguageModel, adapters: lora.Lora | None, recompute: str, length: int, rank: int
) -> tuple[LayerCost, ...]:
    """Of a row of text, by this machine's compiler.

    It counts in seconds what that of a described TPU counts in minutes.
    """
    device = jax.devices()[0]
    return compiled.counted_row_costs(model, adapters, recompute, length, device, rank)
