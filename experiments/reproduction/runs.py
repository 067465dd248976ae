"""Carries out cases: each a run in its own folder, gone on with after a kill, not repeated once finished."""

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import one_run
from experiments.one_run import Job
from experiments.reproduction import cases
from experiments.reproduction.cases import Case, Scale
from snake_jax import runner
from snake_jax.config import Config, differences
from snake_jax.errors import UserError
from snake_jax.report.runs import Run, read_run
from snake_jax.report.units import clock
from snake_jax.workdir import Workdir

RATES_FILE = "learning_rates.json"
KEPT = ("config.json", "metrics.jsonl", "summary.json")
_PROGRAMS = "programs"
Rates = dict[str, dict[str, Any]]  # {"method/partition": {"chosen": rate, "validation_loss": {rate: loss or null}}}


class Study(NamedTuple):
    """What all runs of a launch share.

    Attributes:
      scale_name: a key of `cases.SCALES`.
      scale: its settings.
      data: the `--dataset` of the runs.
      workdir: folder of the runs, one for each scale.
      results: folder of what is kept, one for each scale.
      rates: recorded by tuning.
    """

    scale_name: str
    scale: Scale
    data: str
    workdir: Path
    results: Path
    rates: Rates

    def rate(self, case: Case) -> float:
        """The learning rate of a case: what it tries, what tuning recorded, or the scale's."""
        if case.tried is not None:
            return case.tried
        recorded = self.rates.get(f"{case.method}/{case.partition}")
        return self.scale.rates[case.method] if recorded is None else recorded["chosen"]

    def name(self, case: Case) -> str:
        """The run's folder below `workdir`."""
        return cases.name(case, self.rate(case))

    def config(self, case: Case) -> Config:
        """The run's configuration."""
        return cases.config_of(case, self.scale, self.data, self.rate(case))

    def folder(self, case: Case) -> Path:
        """Where the run is."""
        return self.workdir / self.name(case)

    def finished(self, case: Case) -> bool:
        """Whether the run has ended.

        Raises:
          UserError: the folder has a run with other flags.
        """
        config = self.folder(case) / "config.json"
        if config.exists() and (other := differences(self.config(case), json.loads(config.read_text()))):
            raise UserError(
                f"{self.folder(case)} holds a run with other flags: {', '.join(other)}; give another --workdir"
            )
        return (self.folder(case) / "summary.json").exists()

    def read(self, case: Case) -> Run | None:
        """The run as far as it is; None before its first evaluation."""
        if not (self.folder(case) / "metrics.jsonl").exists():
            return None
        try:
            run = read_run(self.folder(case))
        except UserError:
            return None
        return run if any(record["accuracy"] is not None for record in run.metrics) else None


def read_rates(results: Path) -> Rates:
    """What earlier tuning recorded; `{}` of none.

    Raises:
      UserError: the file is damaged.
    """
    file = results / RATES_FILE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())["rates"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged; remove it and tune again with --tune") from error


class Clock:
    """Tells when time is up, and how long what is left will take, from what finished runs took."""

    def __init__(self, minutes: float, scale: Scale) -> None:
        """Starts now; `minutes` 0 is no limit."""
        self._started, self._limit, self._scale = time.monotonic(), minutes * 60 or math.inf, scale
        self._steps, self._seconds = 0, 0.0

    def going_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() - self._started < self._limit

    def took(self, case: Case, seconds: float) -> None:
        """Takes note of a run."""
        self._steps += cases.steps_of(case, self._scale)
        self._seconds += seconds

    def estimate(self, todo: Sequence[Case]) -> float:
        """Seconds for these cases."""
        step_s = self._seconds / self._steps if self._steps else self._scale.step_s
        return step_s * sum(cases.steps_of(case, self._scale) for case in todo)


def carry_out(study: Study, wanted: Sequence[Case], timer: Clock, say: Callable[[str], None], jobs: int = 1) -> None:
    """Runs what is not finished, in the order given, until time is up.

    Args:
      study: whose runs.
      wanted: cases.
      timer: asked after every round.
      say: is told of progress and warnings, line by line.
      jobs: runs at a time, each in a thread.
    """
    todo = [case for case in wanted if not study.finished(case)]
    if len(wanted) > len(todo):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} runs were finished before")
    if todo:
        _keep_programs(study.workdir / _PROGRAMS)
    stop = threading.Event()

    def going_on() -> bool:
        return timer.going_on() and not stop.is_set()

    def one(number: int) -> None:
        case = todo[number]
        if not going_on():
            return
        left = clock(timer.estimate(todo[number:]) / jobs)
        say(f"run {number + 1} of {len(todo)}: {study.name(case)}; about {left} left for all")
        started = time.monotonic()
        try:
            result = _run(study, case, going_on, say)
        except BaseException:
            stop.set()
            raise
        timer.took(case, time.monotonic() - started)
        say(f"  {study.name(case)}: {result}")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number) for number in range(len(todo))]
        one_run.wait(futures, stop)
    if left := [case for case in todo if not study.finished(case)]:
        say(f"not finished: {len(left)} of {len(wanted)} runs; the same command goes on")


def _run(study: Study, case: Case, going_on: Callable[[], bool], say: Callable[[str], None]) -> str:
    """Trains what is left of a run; returns how it ended."""
    setup = runner.prepare(study.config(case))
    workdir = Workdir(study.folder(case), setup.config)
    try:
        job = Job(setup, workdir, workdir.resume(setup, say))
        try:
            one_run.train(job, lambda record: None, False, going_on)
        except runner.Diverged as error:
            return f"stopped: {error}"
        done = len(workdir.records)
    finally:
        workdir.close()
    if not study.finished(case):
        return f"stopped after {done} of {job.total}"
    accuracy, loss = (workdir.records[-1][key] for key in ("accuracy", "test_loss"))
    return f"accuracy {100 * accuracy:.1f} %, loss {'not finite' if loss is None else f'{loss:.3f}'}"


def _keep_programs(folder: Path) -> None:
    """Runs that differ in learning rate, order or schedule alone share compiled programs; so do later launches."""
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009  set at run time
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def tune(study: Study, figures: Sequence[str], timer: Clock, say: Callable[[str], None], jobs: int = 1) -> Study:
    """The study with the rate of least validation loss for every method and partition whose tuning runs are finished.

    Also writes `learning_rates.json`. The validation part comes from the training examples: no test example is looked
    at.
    """
    tried = cases.tuning(figures, study.scale)
    carry_out(study, tried, timer, say, jobs)
    pairs = dict.fromkeys((case.method, case.partition) for case in tried)
    rates = dict(study.rates)
    for method, partition in pairs:
        mine = [case for case in tried if (case.method, case.partition) == (method, partition)]
        if not all(map(study.finished, mine)):
            say(f"{method}, {partition}: not tuned to the end")
            continue
        losses = {study.rate(case): _validation_loss(study, case) for case in mine}
        finite = {rate: loss for rate, loss in losses.items() if loss is not None}
        if not finite:
            say(f"{method}, {partition}: every learning rate diverged; the scale's {study.scale.rates[method]:g} stays")
            continue
        chosen = min(finite, key=lambda rate: finite[rate])
        rates[f"{method}/{partition}"] = {
            "chosen": chosen,
            "validation_loss": {f"{rate:g}": loss for rate, loss in losses.items()},
            "at_the_edge_of_the_grid": chosen in (min(study.scale.grid), max(study.scale.grid)),
        }
        say(f"{method}, {partition}: learning rate {chosen:g}")
    _write_rates(study, rates)
    return study._replace(rates=rates)


def _validation_loss(study: Study, case: Case) -> float | None:
    """At the end of a tuning run; None of one that diverged on its way."""
    metrics = read_run(study.folder(case)).metrics
    return None if any(record["event"] == "skipped" for record in metrics) else metrics[-1]["test_loss"]


def _write_rates(study: Study, rates: Rates) -> None:
    scale = study.scale
    about = {
        "scale": study.scale_name,
        "how": f"each rate of {list(scale.grid)} for {scale.tune_cycles} cycles of E = {min(scale.cycles)}, seed "
        f"{scale.seeds[0]}, evaluated on {scale.validation:g} of the training examples, which were held out; chosen by "
        "the loss there",
        "rates": rates,
    }
    study.results.mkdir(parents=True, exist_ok=True)
    (study.results / RATES_FILE).write_text(json.dumps(about, indent=2) + "\n")


def keep(study: Study, kept: Sequence[Case]) -> None:
    """Copies configuration, metrics and summary of finished runs to the results; this machine's data path stays out."""
    public = public_name(study.data)
    for case in kept:
        if study.finished(case):
            folder = study.results / "runs" / study.name(case)
            folder.mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                text = (study.folder(case) / file).read_text()
                (folder / file).write_text(text.replace(json.dumps(study.data), json.dumps(public)))


def public_name(data: str) -> str:
    """A data set's name without a path of this machine."""
    return "cifar10" if data.startswith("npz:") else data


def settings(study: Study) -> dict[str, Any]:
    """The scale as JSON."""
    plain = study.scale._asdict()
    return json.loads(json.dumps(plain | {"data": public_name(study.data)}, default=dict))
