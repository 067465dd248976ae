"""Every step and kernel of the acceptance, compiled for a chip that need not be there.

The compiler's answer is that of the chip: what it refuses there it refuses here. What is compiled
are the programs of the stages `kernels`, `large`, `memory`, `steps` and, of `training` and
`executors`, the steps; how runs are evaluated and what emulates several nodes is carried out on
emulated devices instead, by the stages themselves.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.accept import alone, steps
from experiments.accept.outcome import Outcome, line_of
from experiments.accept.sizes import Alone, Sizes
from experiments.accept.values import Comparison, comparisons
from experiments.bench.rows import HIGHER, Row
from snake_jax.costs import compiled
from snake_jax.costs.compiled import Refused

TABLE = "Programs compiled"
Compile = Callable[[], float]
"""Compiles, and gives the bytes that are reserved."""


def run(sizes: Sizes, target: str, say: Callable[[str], None]) -> Outcome:
    """A row for each program; those that are refused are failures.

    Args:
      sizes: of the scale.
      target: such as `tpu:v5e`.
      say: is told of each program.
    """
    rows = []
    failures = []
    for name, compile_program in programs(sizes, target):
        try:
            reserved = compile_program()
        except Exception as error:
            failures.append(f"{name}: {line_of(error)}")
            say(failures[-1])
            continue
        say(f"{name}: {reserved / 1e6:,.0f} MB")
        rows.append(Row(TABLE, name, "reserved", reserved / 1e6, "MB"))
    count = Row(TABLE, "all", "programs", len(rows), better=HIGHER, limit=1)
    return Outcome([*rows, count], failures)


def programs(sizes: Sizes, target: str) -> Iterator[tuple[str, Compile]]:
    """Name and compilation of each."""
    device = compiled.devices(target)[0]
    for comparison in comparisons(sizes, device.platform):
        for form in comparison.forms:
            yield (
                f"{comparison.subject}, {form}",
                _bound(_form_bytes, device, comparison, form),
            )
    for step in dict.fromkeys([*sizes.large, *sizes.memory, *launched(sizes)]):
        yield step.subject, _bound(_alone_bytes, step, target)
    for step in sizes.steps:
        yield f"{step.subject}, beside the full step", _bound(_steps_bytes, step, target)


def launched(sizes: Sizes) -> list[Alone]:
    """The steps that the launches of the stages train with."""
    batch = sizes.images.get("batch_size", 32)
    images = Alone(sizes.images["model"], "block+ends", "float32", batch)
    whole = Alone(sizes.images["model"], "full", "", batch)
    text = sizes.text["batch_size"], sizes.text["max_length"]
    return [images, whole, Alone("tiny-llama", "block", "bfloat16", *text)]


def _bound(function: Callable[..., float], *given: Any) -> Compile:
    def compile_program() -> float:
        return function(*given)

    return compile_program


def _form_bytes(device: Any, comparison: Comparison, form: str) -> float:
    shapes = jax.eval_shape(comparison.make)
    # Kernels ask which chip it is that they are compiled for.
    with jax.default_device(device):
        arguments = compiled.placed(device, shapes)
        return _reserved(compiled.compile_placed(comparison.forms[form], arguments))


def _alone_bytes(step: Alone, target: str) -> float:
    return _reserved(alone.compile_for(step, target))


def _steps_bytes(step: Alone, target: str) -> float:
    """Of the dearest of its visits and the full step."""
    case, _, _ = steps.compiled_case(step, target)
    most = 0.0
    for row in (*case.rows, case.full):
        assert row.built is not None
        most = max(most, _reserved(row.built.result))
    return most


def _reserved(built: compiled.Compiled | Refused) -> float:
    if isinstance(built, Refused):
        raise MemoryError(built.reason)
    return float(built.memory.peak)
