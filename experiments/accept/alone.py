"""A training step that has the device to itself: what it reserves, holds and takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.accept import noise
from experiments.accept.sizes import Alone
from experiments.bench.memory import grown_bytes
from snake_jax.costs import shapes
from snake_jax.costs.compiled import Compiled, Refused
from snake_jax.costs.timing import Sample, interleaved
from snake_jax.models.language import LanguageModel
from snake_jax.params import LayerNames
from snake_jax.profiling import ask, cases, subjects
from snake_jax.profiling.subjects import Subject

_BUDGET_S = 30.0  # of the repeats of one step


class Seen(NamedTuple):
    """Of one step.

    Attributes:
      compiled_bytes: that the compiler reserves.
      held_bytes: that the device held at most; None where it does not tell, or held more before.
      samples: times.
      finite: whether all that it told of its loss is a number.
    """

    compiled_bytes: int
    held_bytes: int | None
    samples: Sequence[Sample]
    finite: bool


class DoesNotFit(Exception):
    """The compiler's reason."""


def visit(step: Alone, target: str) -> tuple[Subject, LayerNames]:
    """What is profiled for it, and what the visit in the middle of a cycle trains.

    Args:
      step: which.
      target: see `costs.compiled.devices`.
    """
    settings: dict[str, Any] = {"batch_size": step.batch}
    if step.length:
        settings["max_length"] = step.length
    stored = [step.frozen_dtype] if step.frozen_dtype else []
    asked = ask.resolve(step.model, "snake", [step.train], stored, settings, target)
    way = asked.ways[0]
    work = cases.work(way.train, way.config, asked.model, target)
    trained = list(cases.assignments(work).values())
    return work.subject, trained[len(trained) // 2]


def compile_for(step: Alone, target: str) -> Compiled:
    """The step's program.

    Raises:
      DoesNotFit: the compiler refuses it for want of memory.
    """
    subject, trained = visit(step, target)
    built = subjects.compile_subject(subject, trained)
    if isinstance(built, Refused):
        raise DoesNotFit(f"{step.subject}: {built.reason}")
    return built


def seen(step: Alone, repeats: int) -> Seen:
    """The step compiled, and run, on this machine's device.

    Raises:
      DoesNotFit: the compiler refuses it for want of memory.
    """
    device = jax.devices()[0]
    subject, trained = visit(step, device.platform)
    built = subjects.compile_subject(subject, trained)
    if isinstance(built, Refused):
        raise DoesNotFit(f"{step.subject}: {built.reason}")
    program = shapes.step_program(
        subject.step, trained, subject.batch, subject.frozen_dtype, subject.adapters
    )
    arrays = noise.arguments(program, _choices(subject))
    runner = subjects.runner(subject, trained, built, arrays)

    # The first call is the one in which the greatest memory is seen. A CPU keeps no count: there
    # it is the arguments, and by how much the process grows.
    before_bytes = _most_held(device)
    if before_bytes is None:
        grown = grown_bytes(runner)
        held_bytes = None if grown is None else built.memory.arguments + grown
    else:
        jax.block_until_ready(runner())
        after_bytes = _most_held(device)
        held_bytes = None if after_bytes == before_bytes else after_bytes
    samples = interleaved({"step": runner}, repeats, _BUDGET_S)["step"]
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(runner()))
    return Seen(built.memory.peak, held_bytes, samples, finite)


def _choices(subject: Subject) -> int:
    """Of a token, or of a label."""
    model = subject.step.model
    if isinstance(model, LanguageModel):
        return int(model.architecture.vocab_size)
    return ask.CLASSES


def _most_held(device: Any) -> int | None:
    stats = device.memory_stats() or {}
    return stats.get("peak_bytes_in_use")
