"""Repeats the papers' figures: runs what each needs, then draws it and tabulates it.

  python -m experiments.reproduce --figure=5 --scale=smoke
  python -m experiments.reproduce --figure=2,4,5,7,8 --scale=cpu --tune --data=npz:DIR
  python -m experiments.reproduce --figure=6,9 --scale=cpu --tune --text_model=DIR
      --text_data=A.jsonl,B.jsonl
  python -m experiments.reproduce --figure=8 --scale=full --list

The first takes a minute and shows whether everything works; the last says what would run, and for
about how long.

Figures (snake_learning_magazine; arXiv 2405.03372) of the classification study: 2 costs of each
method, 4 the layers of VGG-11, 5 other frameworks by local epochs, 7 an interrupted layer, 8 orders
of the layers. Of the fine-tuning study: 6 perplexity by local epochs, IID, and 9 Non-IID. Several
as 5,8 or all. Runs are shared between figures and go on after a kill; finished ones are not run
again. Results are in RESULTS/SCALE: figureN.png, .md and .json; configuration, metrics and summary
of every run; and for each study learning_rates.json and study.json (fine-tuning: *_language.json).
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.reproduction import cases, figures, language, runs, tuning, vision
from experiments.reproduction.cases import Case, Scale, Sources, Topic
from experiments.reproduction.figures import FIGURES, TOPICS
from experiments.reproduction.runs import Clock, Study
from snake_jax.cli import launch
from snake_jax.config import pick
from snake_jax.costs.timing import machine
from snake_jax.errors import UserError
from snake_jax.report.runs import read_run
from snake_jax.report.units import clock
from snake_jax.runs import loop

ROOT = Path(__file__).parents[1]
FIGURE = flags.DEFINE_string("figure", "", f"which: {', '.join(FIGURES)}, several as 5,8, or all")
SCALE = flags.DEFINE_string(
    "scale", "smoke", f"size of the study: {', '.join(vision.SCALES)}; full needs an accelerator"
)
DATA = flags.DEFINE_string(
    "data", "", "CIFAR-10: cifar10 (downloads it) or npz:DIR; smoke takes the bundled digits"
)
TEXT_MODEL = flags.DEFINE_string(
    "text_model",
    "",
    "figures 6 and 9: the folder of a pretrained Llama or OPT; smoke takes an untrained one",
)
TEXT_DATA = flags.DEFINE_string(
    "text_data",
    "",
    "figures 6 and 9: what experiments.finetune takes as --data, a source for each data set",
)
TUNE = flags.DEFINE_bool(
    "tune", False, "first choose learning rates, on a validation part; else the recorded ones"
)
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/reproduce", "folder of the runs, below it one for each scale"
)
RESULTS = flags.DEFINE_string(
    "results",
    str(ROOT / "experiments/results/reproduce"),
    "folder of what is kept, below it one for each scale",
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
    """Checks everything, then each study: tunes, runs, draws."""
    chosen = _figures()
    studies = [
        (_study(topic), own)
        for topic in TOPICS
        if (own := [f for f in chosen if f in topic.figures])
    ]
    if LIST.value:
        print("\n".join(_listing(study, mine) for study, mine in studies))
        return
    for study, mine in studies:
        if wanted := cases.of_figures(study.topic, mine, study.scale):
            loop.prepare(
                study.config(wanted[0])
            )  # whether model and data are there, before anything is compiled
    timer = Clock(MINUTES.value)
    try:
        for study, mine in studies:
            _reproduce(study, mine, timer)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last finished visit") from None


def _reproduce(study: Study, chosen: Sequence[str], timer: Clock) -> None:
    started = time.monotonic()
    if TUNE.value:
        study = tuning.tune(study, chosen, timer, _say, JOBS.value)
    wanted = cases.of_figures(study.topic, chosen, study.scale)
    runs.carry_out(study, wanted, timer, _say, JOBS.value)
    for figure in chosen:
        files = figures.write(study, figure)
        print(
            "\n".join(map(str, files))
            if files
            else f"figure {figure}: no run has anything to draw yet",
            flush=True,
        )
    tried = _tried(study, chosen)
    runs.keep(study, [*wanted, *tried])
    _write_study(study, chosen, [*tried, *wanted], time.monotonic() - started)


def _tried(study: Study, chosen: Sequence[str]) -> list[Case]:
    return cases.tuning(study.topic, chosen, study.scale) if TUNE.value else []


def _figures() -> list[str]:
    if not FIGURE.value:
        raise UserError(f"--figure is needed: {', '.join(FIGURES)}, several as 5,8, or all")
    if FIGURE.value == "all":
        return list(FIGURES)
    return list(
        dict.fromkeys(pick("figure", word.strip(), FIGURES) for word in FIGURE.value.split(","))
    )


def _study(topic: Topic) -> Study:
    name = pick("scale", SCALE.value, topic.scales)
    scale, workdir, results = (
        topic.scales[name],
        Path(WORKDIR.value) / name,
        Path(RESULTS.value) / name,
    )
    if SEEDS.value:
        words = [word.strip() for word in SEEDS.value.split(",")]
        if wrong := [word for word in words if not word.isdecimal()]:
            raise UserError(
                f"--seeds={SEEDS.value}: {wrong[0] or 'a gap'} is no seed; want whole numbers as "
                f"0,1,2"
            )
        scale = scale._replace(seeds=tuple(dict.fromkeys(map(int, words))))
    sources = _images(scale) if topic is vision.TOPIC else _text(name, workdir)
    return Study(topic, name, scale, sources, workdir, results, tuning.read_rates(results, topic))


def _images(scale: Scale) -> Sources:
    source = DATA.value or scale.data
    if source != "cifar10" and not source.startswith("npz:") and source != scale.data:
        raise UserError(
            f"--data={source}: want cifar10, or npz:DIR with train_*.npz and test_*.npz"
        )
    return {"data": source}


def _text(scale: str, workdir: Path) -> Sources:
    return language.sources(scale, TEXT_MODEL.value, TEXT_DATA.value, workdir, LIST.value)


def _listing(study: Study, chosen: Sequence[str]) -> str:
    wanted, tried = cases.of_figures(study.topic, chosen, study.scale), _tried(study, chosen)
    timer, lines = Clock(0), []
    todo = [case for case in [*tried, *wanted] if not study.finished(case)]
    for case in [*tried, *wanted]:
        used = [f for f in chosen if case in study.topic.of_figure(f, study.scale)]
        what = f"figure {', '.join(used)}" if used else "tuning"
        steps, took = cases.steps_of(case, study.scale), timer.estimate(study, [case])
        cost = f"{steps:,} steps, about {clock(took)}"
        lines.append(f"{study.name(case)}: {what}; {'finished' if case not in todo else cost}")
    if not lines:
        return "figure 4 is counted from shapes: nothing to run"
    rates = "; after tuning with the rates it finds" if TUNE.value else ""
    return "\n".join(
        [
            *lines,
            f"{len(todo)} runs, about {clock(timer.estimate(study, todo))} on the machine of the "
            f"scale{rates}",
        ]
    )


def _say(message: str) -> None:
    print(message, flush=True)


def _write_study(
    study: Study, chosen: Sequence[str], every: Sequence[Case], seconds: float
) -> None:
    """study.json: with what, on what and for how long; of the latest launch, the runs' seconds of
    all.
    """
    found = machine()
    words = [word for word in sys.argv[1:] if not word.startswith(("--workdir", "--results"))]
    for source in study.sources.values():
        words = [word.replace(source, study.topic.public(source)) for word in words]
    content = {
        "command": shlex.join(["python", "-m", "experiments.reproduce", *words]),
        "figures": list(chosen),
        "machine": {
            name: found[name]
            for name in ("processor", "cores", "python", "backend", "jax", "jaxlib")
        },
        "scale": runs.settings(study),
        "seeds": list(study.scale.seeds),
        "learning_rates": study.rates or "the scale's own, not tuned",
        "launch_s": seconds,
        "train_s": {
            study.name(case): sum(
                record["train_s"] for record in read_run(study.folder(case)).metrics
            )
            for case in every
            if study.finished(case)
        },
        "unfinished": [study.name(case) for case in every if not study.finished(case)],
    }
    (study.results / f"study{study.topic.suffix}.json").write_text(
        json.dumps(content, indent=2) + "\n"
    )


if __name__ == "__main__":
    launch.run(main)
