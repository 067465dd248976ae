"""Carries out cases: each a run in its own folder, gone on with after a kill, never repeated."""

import dataclasses
import json
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.reproduction import cases, kept
from experiments.reproduction.cases import Case, Scale, Sources, Topic
from snake_jax.cli import one_run
from snake_jax.cli.one_run import OpenRun
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.report.merits import Record, merit_of_lines
from snake_jax.report.runs import Run, final, read_run
from snake_jax.report.units import clock
from snake_jax.runs import loop, storage
from snake_jax.runs.workdir import Workdir, differences, is_longer

_PROGRAMS = "programs"
_LOOKED_AT_S = 2.0
"""Between looks at what other processes run."""
Rates = dict[str, dict[str, Any]]
"""`{"method/partition": {"chosen": rate, "validation_loss": {rate: loss or null}}}`"""


class Study(NamedTuple):
    """What all runs of a launch on one topic share.

    Attributes:
      topic: images or language.
      scale_name: a key of the topic's scales.
      scale: its settings.
      sources: what this machine has, for the runs' configurations.
      workdir: folder of the runs, one for each scale.
      results: folder of what is kept, one for each scale.
      rates: recorded by tuning.
      kept: runs by name, to draw from in place of those in `workdir`; None: of `workdir`.
    """

    topic: Topic
    scale_name: str
    scale: Scale
    sources: Sources
    workdir: Path
    results: Path
    rates: Rates
    kept: Mapping[str, Run] | None = None

    def rate(self, case: Case) -> float:
        """The learning rate of a case: what it tries, what tuning recorded, or the scale's."""
        if case.tried is not None:
            return case.tried
        recorded = self.rates.get(f"{case.method}/{case.partition}")
        if recorded is not None:
            return recorded["chosen"]
        return self.scale.rates[case.method]

    def name(self, case: Case) -> str:
        """The run's folder below `workdir`."""
        return cases.name(case, self.rate(case))

    def config(self, case: Case) -> RunConfig:
        """The run's configuration."""
        return self.topic.config(case, self.scale, self.sources, self.rate(case))

    def folder(self, case: Case) -> Path:
        """Where the run is."""
        return self.workdir / self.name(case)

    def finished(self, case: Case) -> bool:
        """Whether the run has ended.

        Raises:
          UserError: the folder has a run with other flags.
        """
        if self.kept is not None:
            run = self.kept.get(self.name(case))
            return run is not None and run.summary is not None
        folder = self.folder(case)
        config = folder / "config.json"
        if config.exists():
            here, there = self.config(case), json.loads(config.read_text())
            # One of fewer cycles goes on.
            if is_longer(here, there):
                return False
            other = differences(here, there)
            if other:
                raise UserError(
                    f"{folder} holds a run with other flags: {', '.join(other)}; give another "
                    f"--workdir"
                )
        return (folder / "summary.json").exists()

    def read(self, case: Case) -> Run | None:
        """The run as far as it is; None before its first evaluation."""
        if self.kept is not None:
            return self.kept.get(self.name(case))
        if not (self.folder(case) / "metrics.jsonl").exists():
            return None
        try:
            run = read_run(self.folder(case))
        except UserError:
            return None
        return run if final(run) is not None else None


class Clock:
    """Tells when time is up, and how long what is left will take.

    The latter from what finished runs of the topic took.
    """

    def __init__(self, minutes: float) -> None:
        """Starts now; `minutes` 0 is no limit."""
        self._started = time.monotonic()
        self._limit = minutes * 60 if minutes else math.inf
        # By the names of topics.
        self._steps = Counter[str]()
        self._seconds = defaultdict[str, float](float)

    def going_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() - self._started < self._limit

    def took(self, study: Study, case: Case, seconds: float) -> None:
        """Takes note of a run."""
        self._steps[study.topic.name] += cases.steps_of(case, study.scale)
        self._seconds[study.topic.name] += seconds

    def estimate(self, study: Study, todo: Sequence[Case]) -> float:
        """Seconds for these cases."""
        steps = self._steps[study.topic.name]
        seconds = self._seconds[study.topic.name]
        # Before the first run is over there is only what the scale's machine took.
        step_s = seconds / steps if steps else study.scale.step_s
        return step_s * sum(cases.steps_of(case, study.scale) for case in todo)


def carry_out(
    study: Study, wanted: Sequence[Case], timer: Clock, say: Callable[[str], None], jobs: int = 1
) -> None:
    """Runs what is not finished, in the order given, until time is up.

    Several processes with one workdir share the runs: what another has begun is passed over, and
    waited for at the end.

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

    # A run of another process is looked at again until it has ended: where it was stopped, it is
    # gone on with here.
    here = todo
    while here:
        elsewhere = _carry_out_free(study, here, timer, say, jobs)
        here = [case for case in elsewhere if not study.finished(case)]
        if not timer.going_on():
            break
        if here:
            time.sleep(_LOOKED_AT_S)
    left = [case for case in todo if not study.finished(case)]
    if left:
        say(f"not finished: {len(left)} of {len(wanted)} runs; the same command goes on")


def _carry_out_free(
    study: Study, todo: Sequence[Case], timer: Clock, say: Callable[[str], None], jobs: int
) -> list[Case]:
    """Runs those that no other process runs; returns the others."""
    elsewhere: list[Case] = []

    # Runs side by side end together: when time is up, or when one of them failed.
    stop = threading.Event()

    def going_on() -> bool:
        return timer.going_on() and not stop.is_set()

    def one(number: int) -> None:
        case = todo[number]
        # Another process may have ended it since.
        if not going_on() or study.finished(case):
            return
        if storage.is_in_use(study.folder(case)):
            elsewhere.append(case)
            return
        left = clock(timer.estimate(study, todo[number:]) / jobs)
        say(f"run {number + 1} of {len(todo)}: {study.name(case)}; about {left} left for all")
        started = time.monotonic()
        # One that fails ends the others at their next round, which the same command goes on from.
        try:
            result = _run(study, case, going_on, say)
        except storage.InUse:
            # Begun elsewhere while the data was read here.
            elsewhere.append(case)
            return
        except BaseException:
            stop.set()
            raise
        timer.took(study, case, time.monotonic() - started)
        say(f"  {study.name(case)}: {result}")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, number) for number in range(len(todo))]
        one_run.wait(futures, stop)
    return elsewhere


def _run(study: Study, case: Case, going_on: Callable[[], bool], say: Callable[[str], None]) -> str:
    """Trains what is left of a run; returns how it ended."""
    setup = loop.prepare(study.config(case))
    workdir = Workdir(study.folder(case), setup.config)
    try:
        state = workdir.resume(setup, say)
        job = OpenRun(setup, workdir, state)
        # One that diverges ends alone; the figure says which are missing.
        try:
            one_run.finish_rounds(job, _tell_nobody, False, going_on)
        except loop.Diverged as error:
            return f"stopped: {error}"
        done = len(workdir.records)
    finally:
        workdir.close()
    if not study.finished(case):
        return f"stopped after {done} of {job.total}"
    return _reached(workdir.records[-1])


def _tell_nobody(record: Record) -> None:
    del record


def _reached(last: Record) -> str:
    """What the last evaluation found."""
    merit = merit_of_lines([last])
    value = last[merit.field]
    found = "no number" if value is None else merit.show(value)
    loss = last["test_loss"]
    said = "not finite" if loss is None else f"{loss:.3f}"
    return f"{merit.phrase(found)}, loss {said}"


def _keep_programs(folder: Path) -> None:
    """Has compiled programs kept: runs alike but for rate, order or schedule share them.

    So do later launches.
    """
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009  set at run time
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def keep(study: Study, wanted: Sequence[Case]) -> None:
    """Adds configuration, metrics and summary of finished runs to those that are kept.

    This machine's paths stay out.
    """
    file = study.results / kept.FILE
    lines = kept.read_lines(file)
    for case in wanted:
        if not study.finished(case):
            continue
        line = kept.line_of(read_run(study.folder(case)))
        for source in study.sources.values():
            public = study.topic.public(source)
            line = line.replace(json.dumps(source), json.dumps(public))
        lines.append(line)
    if lines:
        kept.write_lines(file, lines)


def take_kept(study: Study, wanted: Sequence[Case]) -> int:
    """Lays the kept runs of these cases into the workdir, so that they count as finished.

    Only finished ones whose configuration is that of the case, and where there is no folder yet. A
    flag that the program did not have when they ran counts as its default: by the rule of the
    house, that is what was done without it.

    Returns:
      How many.
    """
    file = study.results / kept.FILE
    if not file.exists():
        return 0
    known = kept.read_runs(file)
    taken = 0
    for case in wanted:
        run = known.get(study.name(case))
        folder = study.folder(case)
        if run is None or run.summary is None or folder.exists():
            continue
        # As in `keep`, a source has its public name there.
        here = study.config(case)
        config = dataclasses.asdict(here)
        public = {study.topic.public(source): source for source in study.sources.values()}
        there = dataclasses.asdict(type(here)())
        for name, value in run.config.items():
            there[name] = public.get(value, value) if isinstance(value, str) else value
        if not differences(here, there):
            kept.write_folder(run._replace(config=config), folder)
            taken += 1
    return taken


def settings(study: Study) -> dict[str, Any]:
    """The scale as JSON."""
    plain: dict[str, Any] = study.scale._asdict()
    for name, source in study.sources.items():
        plain[name] = study.topic.public(source)
    return json.loads(json.dumps(plain, default=dict))
