"""What compiling a run's programs takes, program by program, and what is left of it where they are
kept.

Seconds of cores are what counts: a program is traced by one thread and compiled by as many as the
machine has. The floor is a program that was compiled by an earlier launch and is only read.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.bench.rows import LOWER, Measured, Request, Row, measured
from snake_jax.config import ImageConfig
from snake_jax.engines.orders import group_sizes
from snake_jax.engines.programs import EVALUATE, Program
from snake_jax.runs import loop

REPEATS = 3
TABLE = "Programs of the demo"
DEMO = ImageConfig(
    algorithm="snake",
    model="vgg11",
    width=0.25,
    dataset="digits",
    nodes=9,
    partition="dirichlet",
    alpha=2.0,
    cycles=1,
    learning_rate=0.05,
    distill="off",
)
QUICK = ImageConfig(algorithm="snake", model="mlp", width=0.25, dataset="digits", nodes=2, cycles=1)
NOTES = (
    "A fusion is a kernel that the compiler made of several operations, and compiles by itself.",
    "Read: the same program where an earlier launch kept it.",
)


class Took(NamedTuple):
    """Seconds of one stage: of all cores of this process, and on the clock."""

    cpu_s: float
    wall_s: float


def run(request: Request) -> Measured:
    """Every program of a cycle, and that of the evaluation."""
    config = QUICK if request.quick else DEMO
    setup = loop.prepare(config)
    engine: Any = loop.make_engine(setup)
    params = setup.task.like(setup.job)
    programs: dict[Program, tuple[str, ...]] = {}
    for visits in loop.planned(setup):
        for layers in group_sizes(visits):
            programs[Program("train", layers)] = layers

    rows: list[Row] = []
    for program, layers in programs.items():
        subject = " ".join(layers)
        request.say(f"compile: {subject}")

        def lower(program: Program = program, layers: tuple[str, ...] = layers) -> Any:
            return engine._lowered(program, layers, params, None)

        rows += _rows(subject, lower, request.repeats or REPEATS)
    (held_out,) = engine._feed.held_out()

    def evaluation() -> Any:
        return engine._jitted(EVALUATE).lower(params, *held_out.arrays)

    request.say("compile: evaluation")
    rows += _rows("evaluation", evaluation, request.repeats or REPEATS)
    engine.close()
    return Measured(rows, {}, NOTES)


def _rows(subject: str, lower: Callable[[], Any], repeats: int) -> list[Row]:
    """Traced, compiled and read as often as asked for."""
    traced, compiled, read = list[Took](), list[Took](), list[Took]()
    fusions = 0
    for _ in range(repeats):
        with _kept_in_a_new_folder():
            lowered, took = _timed(lower)
            traced.append(took)
            program, took = _timed(lowered.compile)
            compiled.append(took)
            fusions = program.as_text().count(" fusion(")
            # Traced anew: what was lowered once remembers its program.
            _, took = _timed(lower().compile)
            read.append(took)
    rows = []
    for name, found in (("trace", traced), ("compile", compiled), ("read", read)):
        rows.append(measured(TABLE, subject, name, [took.cpu_s for took in found], "s of cores"))
    rows.append(measured(TABLE, subject, "compile, clock", [one.wall_s for one in compiled], "s"))
    rows.append(Row(TABLE, subject, "fusions", fusions, "kernels", better=LOWER))
    return rows


def _timed(work: Callable[[], Any]) -> tuple[Any, Took]:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    result = work()
    return result, Took(time.process_time() - cpu_s, time.perf_counter() - wall_s)


@contextmanager
def _kept_in_a_new_folder() -> Iterator[None]:
    """Has jax keep programs where none are."""
    before = {name: jax.config.values[name] for name in _SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        _configure(dict(zip(_SETTINGS, (folder, 0.0), strict=True)))
        try:
            yield
        finally:
            _configure(before)


_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # jax opens its folder once, on first use.
    compilation_cache.reset_cache()
