"""The front door of the library: a model, arrays and a method of one's own, run as a launch runs.

    job = sj.Job(model, algorithm="snake", nodes=4, cycles=2)
    data = sj.image_data(job, train=(images, labels), test=(more_images, more_labels))
    for report in sj.train(job, data, workdir="runs/mine"):
        print(report.record["accuracy"])

With a workdir every round is kept: the same lines after a kill go on from the last one and end with
the same bits, `snake-jax report` and `snake-jax compare` read the folder as that of any launch.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import ImageConfig, pick
from snake_jax.data.images.dataset import Split, checked_split, make_dataset
from snake_jax.engines.choice import ENGINES, HERE, Choice
from snake_jax.engines.contract import Compilations, Engine
from snake_jax.models.layered import LayeredModel
from snake_jax.runs import best, engines, image_task, loop
from snake_jax.runs.carry import Watch
from snake_jax.runs.image_inputs import ARRAYS, Images, prepare_data
from snake_jax.runs.image_task import ImageJob
from snake_jax.runs.job import Config, Data, Model, check_fit
from snake_jax.runs.job import Job as AnyJob
from snake_jax.runs.loop import Report, State
from snake_jax.runs.setup import Setup
from snake_jax.runs.workdir import Workdir

Arrays = tuple[np.ndarray, np.ndarray]
"""Images `[N, H, W, C]`, uint8 or float32 in [0, 1], and labels `[N]`."""


def Job(model: LayeredModel, algorithm: Algorithm | str = "snake", **settings: Any) -> ImageJob:
    """What is to be trained, how and over which nodes; it holds no data.

    Args:
      model: a network of named layers, as `from_linen` and `from_nnx` make one.
      algorithm: a method by name, or one's own.
      **settings: of `ImageConfig`, which are the flags of `snake-jax classify`: nodes, cycles,
        local_epochs, batch_size, learning_rate, partition, alpha, seed, ...

    Raises:
      UserError: a setting is wrong, or one that the method has no use for.
    """
    if isinstance(algorithm, str):
        algorithm = ALGORITHMS[pick("algorithm", algorithm, ALGORITHMS)]
    config = ImageConfig(algorithm=algorithm.name, model=model.name, dataset=ARRAYS, **settings)
    check_fit(config, algorithm)
    return image_task.make_job(config, algorithm, model)


def image_data(job: ImageJob, train: Arrays, test: Arrays) -> Images:
    """Arrays as the data of a job: cleaned, normalised and laid out over the nodes as it says.

    Args:
      job: whose settings say how (partition, alpha, outliers, train_examples, ...).
      train: images and labels to train on, of all nodes.
      test: those to evaluate on.

    Raises:
      UserError: the arrays are unsound, or too few for the nodes.
    """
    train_split = _split("train arrays", train)
    test_split = _split("test arrays", test)
    dataset = make_dataset(ARRAYS, train_split, test_split)
    return prepare_data(job.config, job.algorithm, dataset)


def _split(where: str, arrays: Arrays) -> Split:
    images, labels = arrays
    return checked_split(where, np.asarray(images), np.asarray(labels))


def train(
    job: AnyJob[Config, Data, Model],
    data: Data,
    workdir: str | os.PathLike = "",
    engine: str | Choice = HERE,
) -> Iterator[Report]:
    """Carries out the job on the data, yielding a report after each round.

    Args:
      job: from `Job`, or from `prepare(config).job`.
      data: from `image_data`, or from `prepare(config).data`.
      workdir: folder that every round is kept in; empty: nothing is written.
      engine: what carries out visits: this process, or `ray` for one with a process a node, or more
        of that said.

    Raises:
      UserError: job and data do not fit, the engine cannot do that, or the folder holds another
        run.
      Diverged: a visit's loss is not finite.
    """
    choice = Choice(pick("engine", engine, ENGINES)) if isinstance(engine, str) else engine
    setup = job.task.setup(job, data)
    # Without a folder the reports are all that comes of it.
    if not workdir:
        made = engines.make_engine(setup, choice)
        try:
            yield from loop.train(setup, made, loop.initial_state(setup), _keep_nothing)
        finally:
            made.close()
        return
    # Who stops reading reports early ends the run, and must not keep others out of the folder.
    folder = Workdir(workdir, setup.config)
    try:
        state = folder.resume(setup, _warn)
        yield from kept_rounds(setup, folder, state, choice)
    finally:
        folder.close()


def _nothing() -> None:
    pass


def kept_rounds(
    setup: Setup[Config, Data, Model],
    folder: Workdir,
    state: State,
    choice: Choice = HERE,
    watch: Watch | None = None,
    made: Callable[[], None] = _nothing,
) -> Iterator[Report]:
    """The rounds that are left, each kept in the folder while the next one runs; then the summary.

    Args:
      setup: of the run.
      folder: open, of this configuration.
      state: to go on from, see `Workdir.resume`.
      choice: of the engine.
      watch: is told how far visits have come; None: nobody is.
      made: is called when the engine has its data.
    """
    engine = engines.make_engine(setup, choice)
    made()

    # A state that a run stops with, as when it diverges, is kept though it has no report.
    def keep(last: State) -> None:
        folder.keep(last, compilations_in_all(folder, engine))

    try:
        # A kill may have come between the last checkpoint and its copy in best/.
        best.keep_if_best(setup, folder, state)
        for report in loop.train(setup, engine, state, keep, folder.requests, watch):
            folder.add(report, compilations_in_all(folder, engine))
            best.keep_if_best(setup, folder, report.state)
            yield report
        in_all = compilations_in_all(folder, engine)
        summary = loop.summarise(setup, in_all, folder.records, engine)
        if setup.config.save_best:
            summary["best_round"] = best.best_round(setup.config, folder.records)
        folder.finish(summary)
    finally:
        engine.close()


def compilations_in_all(folder: Workdir, engine: Engine) -> Compilations:
    """What was compiled in all processes of the run so far."""
    before = folder.earlier
    now = engine.compilations
    peaks = [peak for peak in (before.peak_bytes, now.peak_bytes) if peak]
    return Compilations(
        before.programs + now.programs,
        before.seconds + now.seconds,
        max(peaks, default=None),
    )


def _keep_nothing(state: State) -> None:
    del state


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
