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
as 5,8 or all. Beside the papers' figures, and not among all: every method on the same
examples, of images (methods) and of language models (methods_text); claims and claims_text,
what the papers claim and no figure tests, as pairs of runs; convergence, FL and Snake until their
accuracy no longer rises; rounds, FedAvg's rounds to an accuracy on MNIST beside those of its paper;
published, FedAvg, FedProx and FedNova in a setting whose results others have published.
Runs are shared between figures and go on after a kill; finished ones are not run again. The same
command started again beside itself shares the runs with it: one process a core, each bound to its
own (taskset), is the fastest on a few cores. Results are in RESULTS/SCALE (methods:
RESULTS/SCALE_methods, methods_text alike): figureN.png, .md and .json; configuration, metrics and
summary of every run in runs.jsonl.gz; and for each study learning_rates.json and study.json
(fine-tuning: *_language.json). With --redraw the figures are made of that file and nothing is run;
with --take_kept only what it does not have.
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import own_flags
from experiments.reproduction import (
    cases,
    figures,
    kept,
    runs,
    tuning,
    vision,
)
from experiments.reproduction.cases import Case, Given, Sources, Topic
from experiments.reproduction.figures import COMPARISONS, FIGURES, OWN, TOPICS
from experiments.reproduction.runs import Clock, Study
from snake_jax.cli import launch
from snake_jax.config import pick
from snake_jax.costs.timing import machine
from snake_jax.errors import UserError
from snake_jax.report.runs import read_run
from snake_jax.report.units import clock
from snake_jax.runs import loop

ROOT = Path(__file__).parents[1]
EVERY = (*FIGURES, *OWN)
FIGURE = flags.DEFINE_string(
    "figure", "", f"which: {', '.join(EVERY)}, several as 5,8; all: those of the papers"
)
SCALE = flags.DEFINE_string(
    "scale",
    "smoke",
    f"size of the study: {', '.join(vision.SCALES)}, of figures 6 and 9 also deep (a model of many "
    "blocks); full needs an accelerator",
)
DATA = flags.DEFINE_string(
    "data",
    "",
    "CIFAR-10: cifar10 (downloads it) or npz:DIR; for --figure=rounds MNIST: tfds:mnist or "
    "npz:FILE; smoke takes the bundled digits",
)
TEXT_MODEL = flags.DEFINE_string(
    "text_model",
    "",
    "figures on text: the folder of a pretrained Llama or OPT; smoke takes an untrained one",
)
TEXT_DATA = flags.DEFINE_string(
    "text_data",
    "",
    "figures on text: what experiments.finetune takes as --data, a source for each data set",
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
TAKE_KEPT = flags.DEFINE_bool(
    "take_kept",
    False,
    "finished runs of the same flags in --results are taken as they are: a long study goes on on "
    "another machine",
)
REDRAW = flags.DEFINE_bool(
    "redraw",
    False,
    "run nothing: draw and tabulate anew from the runs kept in --results; of figures on images "
    "--data is still needed, from whose sizes memory is counted",
)
LIST = flags.DEFINE_bool("list", False, "print the runs and about what they take, and run nothing")


def main(_: list[str]) -> None:
    """Checks everything, then each study: tunes, runs, draws."""
    chosen = _figures()
    studies = []
    for topic in (*TOPICS, *COMPARISONS):
        mine = [figure for figure in chosen if figure in topic.figures]
        if mine:
            studies.append((_study(topic), mine))
    if LIST.value:
        for study, mine in studies:
            print(_listing(study, mine))
        return
    if REDRAW.value:
        for study, mine in studies:
            _draw(study, mine)
        return

    # Whether model and data are there, before anything is compiled.
    for study, mine in studies:
        wanted = cases.of_figures(study.topic, mine, study.scale)
        if wanted:
            loop.prepare(study.config(wanted[0]))
    timer = Clock(MINUTES.value)
    try:
        for study, mine in studies:
            _reproduce(study, mine, timer)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last finished visit") from None


def _reproduce(study: Study, chosen: Sequence[str], timer: Clock) -> None:
    started = time.monotonic()
    if TUNE.value:
        _take_kept(study, _tried(study, chosen))
        study = tuning.tune(study, chosen, timer, _say, JOBS.value)
    wanted = cases.of_figures(study.topic, chosen, study.scale)
    _take_kept(study, wanted)
    runs.carry_out(study, wanted, timer, _say, JOBS.value)
    _draw(study, chosen)
    tried = _tried(study, chosen)
    runs.keep(study, [*wanted, *tried])
    _write_study(study, chosen, [*tried, *wanted], time.monotonic() - started)


def _take_kept(study: Study, wanted: Sequence[Case]) -> None:
    if not TAKE_KEPT.value:
        return
    taken = runs.take_kept(study, wanted)
    if taken:
        _say(f"{taken} of {len(wanted)} runs are those of {study.results / kept.FILE}")


def _draw(study: Study, chosen: Sequence[str]) -> None:
    """Every figure from the runs that there are."""
    for figure in chosen:
        files = figures.write(study, figure)
        if files:
            for file in files:
                _say(str(file))
        else:
            _say(f"figure {figure}: no run has anything to draw yet")


def _tried(study: Study, chosen: Sequence[str]) -> list[Case]:
    return tuning.tried(study, chosen) if TUNE.value else []


def _figures() -> list[str]:
    """Those of --figure, each once."""
    if not FIGURE.value:
        raise UserError(f"--figure is needed: {', '.join(EVERY)}, several as 5,8, or all")
    if FIGURE.value == "all":
        return list(FIGURES)
    words = [word.strip() for word in FIGURE.value.split(",")]
    return list(dict.fromkeys(pick("figure", word, EVERY) for word in words))


def _study(topic: Topic) -> Study:
    """A topic's study as the flags say."""
    name = pick("scale", SCALE.value, topic.scales)
    scale = topic.scales[name]
    # Runs of unlike studies may have the same name.
    place = f"{name}{topic.suffix}" if topic in COMPARISONS else name
    workdir = Path(WORKDIR.value) / place
    results = Path(RESULTS.value) / place
    if SEEDS.value:
        scale = scale._replace(seeds=own_flags.seeds(SEEDS.value))
    runs_kept = kept.read_runs(results / kept.FILE) if REDRAW.value else None
    if REDRAW.value and topic.recorded:
        sources = _recorded(results / f"study{topic.suffix}.json", topic.recorded)
    else:
        given = Given(DATA.value, TEXT_MODEL.value, TEXT_DATA.value, workdir, LIST.value)
        sources = topic.sources(name, scale, given)
    rates = tuning.read_rates(results, topic)
    return Study(topic, name, scale, sources, workdir, results, rates, runs_kept)


def _recorded(file: Path, names: Sequence[str]) -> Sources:
    """The sources of the launch that a study.json is of."""
    try:
        scale = json.loads(file.read_text())["scale"]
        return {name: scale[name] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: does not say what was run ({error}); leave --redraw out"
        ) from error


def _listing(study: Study, chosen: Sequence[str]) -> str:
    """A line a run: for which figures, and what it takes or that it is there."""
    wanted = cases.of_figures(study.topic, chosen, study.scale)
    every = [*_tried(study, chosen), *wanted]
    if not every:
        return "figure 4 is counted from shapes: nothing to run"
    timer = Clock(0)
    todo = [case for case in every if not study.finished(case)]
    lines = []
    for case in every:
        used = [figure for figure in chosen if case in study.topic.of_figure(figure, study.scale)]
        purpose = f"figure {', '.join(used)}" if used else "tuning"
        cost = "finished"
        if case in todo:
            steps = cases.steps_of(case, study.scale)
            took_s = timer.estimate(study, [case])
            cost = f"{steps:,} steps, about {clock(took_s)}"
        lines.append(f"{study.name(case)}: {purpose}; {cost}")
    rates = "; after tuning with the rates it finds" if TUNE.value else ""
    all_s = timer.estimate(study, todo)
    lines.append(f"{len(todo)} runs, about {clock(all_s)} on the machine of the scale{rates}")
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, flush=True)


def _write_study(
    study: Study, chosen: Sequence[str], every: Sequence[Case], seconds: float
) -> None:
    """study.json: with what, on what and for how long.

    Of the latest launch; the runs' seconds are those of all launches.
    """
    # The command as others can type it: without this machine's folders.
    words = [word for word in sys.argv[1:] if not word.startswith(("--workdir", "--results"))]
    for source in study.sources.values():
        words = [word.replace(source, study.topic.public(source)) for word in words]

    train_s = {}
    unfinished = []
    for case in every:
        name = study.name(case)
        if study.finished(case):
            metrics = read_run(study.folder(case)).metrics
            train_s[name] = sum(record["train_s"] for record in metrics)
        else:
            unfinished.append(name)
    here = machine()
    named = ("processor", "cores", "python", "backend", "jax", "jaxlib")
    content = {
        "command": shlex.join(["python", "-m", "experiments.reproduce", *words]),
        "figures": list(chosen),
        "machine": {name: here[name] for name in named},
        "scale": runs.settings(study),
        "seeds": list(study.scale.seeds),
        "learning_rates": study.rates or "the scale's own, not tuned",
        "launch_s": seconds,
        "train_s": train_s,
        "unfinished": unfinished,
    }
    text = json.dumps(content, indent=2)
    file = study.results / f"study{study.topic.suffix}.json"
    file.write_text(text + "\n")


if __name__ == "__main__":
    launch.run(main)
