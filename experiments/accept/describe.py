"""The programs of the acceptance, compiled for a chip that need not be there.

The compiler's answer is that of the chip: what it refuses there it refuses here. Compiled are, by
stage, all forms of all kernels with what they are compared with (`kernels`, whose shapes are those
of `speed` too), every step (`large`, `memory`, `steps`), and every program of the runs of
`training`, `executors` and `figure5`, found by going through the run without a device (`dry`). What
spreads nodes over several devices is carried out on emulated ones instead, by the stage itself. The
images of `figure5` are the bundled digits here, which have CIFAR-10's shape and another number.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.accept import alone, dry, executors, material, steps, values
from experiments.accept.dry import Called
from experiments.accept.outcome import Outcome, line_of
from experiments.accept.sizes import Alone, Sizes
from experiments.accept.stages import Given
from experiments.accept.values import Comparison, comparisons
from experiments.bench.rows import HIGHER, Row
from experiments.reproduction import vision
from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.costs import compiled
from snake_jax.costs.compiled import Refused
from snake_jax.engines.programs import peak_bytes

TABLE = "Programs compiled"
STAGES = ("kernels", "training", "executors", "large", "memory", "steps", "figure5")
"""Those whose programs are compiled, in order."""
ON_ONE_DEVICE = ("loop", "scan", "vmap")


Peaks = dict[bytes, float]
"""Of the text that the compiler is given, as a digest, to the bytes that it reserved."""


class Described(NamedTuple):
    """A program to compile.

    Attributes:
      stage: that runs it.
      name: of it.
      compile: compiles it, and gives the bytes that are reserved.
    """

    stage: str
    name: str
    compile: Callable[[], float]


def run(
    sizes: Sizes, target: str, folder: Path, chosen: Sequence[str], say: Callable[[str], None]
) -> Outcome:
    """A row for each program; those that are refused are failures.

    Args:
      sizes: of the scale.
      target: such as `tpu:v5e`.
      folder: for the texts that runs read.
      chosen: stages; empty: all.
      say: is told of each program.
    """
    rows = []
    failures = []
    peaks: Peaks = {}
    for stage in STAGES:
        if chosen and stage not in chosen:
            continue
        for one in programs(stage, sizes, target, folder, peaks):
            told = f"{stage}: {one.name}"
            try:
                reserved = one.compile()
            except Exception as error:
                failures.append(f"{told}: {line_of(error)}")
                say(failures[-1])
                continue
            say(f"{told}: {reserved / 1e6:,.0f} MB")
            rows.append(Row(TABLE, told, "reserved", reserved / 1e6, "MB"))
    count = Row(TABLE, "all", "programs", len(rows), better=HIGHER, limit=1)
    return Outcome([*rows, count], failures)


def programs(
    stage: str, sizes: Sizes, target: str, folder: Path, peaks: Peaks
) -> Iterator[Described]:
    """Those of a stage; one that cannot even be found is one whose compilation fails.

    Args:
      stage: one of STAGES.
      sizes: of the scale.
      target: such as `tpu:v5e`.
      folder: for the texts that runs read.
      peaks: is read and added to: of the programs of runs, many of which have the same.
    """
    device = compiled.devices(target)[0]
    if stage == "kernels":
        yield from _kernels(sizes, device)
    elif stage in ("large", "memory"):
        for step in sizes.large if stage == "large" else sizes.memory:
            yield Described(stage, step.subject, functools.partial(_alone_bytes, step, target))
    elif stage == "steps":
        for step in sizes.steps:
            name = f"{step.subject}, beside the full step"
            yield Described(stage, name, functools.partial(_steps_bytes, step, target))
    else:
        for name, config in runs(stage, sizes, folder):
            yield from _of_run(stage, name, config, device, peaks)


def _kernels(sizes: Sizes, device: Any) -> Iterator[Described]:
    """Every form, the compiler's own operation, and the exact values."""
    for comparison in comparisons(sizes, device.platform):
        forms = dict(comparison.forms)
        if comparison.own not in forms.values():
            forms["compiler's own"] = comparison.own
        forms["exact"] = functools.partial(_exact, comparison)
        for name, form in forms.items():
            compile_form = functools.partial(_form_bytes, device, comparison, form)
            yield Described("kernels", f"{comparison.subject}, {name}", compile_form)


def _exact(comparison: Comparison, *given: Any) -> Any:
    return values.exact(comparison, given)


def runs(stage: str, sizes: Sizes, folder: Path) -> Iterator[tuple[str, RunConfig]]:
    """The runs of a stage, a cycle each: all cycles have the same programs.

    Args:
      stage: `training`, `executors` or `figure5`.
      sizes: of the scale.
      folder: where texts are written.
    """
    if stage == "training":
        images = ImageConfig(**{**sizes.images, "cycles": 1})
        text = {**sizes.text, "data": material.write_pairs(folder), "cycles": 1}
        yield "images", images
        yield "text", TextConfig(**text)
    elif stage == "executors":
        for config in executors.configs(Given(sizes, folder, "", 0.0)):
            for executor in ON_ONE_DEVICE:
                yield f"{config.model}, {executor}", executors.with_executor(config, executor)
    else:
        scale = vision.SCALES[sizes.figure]
        for case in vision.TOPIC.of_figure("5", scale):
            if case.epochs == min(scale.cycles) and case.seed == scale.seeds[0]:
                rate = scale.rates[case.method]
                cycles = vision.TOPIC.config(case, scale, {"data": "digits"}, rate)
                one_cycle = {**vars(cycles), "cycles": 1}
                yield f"{case.method}, {case.partition}", ImageConfig(**one_cycle)


def _of_run(
    stage: str, name: str, config: RunConfig, device: Any, peaks: Peaks
) -> Iterator[Described]:
    """The programs of a run, as it would call them on that device."""
    try:
        found = dry.called(config, device.platform)
    except Exception as error:
        yield Described(stage, name, functools.partial(_raise, error))
        return
    for one in found:
        compile_it = functools.partial(_called_bytes, device, one, peaks)
        yield Described(stage, f"{name}: {one.name}", compile_it)


def _raise(error: Exception) -> float:
    raise error


def _called_bytes(device: Any, one: Called, peaks: Peaks) -> float:
    """Of the program, which is compiled once however many runs call it."""
    lowered = dry.lowered_for(one, device)
    key = hashlib.sha256(lowered.as_text().encode()).digest()
    if key not in peaks:
        peaks[key] = float(peak_bytes(lowered.compile()))
    return peaks[key]


def _form_bytes(device: Any, comparison: Comparison, form: Callable[..., Any]) -> float:
    shapes = jax.eval_shape(comparison.make)
    # Kernels ask which chip it is that they are compiled for.
    with jax.default_device(device):
        arguments = compiled.placed(device, shapes)
        return _reserved(compiled.compile_placed(form, arguments))


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
