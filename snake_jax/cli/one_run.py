"""One run in its folder: what a launch says of it, trains and keeps.

Launches of one seed and of several share it.
"""

import contextlib
import importlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from snake_jax import processes
from snake_jax.cli import launch, preemption
from snake_jax.data import partition
from snake_jax.engines.choice import HERE, LOCAL, Choice
from snake_jax.errors import UserError
from snake_jax.params import num_bytes
from snake_jax.report.closing import closing_table
from snake_jax.report.merits import Record
from snake_jax.report.progress import Update, progress
from snake_jax.report.runs import Run, counts_tokens, read_run
from snake_jax.report.stages import SILENT, Stages
from snake_jax.report.table import comparison_table
from snake_jax.report.tensorboard import tensorboard
from snake_jax.runs import best, distilling, loop, privacy, storage
from snake_jax.runs.carry import Watch
from snake_jax.runs.front import kept_rounds
from snake_jax.runs.workdir import Workdir


class OpenRun(NamedTuple):
    """A checked configuration, its open folder, and the state to go on from."""

    setup: loop.Setup
    workdir: Workdir
    state: loop.State

    @property
    def total(self) -> int:
        """How many rounds the run has."""
        return loop.total_rounds(self.setup)

    @property
    def unit(self) -> str:
        """What a line of metrics is."""
        return self.setup.algorithm.unit


class ProfilerTrace(NamedTuple):
    """A profile of some rounds.

    Attributes:
      folder: where it goes; empty: none is made.
      rounds: how many.
    """

    folder: str = ""
    rounds: int = 0


NO_TRACE = ProfilerTrace()
_DRAWS = "snake_jax.report.plots"


def _never() -> bool:
    return False


def _always() -> bool:
    return True


def _begin_at_once(job: OpenRun) -> None:
    del job


def _end_at_once(state: loop.State, folder: epath.Path) -> None:
    del state, folder


class How(NamedTuple):
    """How a launch trains.

    Attributes:
      events: whether to write TensorBoard's.
      trace: what to profile.
      terminated: says whether a SIGTERM has come.
      engine: where nodes are.
      stages: is told what ends on the way to the first result.
    """

    events: bool = False
    trace: ProfilerTrace = NO_TRACE
    terminated: Callable[[], bool] = _never
    engine: Choice = HERE
    stages: Stages = SILENT


def finish_rounds(
    job: OpenRun,
    update: Update,
    events: bool,
    going_on: Callable[[], bool] = _always,
    trace: ProfilerTrace = NO_TRACE,
    engine: Choice = HERE,
    watch: Watch | None = None,
    stages: Stages = SILENT,
) -> loop.State:
    """Does what is left of the run and writes its summary; returns the state after it.

    Args:
      job: the run.
      update: is called with every round's record.
      events: whether to write TensorBoard's.
      going_on: is asked after every round; False ends the run there, to be gone on with later.
      trace: what to profile.
      engine: where nodes are.
      watch: is told how far visits have come; None: nobody is.
      stages: is told of the engine, of the first round and of the others.
    """
    state = job.state

    def made() -> None:
        stages.ended_copying("data on the device", num_bytes(jax.live_arrays()))

    is_first = True
    trained_s = 0.0
    told = _events(job.workdir) if events and processes.is_first() else contextlib.nullcontext()
    with told as tell:
        reports = kept_rounds(job.setup, job.workdir, state, engine, watch, made)
        if trace.folder:
            reports = _traced(reports, trace)
        for report in reports:
            state = report.state
            if is_first:
                stages.ended("first round", report.record["train_s"], "its steps")
            else:
                trained_s += report.record["train_s"]
            is_first = False
            for lost in report.lost:
                launch.warn(
                    f"visit {lost.visit.turn} at node {lost.visit.node} is lost: {lost.why}"
                )
            update(report.record)
            if tell:
                tell(report.record)
            if not going_on():
                break
    # Who is told the last state may count on it. The first process writes, and the others wait for
    # it: one that ended before would end it too.
    job.workdir.settle()
    processes.meet()
    stages.ended("other rounds", trained_s, "their steps")
    return state


def carry_out(
    setup: loop.Setup,
    folder: str,
    about: str,
    how: How,
    begin: Callable[[OpenRun], None] = _begin_at_once,
    end: Callable[[loop.State, epath.Path], None] = _end_at_once,
) -> None:
    """A run in its folder from where it stands to its end, told on the terminal.

    Args:
      setup: of the run.
      folder: the run's.
      about: what is printed first.
      how: it is done.
      begin: is called before training.
      end: is called with the last state and the folder, after the curves are drawn.
    """

    stopped = False

    def going_on() -> bool:
        nonlocal stopped
        # A process that is terminated ends all, after the same round.
        stopped = processes.any_of(how.terminated())
        return not stopped

    workdir = Workdir(folder, setup.config)
    try:
        # What can still be refused, before anything is printed.
        state = workdir.resume(setup, launch.warn)
        how.stages.ended_copying("weights", num_bytes(state.params))
        job = OpenRun(setup, workdir, state)
        check_trace(how.trace, job.total - job.state.rounds)
        _announce(job, about)
        begin(job)
        shown = processes.is_first()
        with progress(job.total, job.state.rounds, job.unit, enabled=shown) as (update, watch):
            state = finish_rounds(
                job,
                _importing_what_draws(job, update) if shown else update,
                how.events,
                going_on,
                how.trace,
                how.engine,
                # Where nodes are calls of this process, nothing is heard before they return.
                None if how.engine.name == LOCAL else watch,
                how.stages,
            )
        # Where all nodes left, or it is good enough, a run ends before its planned rounds.
        if stopped and state.rounds < job.total and not state.ended:
            raise preemption.ended(f"after {job.unit} {state.rounds} of {job.total}")
        if processes.is_first():
            _show(job, state)
        end(_chosen(job, state), workdir.path)
        how.stages.ended("closing", 0.0, "nothing")
    finally:
        workdir.close()


def _importing_what_draws(job: OpenRun, update: Update) -> Update:
    """The same, and half-way through the rounds that are left it has a thread import what draws.

    That takes a while, and training leaves a core now and then.
    """
    halfway = (job.total - job.state.rounds) // 2
    numbers = itertools.count(1)

    def told(record: Record) -> None:
        update(record)
        if next(numbers) == halfway:
            threading.Thread(target=importlib.import_module, args=(_DRAWS,)).start()

    return told


def _announce(job: OpenRun, about: str) -> None:
    """Prints what the run is, whom its plan refused, and from where it goes on."""
    print(about)
    if job.setup.plan.refused:
        print(refused(job.setup))
    place = where(job)
    if place:
        print(place)


def _chosen(job: OpenRun, state: loop.State) -> loop.State:
    """The last state, with the best model in it where that is asked for."""
    if not job.setup.config.save_best:
        return state
    found = best.restored(job.setup, job.workdir, launch.warn)
    print(best.said(job.setup.config, found, job.workdir.records, job.unit))
    return state._replace(params=found.params)


def _show(job: OpenRun, state: loop.State) -> None:
    """What came of a run, and why it ended before its plan where it did."""
    if state.ended:
        print(f"ended after {job.unit} {state.rounds} of {job.total}: {state.ended}")
    workdir = job.workdir
    with (
        storage.fetched([workdir.path]) as (folder,),
        storage.stored(workdir.path / "curves.png") as picture,
    ):
        run = read_run(folder)
        print(comparison_table([run]))
        if guarantee := privacy.said(run.summary or {}):
            print(guarantee)
        if counts_tokens(run):
            print(closing_table(run))
        draw_curves(run, picture)
    print(f"curves: {workdir.path / 'curves.png'}")


def draw_curves(run: Run, picture: Path) -> None:
    """A run's curves."""
    # Here, since a launch can begin without it; see `_importing_what_draws`.
    from snake_jax.report.plots import plot_run

    plot_run(run, picture)


@contextlib.contextmanager
def ends_told() -> Iterator[None]:
    """Around training: a run that diverges ends in one line and exit code 1.

    One that is stopped says how to go on.
    """
    try:
        yield
    except loop.Diverged as error:
        raise launch.failed(error) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last finished visit") from None


def check_trace(trace: ProfilerTrace, left: int) -> None:
    """Refuses a profile of rounds that there are not.

    Args:
      trace: what is to be profiled.
      left: rounds that this launch is to train.
    """
    if trace.folder and left < 2:
        raise UserError(
            f"--trace_dir={trace.folder}: rounds are traced from the second on, and {left} are "
            f"left to train"
        )


def _traced(reports: Iterator[loop.Report], trace: ProfilerTrace) -> Iterator[loop.Report]:
    """The same reports; some are made, and dealt with, under the profiler."""
    # The programs are compiled in the first round, which would hide all else.
    yield next(reports)
    options = jax.profiler.ProfileOptions()
    # Python's own calls would make files of hundreds of megabytes.
    options.python_tracer_level = 0
    place = storage.path_of(trace.folder, "trace_dir")
    with storage.stored(place) as folder, jax.profiler.trace(folder, profiler_options=options):
        yield from itertools.islice(reports, trace.rounds)
    yield from reports


def wait(futures: Sequence[Future], stop: threading.Event) -> None:
    """Waits for runs in threads.

    Where one fails or Ctrl-C comes, `stop` tells the others to end after their round.
    """
    try:
        for future in futures:
            future.result()
    except BaseException:
        stop.set()
        raise


@contextlib.contextmanager
def _events(workdir: Workdir) -> Iterator[Update]:
    """TensorBoard's events of the whole run.

    Those of earlier processes, which a kill may have cut short, are written anew.
    """
    folder = workdir.path / "tensorboard"
    for file in storage.entries(folder):
        if file.name.startswith("events.out.tfevents."):
            file.unlink()
    with storage.stored(folder) as local, tensorboard(local) as events:
        for record in workdir.records:
            events(record)
        yield events


def data_bytes(setup: loop.Setup) -> int:
    """Bytes of the arrays among what a setup has of data."""
    leaves = jax.tree.leaves(setup.data)
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray))


def describe_images(setup: loop.Setup) -> str:
    """What is trained on what: network, data, what cleaning did, each node's part, distillation."""
    config, data = setup.config, setup.data
    dataset = data.dataset
    verdict = distilling.said(setup.verdict, data.divergence, config.distill_measure)
    lines = (
        f"{config.algorithm}: {setup.model.name} on {dataset.name}, {config.nodes} nodes, "
        f"{config.partition}",
        data.quality,
        partition.counts_table(data.shards, dataset.train.labels, dataset.num_classes),
        f"label divergence {verdict}",
    )
    return "\n".join(lines)


def refused(setup: loop.Setup) -> str:
    """Who is not admitted, in one line."""
    every = [f"node {node} {why}" for node, why in setup.plan.refused.items()]
    return f"refused: {'; '.join(every)}"


def where(job: OpenRun) -> str:
    """Where the run goes on; empty for one that begins."""
    done, total = job.state.rounds, job.total
    if done == total or job.state.ended:
        return f"finished before, {job.unit} {done} of {total}: nothing is left to train"
    return f"going on after {job.unit} {done} of {total}" if done else ""
