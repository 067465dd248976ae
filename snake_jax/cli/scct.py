"""Carries out `snake-jax scct`: solves a scenario, draws one, repeats a figure, or trains."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from absl.flags import FlagValues
from rich.console import Console

from snake_jax import names
from snake_jax.cli import scct_solution
from snake_jax.cli.commands import scct_train
from snake_jax.cli.commands.command import Given
from snake_jax.cli.scct_solution import Fresh
from snake_jax.errors import UserError
from snake_jax.scct import bound, drawing, large, scenario, small
from snake_jax.scct.drawing import LAW
from snake_jax.scct.scenario import Scenario
from snake_jax.scct.small import Solver
from snake_jax.scct.valued import Watch

# What there is to do, and the flags that say how.
_TASKS = {
    "solve": ("solver", "splits", "seed", "fresh", "out"),
    "random": ("out",),
    "figure": ("scale", "cloud_flops", "out"),
    "train": ("splits", "seed", "workdir", *scct_train.FIELDS),
}
# Of fresh samples: far from the seeds that people give to --random, whose samples these would be.
_FRESH_SEED = 1_000_000_007


def main(given: Given) -> None:
    """One of the four."""
    flags = given.flags
    asked = [name for name in _TASKS if flags[name].value]
    if len(asked) != 1:
        raise UserError(
            f"{', '.join('--' + name for name in asked) or 'nothing to do'}: give one of "
            f"--solve=SCENARIO.json, --random=SEED,N,K,Q, --figure and --train"
        )
    (task,) = asked
    every = {name for names_of_task in _TASKS.values() for name in names_of_task}
    for name in sorted(every):
        if flags[name].present and name not in _TASKS[task]:
            raise UserError(f"--{name}: says nothing to --{task}; leave it out")
    if task == "random":
        _draw(flags)
    elif task == "solve":
        _solve(flags)
    elif task == "train":
        _train(flags)
    else:
        _figure(given)


def _train(flags: FlagValues) -> None:
    """Trains, or goes on training."""
    # Here, since models take seconds to import.
    from snake_jax.cli.scct_train import run

    _method(flags.splits)
    run(scct_train.settings(flags.train, flags), flags.workdir)


def _draw(flags: FlagValues) -> None:
    """Writes a scenario."""
    if not flags.out:
        raise UserError("--out: the file that the scenario is written to is missing")
    seed, nodes, subcarriers, samples = _numbers(flags.random)
    found = drawing.drawn(seed, nodes, subcarriers, samples)
    _write(flags.out, scenario.content(found))


def _numbers(words: Sequence[str]) -> list[int]:
    """Of --random; the first may be 0."""
    said = f"--random={','.join(words)}"
    if len(words) != 4 or not all(word.strip().isdecimal() for word in words):
        raise UserError(f"{said}: want four whole numbers SEED,N,K,Q, as 0,4,16,5")
    return [int(word) for word in words]


def _solve(flags: FlagValues) -> None:
    """Splits, then allocations; the table, and the file."""
    solver: Solver = flags.solver
    method = _method(flags.splits)
    if flags.out and Path(flags.out).resolve() == Path(flags.solve).resolve():
        raise UserError(f"--out={flags.out}: is the scenario itself; name another file")
    problem = scenario.read(flags.solve)
    started = time.monotonic()
    with _watched() as watch:
        found = large.solve(problem, method, flags.seed, solver, watch=watch)
    took_s = time.monotonic() - started
    solution = scct_solution.content(problem, found.splits, solver, found.bound_s)
    print(
        f"{len(problem.devices)} devices, {problem.server.subcarriers} subcarriers, "
        f"{len(solution['samples'])} samples; splits by {method} in {took_s:.1f} s, subcarriers "
        f"and shares by {solver}\n"
    )
    fresh = _fresh(problem, found.splits, solver, flags.fresh)
    print(scct_solution.table(problem, solution, fresh))
    if flags.out:
        _write(flags.out, solution)


@contextmanager
def _watched() -> Iterator[Watch]:
    """How a search gets on: on a terminal, and gone when it ends. How long it takes is unknown."""
    with Console(stderr=True).status("choosing split points") as status:

        def watch(tried: int, least_s: float) -> None:
            status.update(f"{tried:,} split points tried, best {least_s:,.2f} s a round")

        yield watch


def _method(word: str) -> str:
    """Of --splits."""
    kind, colon, number = word.partition(":")
    if word in names.SCCT_SPLITS or (kind == "fixed" and colon and number.isdecimal()):
        return word
    raise UserError(f"--splits={word}: not one of {', '.join(names.SCCT_SPLITS)}, fixed:N")


def _fresh(problem: Scenario, splits: np.ndarray, solver: Solver, samples: int) -> Fresh | None:
    """The value on samples drawn as `--random` draws; none where the problem's own are not so."""
    own = np.array([device.flops_per_s for device in problem.devices])
    factors = problem.samples.flops_per_s / own
    low, high = LAW.epoch_factor
    if samples == 0 or factors.min() < low or factors.max() > high:
        return None
    drawn = drawing.resampled(problem, _FRESH_SEED, samples)
    # What brute finds by trying, exact finds as well.
    quick: Solver = "exact" if solver == "brute" else solver
    (objective_s,) = small.values(drawn, np.asarray(splits)[None], quick)
    return Fresh(samples, float(objective_s), bound.wait_and_see(drawn).objective_s)


def _figure(given: Given) -> None:
    """A picture and its numbers."""
    # Here, since matplotlib takes a second.
    from snake_jax.cli.scct_figures import write
    from snake_jax.cli.scct_figures.scales import SCALES, Study

    flags = given.flags
    asked = write.Asked(flags.figure, flags.scale, given.line)
    study = Study(SCALES[flags.scale], flags.cloud_flops, _note)
    for file in write.write(asked, study, Path(flags.out or "runs/scct")):
        print(file)


def _write(path: str, said: Mapping[str, object]) -> None:
    """JSON, and the name of its file."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    print(path)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
