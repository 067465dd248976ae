"""Trains an image classifier over nodes that each hold their own data, and reports what it cost.

  python -m experiments.classify --algorithm=snake --dataset=digits --nodes=9 --partition=dirichlet --alpha=2.0 \\
      --cycles=2 --local_epochs=1 --workdir=runs/snake
  python -m experiments.classify --flagfile=experiments/presets/demo_fedavg.flags --workdir=runs/fedavg
  python -m experiments.compare runs/snake runs/fedavg

The same command after a kill goes on from the last finished visit. The workdir gets config.json, metrics.jsonl (a line
a visit or round), ledger.jsonl (a line a transfer), summary.json, checkpoints/ and curves.png.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from experiments import config_flags, launch
from snake_jax import data, runner
from snake_jax.errors import UserError
from snake_jax.executor import Compilations
from snake_jax.report.plots import plot_run
from snake_jax.report.progress import Update, progress
from snake_jax.report.runs import read_run
from snake_jax.report.table import comparison_table
from snake_jax.report.tensorboard import tensorboard
from snake_jax.workdir import Workdir

config_flags.define()
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; a run there goes on")
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "write TensorBoard events into the workdir")
CACHE = flags.DEFINE_string("compilation_cache_dir", "", "keep compiled programs here for later runs")


def main(_: list[str]) -> None:
    """Checks the flags and the data, then trains."""
    if not WORKDIR.value:
        raise UserError("--workdir is needed: the folder that the run's results go to")
    setup = runner.prepare(config_flags.from_flags())
    if CACHE.value:
        _keep_programs(Path(CACHE.value))
    workdir = Workdir(WORKDIR.value, setup.config)
    try:
        state = workdir.resume(setup, _warn)
        _describe(setup, state.rounds)
        _train(setup, workdir, state)
    except runner.Diverged as error:
        sys.exit(launch.fail(error, code=1))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last finished visit") from None
    finally:
        workdir.close()


def _keep_programs(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; give a folder that can be written"
        raise UserError(f"--compilation_cache_dir={folder}: {reason}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _train(setup: runner.Setup, workdir: Workdir, state: runner.State) -> None:
    executor, earlier = runner.make_executor(setup), workdir.earlier

    def compiled() -> Compilations:
        now = executor.compilations
        peak_bytes = max(earlier.peak_bytes or 0, now.peak_bytes or 0) or None
        return Compilations(earlier.programs + now.programs, earlier.seconds + now.seconds, peak_bytes)

    with contextlib.ExitStack() as stack:
        update = stack.enter_context(progress(len(runner.rounds(setup)), state.rounds, _unit(setup)))
        events = stack.enter_context(_events(workdir)) if TENSORBOARD.value else None
        for report in runner.train(setup, executor, state, lambda state: workdir.keep(state, compiled())):
            workdir.add(report, compiled())
            update(report.record)
            if events:
                events(report.record)
    workdir.finish(runner.summarise(setup, compiled(), workdir.records))
    run = read_run(workdir.path)
    print(comparison_table([run]))
    print(f"curves: {plot_run(run, workdir.path / 'curves.png')}")


@contextlib.contextmanager
def _events(workdir: Workdir) -> Iterator[Update]:
    """TensorBoard's events of the whole run: those of earlier processes, which a kill may have cut short, anew."""
    folder = workdir.path / "tensorboard"
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    with tensorboard(folder) as events:
        for record in workdir.records:
            events(record)
        yield events


def _describe(setup: runner.Setup, done: int) -> None:
    config, dataset = setup.config, setup.dataset
    print(f"{config.algorithm}: {setup.model.name} on {dataset.name}, {config.nodes} nodes, {config.partition}")
    print(setup.quality)
    print(data.describe(setup.shards, dataset.train.labels, dataset.num_classes))
    verdict = "on" if setup.distilled else "off"
    print(f"label divergence ({config.distill_measure}) {setup.divergence:.3f}; distillation {verdict}")
    total, unit = len(runner.rounds(setup)), _unit(setup)
    if done == total:
        print(f"finished before, {unit} {done} of {total}: nothing is left to train")
    elif done:
        print(f"going on after {unit} {done} of {total}")


def _unit(setup: runner.Setup) -> str:
    """What a line of metrics is."""
    return "round" if setup.algorithm.traffic == "star" else "visit"


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    launch.run(main)
