"""Several seeds in one launch: each a run of its own in WORKDIR/seed_K, then mean and spread.

Seed i trains on device i mod n, in a thread; those of one device go one after another. They share
compiled programs through jax's compilation cache: the second seed on a device only traces and
lowers its own.
"""

import contextlib
import dataclasses
import itertools
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
from etils import epath

from snake_jax.cli import launch, one_run, preemption
from snake_jax.cli.one_run import How, OpenRun
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.report.progress import Update, progress
from snake_jax.report.runs import read_run
from snake_jax.report.spread import spread, spread_table, write_spread
from snake_jax.runs import distilling, loop, storage
from snake_jax.runs.workdir import Workdir

Diverged = dict[int, loop.Diverged]


def seed_configs(text: str, config: ImageConfig) -> list[ImageConfig]:
    """A configuration for each seed of `--seeds`.

    Raises:
      UserError: not distinct whole numbers, or an executor that needs all devices itself.
    """
    seeds = []
    for part in text.split(","):
        word = part.strip()
        if not word.isdecimal():
            raise UserError(
                f"--seeds={text}: {word or 'a gap'} is no seed; want whole numbers as 0,1,2"
            )
        seeds.append(int(word))
    # Two of one seed would write one folder.
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: names a seed twice")
    if config.executor in ("pmap", "shard_map"):
        raise UserError(
            f"--seeds puts a seed on each device, --executor={config.executor} a seed's nodes: "
            f"give one"
        )
    return [dataclasses.replace(config, seed=seed) for seed in seeds]


def decided_together(setups: Sequence[loop.Setup]) -> list[loop.Setup]:
    """The setups of a launch's seeds, with `--distill=auto` decided once for all of them.

    Each seed draws another partition. The mean over seeds of some that distil and some that do not
    would be of no method, so the test is one: of the mean of their divergences. What it says is
    written into the seeds' configurations: a seed's folder is never gone on with otherwise.

    Raises:
      UserError: the nodes cannot hold what they are to train, where visits distil.
    """
    # In the order of the seeds, so that the verdict does not depend on that of the flag.
    in_order = sorted(setups, key=lambda setup: setup.config.seed)
    first = in_order[0]
    useful = "distill" in first.algorithm.flags
    if first.config.distill != "auto" or not useful:
        return list(setups)
    tables = [setup.data.counts for setup in in_order]
    verdict = distilling.decided(first.config, tables, ())
    seeds = ", ".join(str(setup.config.seed) for setup in in_order)
    verdict = verdict._replace(why=f"{verdict.why}, decided once for seeds {seeds}")

    # What a visit costs depends on it, so each is set up anew, on the same data.
    decided = []
    for setup in setups:
        config = dataclasses.replace(setup.config, distill="on" if verdict.on else "off")
        plan = setup.plan._replace(config=config)
        again = setup.task.setup(setup.job._replace(config=config, plan=plan), setup.data)
        decided.append(again._replace(verdict=verdict))
    return decided


def run_seeds(
    setups: Sequence[loop.Setup],
    workdir: str,
    about: str,
    how: How,
    warn: Callable[[str], None],
) -> None:
    """Trains what is left of every seed; prints and writes what they have in common.

    Args:
      setups: one for each configuration from `parse`.
      workdir: folder of the seeds' folders.
      about: what is printed first.
      how: each is trained; none is profiled.
      warn: is told of damaged checkpoints.

    Raises:
      UserError: the folder is another run's.
    """
    folder = storage.path_of(workdir, "workdir")
    if how.trace.folder:
        raise UserError(
            f"--trace_dir={how.trace.folder}: seeds train side by side; trace one of them by --seed"
        )
    if (folder / "config.json").exists():
        raise UserError(f"--workdir={folder} holds a run of one seed; give another for --seeds")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_shared_programs())
        # All folders are opened before one seed trains: what can be refused is refused now.
        jobs = []
        for setup, device in zip(setups, itertools.cycle(jax.devices()), strict=False):
            jobs.append(_open(setup, folder, device, stack, warn))
        print(about)
        for job in jobs:
            place = one_run.where(job) or "begins"
            verdict = job.setup.verdict
            distils = f"distillation {'on' if verdict.on else 'off'}"
            print(f"seed {job.setup.config.seed}: {place}; {distils}: {verdict.why}")
        diverged = _train(jobs, how)
    seeds = [setup.config.seed for setup in setups]
    _report(seeds, folder, diverged)


def _open(
    setup: loop.Setup,
    folder: epath.Path,
    device: jax.Device,
    stack: contextlib.ExitStack,
    warn: Callable[[str], None],
) -> OpenRun:
    workdir = Workdir(folder / f"seed_{setup.config.seed}", setup.config)
    stack.callback(workdir.close)
    with jax.default_device(device):
        state = workdir.resume(setup, warn)
    return OpenRun(setup, workdir, state)


def _train(jobs: Sequence[OpenRun], how: How) -> Diverged:
    """All jobs, those of a device in a thread.

    A seed that diverges ends alone; anything else ends all.
    """
    lanes = len(jax.devices())
    diverged = Diverged()
    stop = threading.Event()
    lock = threading.Lock()  # of what is told on the terminal

    def going_on() -> bool:
        return not stop.is_set() and not how.terminated()

    def lane(jobs: Sequence[OpenRun], device: jax.Device, update: Update) -> None:
        with jax.default_device(device):
            for job in jobs:
                seed = job.setup.config.seed
                try:
                    one_run.finish_rounds(job, _of_seed(seed, update, lock), how.events, going_on)
                except loop.Diverged as error:
                    diverged[seed] = error
                except BaseException:
                    stop.set()
                    raise
                if not going_on():
                    return

    # One bar for the rounds of all seeds.
    total = sum(job.total for job in jobs)
    done = sum(job.state.rounds for job in jobs)
    with progress(total, done, jobs[0].unit) as (update, _), ThreadPoolExecutor(lanes) as pool:
        futures = []
        for number, device in enumerate(jax.devices()):
            # Every `lanes`-th job, which is how `run` dealt out the devices.
            own = jobs[number::lanes]
            if own:
                futures.append(pool.submit(lane, own, device, update))
        one_run.wait(futures, stop)
    if how.terminated():
        raise preemption.ended("with every seed's last round kept")
    return diverged


def _of_seed(seed: int, update: Update, lock: threading.Lock) -> Update:
    def tell(record: dict) -> None:
        with lock:
            update({"seed": seed, **record})

    return tell


def _report(seeds: Sequence[int], folder: epath.Path, diverged: Diverged) -> None:
    """Every seed's curves, then the spread over all of them; none where one diverged."""
    paths = [folder / f"seed_{seed}" for seed in seeds if seed not in diverged]
    with storage.fetched(paths) as local:
        runs = [read_run(path) for path in local]
        for run, path in zip(runs, paths, strict=True):
            with storage.stored(path / "curves.png") as picture:
                one_run.draw_curves(run, picture)
    # A mean over the seeds that happened not to diverge would be of luck.
    if diverged:
        lines = [f"seed {seed}: {error}" for seed, error in diverged.items()]
        raise launch.failed("; ".join(lines))
    both = spread(runs)
    with storage.stored(folder / "summary.json") as file:
        write_spread(both, file)
    print(spread_table(both))
    names = ", ".join(str(path) for path in paths)
    print(f"runs: {names}")


@contextlib.contextmanager
def _shared_programs() -> Iterator[None]:
    """Has jax keep compiled programs in a folder for as long as this launch lasts.

    Where it keeps them anyway nothing changes.
    """
    folder_flag = "jax_compilation_cache_dir"
    least_flag = "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in (folder_flag, least_flag)}
    if before[folder_flag]:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update(folder_flag, folder)
        jax.config.update(least_flag, 0.0)
        yield
    for name, value in before.items():
        jax.config.update(name, value)
