"""Repeats the papers' classification figures: runs what each needs, then draws it and tabulates it.

  python -m experiments.reproduce --figure=5 --scale=smoke                 a minute: whether everything works
  python -m experiments.reproduce --figure=all --scale=cpu --tune --data=npz:DIR
  python -m experiments.reproduce --figure=8 --scale=full --list           what would run, and for about how long

Figures (snake_learning_magazine; arXiv 2405.03372): 2 costs of each method, 4 the layers of VGG-11, 5 other frameworks
by local epochs, 7 an interrupted layer, 8 orders of the layers. Several as 5,8 or all. Runs are shared between figures
and go on after a kill; finished ones are not run again. Results are in RESULTS/SCALE: figureN.png, .md and .json,
learning_rates.json, study.json, and configuration, metrics and summary of every run.
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import launch
from experiments.reproduction import cases, figures, runs
from experiments.reproduction.cases import FIGURES, SCALES, Case
from experiments.reproduction.runs import Clock, Study
from snake_jax import data
from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.kernels.timing import machine
from snake_jax.report.runs import read_run
from snake_jax.report.units import clock

ROOT = Path(__file__).parents[1]
FIGURE = flags.DEFINE_string("figure", "", f"which: {', '.join(FIGURES)}, several as 5,8, or all")
SCALE = flags.DEFINE_string("scale", "smoke", f"size of the study: {', '.join(SCALES)}; full needs an accelerator")
DATA = flags.DEFINE_string("data", "", "CIFAR-10: cifar10 (downloads it) or npz:DIR; smoke takes the bundled digits")
TUNE = flags.DEFINE_bool("tune", False, "first choose learning rates, on a validation part; else the recorded ones")
WORKDIR = flags.DEFINE_string("workdir", "runs/reproduce", "folder of the runs, below it one for each scale")
RESULTS = flags.DEFINE_string(
    "results", str(ROOT / "experiments/results/reproduce"), "folder of what is kept, below it one for each scale"
)
SEEDS = flags.DEFINE_string("seeds", "", "seeds of every case as 0,1,2; empty: the scale's")
MINUTES = flags.DEFINE_float(
    "minutes", 0.0, "stop after so many minutes and draw what there is; 0: no limit", lower_bound=0
)
JOBS = flags.DEFINE_integer(
    "jobs", 1, "runs at a time, in threads: a small network does not fill two cores", lower_bound=1
)
LIST = flags.DEFINE_bool("list", False, "print the runs and about what they take, and run nothing")


def main(_: list[str]) -> None:
    """Checks everything, tunes, runs, draws."""
    chosen, study = _figures(), _study()
    if LIST.value:
        print(_listing(study, chosen))
        return
    if any(figure != "4" for figure in chosen):
        data.load(study.data)  # whether it is there, before anything is compiled
    timer, started = Clock(MINUTES.value, study.scale), time.monotonic()
    try:
        if TUNE.value:
            study = runs.tune(study, chosen, timer, _say, JOBS.value)
        wanted = cases.ordered(case for figure in chosen for case in cases.of_figure(figure, study.scale))
        runs.carry_out(study, wanted, timer, _say, JOBS.value)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last finished visit") from None
    for figure in chosen:
        files = figures.write(study, figure)
        print("\n".join(map(str, files)) if files else f"figure {figure}: no run has anything to draw yet")
    tried = cases.tuning(chosen, study.scale) if TUNE.value else []
    runs.keep(study, [*wanted, *tried])
    _write_study(study, chosen, [*tried, *wanted], time.monotonic() - started)


def _figures() -> list[str]:
    if not FIGURE.value:
        raise UserError(f"--figure is needed: {', '.join(FIGURES)}, several as 5,8, or all")
    if FIGURE.value == "all":
        return list(FIGURES)
    return list(dict.fromkeys(pick("figure", word.strip(), FIGURES) for word in FIGURE.value.split(",")))


def _study() -> Study:
    name = pick("scale", SCALE.value, SCALES)
    scale = SCALES[name]
    if SEEDS.value:
        words = [word.strip() for word in SEEDS.value.split(",")]
        if wrong := [word for word in words if not word.isdecimal()]:
            raise UserError(f"--seeds={SEEDS.value}: {wrong[0] or 'a gap'} is no seed; want whole numbers as 0,1,2")
        scale = scale._replace(seeds=tuple(dict.fromkeys(map(int, words))))
    source = DATA.value or scale.data
    if source != "cifar10" and not source.startswith("npz:") and source != scale.data:
        raise UserError(f"--data={source}: want cifar10, or npz:DIR with train_*.npz and test_*.npz")
    results = Path(RESULTS.value) / name
    return Study(name, scale, source, Path(WORKDIR.value) / name, results, runs.read_rates(results))


def _listing(study: Study, chosen: Sequence[str]) -> str:
    wanted = cases.ordered(case for figure in chosen for case in cases.of_figure(figure, study.scale))
    tried = cases.tuning(chosen, study.scale) if TUNE.value else []
    timer, lines = Clock(0, study.scale), []
    todo = [case for case in [*tried, *wanted] if not study.finished(case)]
    for case in [*tried, *wanted]:
        used = [f for f in chosen if case in cases.of_figure(f, study.scale)]
        what = f"figure {', '.join(used)}" if used else "tuning"
        cost = f"{cases.steps_of(case, study.scale):,} steps, about {clock(timer.estimate([case]))}"
        lines.append(f"{study.name(case)}: {what}; {'finished' if case not in todo else cost}")
    if not lines:
        return "figure 4 is counted from shapes: nothing to run"
    rates = "; after tuning with the rates it finds" if TUNE.value else ""
    return "\n".join(
        [*lines, f"{len(todo)} runs, about {clock(timer.estimate(todo))} on the machine of the scale{rates}"]
    )


def _say(message: str) -> None:
    print(message, flush=True)


def _write_study(study: Study, chosen: Sequence[str], every: Sequence[Case], seconds: float) -> None:
    """study.json: with what, on what and for how long; of the latest launch, the runs' seconds of all."""
    found = machine()
    words = [word.replace(study.data, runs.public_name(study.data)) for word in sys.argv[1:]]
    words = [word for word in words if not word.startswith(("--workdir", "--results"))]
    content = {
        "command": shlex.join(["python", "-m", "experiments.reproduce", *words]),
        "figures": list(chosen),
        "machine": {name: found[name] for name in ("processor", "cores", "python", "backend", "jax", "jaxlib")},
        "scale": runs.settings(study),
        "seeds": list(study.scale.seeds),
        "learning_rates": study.rates or "the scale's own, not tuned",
        "launch_s": seconds,
        "train_s": {
            study.name(case): sum(record["train_s"] for record in read_run(study.folder(case)).metrics)
            for case in every
            if study.finished(case)
        },
        "unfinished": [study.name(case) for case in every if not study.finished(case)],
    }
    (study.results / "study.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    launch.run(main)
