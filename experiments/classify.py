"""Trains an image classifier over nodes that each hold their own data, and reports what it cost.

  python -m experiments.classify --algorithm=snake --dataset=digits --nodes=9 --partition=dirichlet --alpha=2.0 \\
      --cycles=2 --local_epochs=1 --workdir=runs/snake
  python -m experiments.classify --flagfile=experiments/presets/demo_fedavg.flags --workdir=runs/fedavg
  python -m experiments.compare runs/snake runs/fedavg

The same command after a kill goes on from the last finished visit. The workdir gets config.json, metrics.jsonl (a line a
visit or round), ledger.jsonl (a line a transfer), summary.json, checkpoints/ and curves.png.
"""

import contextlib
import sys

import jax
from absl import flags

from experiments import config_flags, launch
from snake_jax import data, runner
from snake_jax.errors import UserError
from snake_jax.report.plots import plot_run
from snake_jax.report.progress import progress
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
        jax.config.update("jax_compilation_cache_dir", CACHE.value)
    workdir = Workdir(WORKDIR.value, setup.config)
    try:
        state = workdir.resume(setup, _warn)
        _describe(setup, state.rounds)
        _train(setup, workdir, state)
    finally:
        workdir.close()


def _train(setup: runner.Setup, workdir: Workdir, state: runner.State) -> None:
    executor = runner.make_executor(setup)
    before = {key: workdir.earlier.get(key, 0) for key in ("compile_s", "num_compilations")}

    def compiled() -> tuple[float, int]:
        now = executor.compilations
        return before["compile_s"] + now.seconds, before["num_compilations"] + now.count

    total, unit = len(runner.rounds(setup)), "round" if setup.algorithm.traffic == "star" else "visit"
    with contextlib.ExitStack() as stack:
        update = stack.enter_context(progress(total, state.rounds, unit))
        iterations = sum(record["iterations"] for record in workdir.records)
        events = (
            stack.enter_context(tensorboard(workdir.path / "tensorboard", iterations)) if TENSORBOARD.value else None
        )
        for report in runner.train(setup, executor, state, lambda state: workdir.keep(state, *compiled())):
            workdir.add(report, *compiled())
            update(report.record)
            if events:
                events(report.record)
    workdir.finish(runner.summarise(setup, executor, workdir.records, before))
    run = read_run(workdir.path)
    print(comparison_table([run]))
    print(f"curves: {plot_run(run, workdir.path / 'curves.png')}")


def _describe(setup: runner.Setup, done: int) -> None:
    config, dataset = setup.config, setup.dataset
    print(f"{config.algorithm}: {setup.model.name} on {dataset.name}, {config.nodes} nodes, {config.partition}")
    print(setup.quality)
    print(data.describe(setup.shards, dataset.train.labels, dataset.num_classes))
    verdict = "on" if setup.distilled else "off"
    print(f"label divergence ({config.distill_measure}) {setup.divergence:.3f}; distillation {verdict}")
    if done:
        print(f"going on after {done} finished visits or rounds")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    launch.run(main)
