"""Rounds by this library, as `experiments.classify` runs them, without evaluation.

  python -m experiments.bench.ours WORK.npz CHECKED.npz '{"config": {...}, "reports": 1}'

A round is as many of the runner's reports: one of FedAvg, one a visit of Snake.
"""

import functools
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
    """Kernel and bias of every layer: of its two arrays the bias is the one of one dimension."""
    found = {}
    for name, subtree in params.items():
        bias, kernel = sorted(jax.tree.leaves(subtree), key=np.ndim)
        found[name] = np.asarray(kernel), np.asarray(bias)
    return found


def _keep_nothing(state: loop.State) -> None:
    del state


def main(work_file: str, checked_file: str, options: str) -> None:
    """Does the rounds that are asked for."""
    line = Line(Path(checked_file))
    work = load(Path(work_file))
    given = json.loads(options)
    config = ImageConfig(**given["config"])
    setup = loop.prepare(config)

    # The setup divides the data by itself: nodes must hold what the work says they hold.
    for shard, order in zip(setup.data.shards, work.orders[0], strict=True):
        np.testing.assert_array_equal(np.sort(shard), np.sort(order))
    executor = loop.make_engine(setup)
    state = loop.initial_state(setup)
    reports = loop.train(setup, executor, state, keep=_keep_nothing)
    versions = {name: sys.modules[name].__version__ for name in ("jax", "jaxlib")}
    line.ready(named(state.params), variant=f"{len(jax.devices())} devices", versions=versions)

    while line.asked():
        steps, examples = 0, 0
        for _ in range(given["reports"]):
            report = next(reports)
            steps += report.record["iterations"]
            examples += report.record["examples"]
        # The clock stops when all is computed, not when it is under way.
        params = jax.block_until_ready(report.state.params)
        done = Done(report.record["loss"], steps, examples)
        compile_s = executor.compilations.seconds
        line.answer(done, functools.partial(named, params), compile_s=compile_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
