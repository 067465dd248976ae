"""Rounds by this library, as `experiments.classify` runs them: visits, merge, ledger and metrics,
without evaluation.

  python -m experiments.bench.ours WORK.npz CHECKED.npz '{"config": {...}, "reports": 1}'

A round is as many of the runner's reports: one of FedAvg, one a visit of Snake.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from experiments.bench.work import Done, Line, Params, load
from snake_jax import params as tree
from snake_jax.config import ImageConfig
from snake_jax.runs import loop


def named(params: tree.Params) -> Params:
    """Kernel and bias of every layer."""
    found = {}
    for name, subtree in params.items():
        bias, kernel = sorted(jax.tree.leaves(subtree), key=lambda leaf: leaf.ndim)
        found[name] = np.asarray(kernel), np.asarray(bias)
    return found


def main(work_file: str, checked_file: str, options: str) -> None:
    """Does the rounds that are asked for."""
    line, work = Line(Path(checked_file)), load(Path(work_file))
    given = json.loads(options)
    config = ImageConfig(**given["config"])
    setup = loop.prepare(config)
    for shard, other in zip(setup.data.shards, work.shards, strict=True):
        np.testing.assert_array_equal(shard, other)
    executor, state = loop.make_executor(setup), loop.initial_state(setup)
    reports = loop.train(setup, executor, state, keep=lambda _: None)
    versions = {name: sys.modules[name].__version__ for name in ("jax", "jaxlib")}
    line.ready(named(state.params), variant=f"{len(jax.devices())} devices", versions=versions)
    while line.asked():
        every = [next(reports) for _ in range(given["reports"])]
        params = jax.block_until_ready(every[-1].state.params)
        steps, examples = (
            sum(report.record[name] for report in every) for name in ("iterations", "examples")
        )
        done = Done(every[-1].record["loss"], steps, examples)
        line.answer(done, lambda: named(params), compile_s=executor.compilations.seconds)  # noqa: B023


if __name__ == "__main__":
    main(*sys.argv[1:])
