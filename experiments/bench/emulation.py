"""Seconds a round of FedAvg on one machine: this library beside a PyTorch loop, Flower's simulation and fedjax.

  python -m experiments.bench.emulation [--repeats=15] [--nodes=16] [--json=FILE] [--peer_python=PATH]

Every contestant is a process that waits until it is asked for a round. They are asked in turn, so that all see the same
load of the machine, and none works while another does. All start from the same weights and take the same examples in
the same order; after two rounds their parameters are compared, and the rounds after those are counted. Flower is tried
first with one CPU for a client and with all, and the faster takes part. Ends with exit code 1 where somebody's
parameters are not ours: then the times compare unlike things.
"""

import dataclasses
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from absl import flags

from experiments import launch
from experiments.bench import contestants, ours, table, work
from experiments.bench.contestants import Contestant
from snake_jax import data, runner
from snake_jax.config import Config
from snake_jax.data import Split
from snake_jax.errors import UserError
from snake_jax.kernels.timing import machine

CORES = os.cpu_count() or 1
NODES = flags.DEFINE_integer("nodes", 16, "nodes, all of which train in every round", lower_bound=1)
EXAMPLES = flags.DEFINE_integer("examples", 320, "examples on each node", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 32, "examples in a step", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 15, "rounds of each contestant that count", lower_bound=1)
DATASET = flags.DEFINE_string("dataset", "", "as in experiments.classify; empty: noise in the shape of CIFAR-10")
WHO = flags.DEFINE_list("contestants", list(contestants.KINDS), "who takes part")
EXECUTORS = flags.DEFINE_list("executors", [], "executors of this library; empty: all it has")
CORES_USED = flags.DEFINE_integer("cores", CORES, "PyTorch's threads, Flower's CPUs, devices of pmap", lower_bound=1)
PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "interpreter that has flwr, fedjax and torch")
FEDJAX_PYTHON = flags.DEFINE_string("fedjax_python", "", "interpreter that has fedjax, if another one")
JSON = flags.DEFINE_string("json", "", "file that gets every number")

MODEL, SEED = "cnn", 0
LEARNING_RATE = 0.003
"""Without clipping the library's default of 0.02 kills this network's units; the time is the same."""
LEAST_RATIOS = {"torch": 1.0, "flower": 3.0}
"""Goals: the fastest of these over the fastest of ours, at least."""
GREATEST_DIFFERENCE = 0.01
"""Of parameters after the checked rounds, over what those changed: ten times what float32 and its sums explain."""
TRIAL_ROUNDS = 5
TEST_EXAMPLES = 64  # nobody evaluates, but a data set has a test split
Row = dict[str, Any]


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    if wrong := [kind for kind in WHO.value if kind not in contestants.KINDS]:
        raise UserError(f"--contestants={wrong[0]}: not one of {', '.join(contestants.KINDS)}")
    if wrong := [name for name in EXECUTORS.value if name not in executors()]:
        raise UserError(f"--executors={wrong[0]}: not one of {', '.join(executors())}")
    if JSON.value and not Path(JSON.value).absolute().parent.is_dir():
        raise UserError(f"--json={JSON.value}: no such folder")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = measure(Path(folder))
    print(table.report(result))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if unlike := [row["name"] for row in result["contestants"] if row.get("same_work") is False]:
        sys.exit(launch.fail(f"{', '.join(unlike)}: not the same work as ours, so the times mean nothing", 1))


def executors() -> tuple[str, ...]:
    """Those that the library has."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    return tuple(fields["executor"].metadata["choices"]) if "executor" in fields else ("loop",)


def measure(folder: Path) -> Row:
    """All contestants' rounds; the result is what --json writes.

    Args:
      folder: for the files that they share.
    """
    header, file = machine(), folder / "work.npz"
    config, task = prepare(folder)
    work.save(task, file)
    peers = PEER_PYTHON.value
    field = contestants.field(
        EXECUTORS.value or executors(), config, CORES_USED.value, peers, FEDJAX_PYTHON.value or peers
    )
    trials: dict[str, float] = {}
    everyone: list[Contestant] = []
    try:
        for kind in WHO.value:
            for entry in field[kind]:
                chosen, tried = contestants.fastest(entry, file, TRIAL_ROUNDS)
                trials |= tried
                everyone.append(chosen)
                chosen.start(file)
        for turn in range(work.CHECKED_ROUNDS - 1 + REPEATS.value):
            for contestant in everyone:
                contestant.round(counted=turn >= work.CHECKED_ROUNDS - 1)
    finally:
        for contestant in everyone:
            contestant.close()
    return {
        "suite": "emulation",
        "command": shlex.join(["python", "-m", "experiments.bench.emulation", *sys.argv[1:]]),
        "machine": header | {"cores_used": CORES_USED.value, "load_1min_after": round(os.getloadavg()[0], 2)},
        **_results(task, everyone),
        "trials_s": trials,
    }


def prepare(folder: Path) -> tuple[Row, work.Work]:
    """The configuration of ours, as keyword arguments of Config, and the same as work for everybody.

    Raises:
      UserError: the data set is missing or too small.
    """
    dataset, wanted = folder / "data.npz", NODES.value * EXAMPLES.value
    train, test = _splits(wanted)
    np.savez(dataset, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    rounds = (
        work.CHECKED_ROUNDS + max(REPEATS.value, TRIAL_ROUNDS) + 1
    )  # ours evaluates in its last: nobody asks for it
    config: Row = {
        "algorithm": "fedavg",
        "model": MODEL,
        "dataset": f"npz:{dataset}",
        "nodes": NODES.value,
        "cycles": rounds,
        "batch_size": BATCH.value,
        "learning_rate": LEARNING_RATE,
        "lr_schedule": "constant",
        "clip_norm": 0.0,
        "distill": "off",
        "eval_every": rounds,
        "seed": SEED,
    }
    setup = runner.prepare(Config(**config))
    task = work.Work(
        images=setup.dataset.train.images,
        labels=setup.dataset.train.labels,
        shards=setup.shards,
        mean=np.asarray(setup.dataset.mean, np.float32),
        std=np.asarray(setup.dataset.std, np.float32),
        params=ours.named(runner.initial_state(setup).params),
        batch_size=BATCH.value,
        learning_rate=LEARNING_RATE,
        momentum=setup.config.momentum,
        clip_norm=0.0,
        seed=SEED,
        rounds=rounds,
    )
    return config, task


def _splits(wanted: int) -> tuple[Split, Split]:
    rng = np.random.default_rng(SEED)
    if not DATASET.value:
        return _noise(rng, wanted), _noise(rng, TEST_EXAMPLES)
    found = data.load(DATASET.value)
    if len(found.train.labels) < wanted:
        raise UserError(f"--dataset={DATASET.value}: {wanted} examples wanted, {len(found.train.labels)} there")
    chosen = rng.permutation(len(found.train.labels))[:wanted]
    return Split(found.train.images[chosen], found.train.labels[chosen]), found.test


def _noise(rng: np.random.Generator, count: int) -> Split:
    return Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count, dtype=np.int32) % 10)


def _results(task: work.Work, everyone: list[Contestant]) -> Row:
    """Rows of those who ran and of those who could not, and the goals."""
    mine = [contestant for contestant in everyone if contestant.kind == "ours" and not contestant.missing]
    base = min(mine, key=lambda contestant: median(contestant.seconds), default=None)
    sizes = {
        "model": MODEL,
        "parameters": sum(array.size for pair in task.params.values() for array in pair),
        "nodes": len(task.shards),
        "examples_per_node": len(task.shards[0]),
        "image_shape": list(task.images.shape[1:]),
        "dataset": DATASET.value or "noise",
        "batch_size": task.batch_size,
        "steps": sum(-(-len(shard) // task.batch_size) for shard in task.shards),
        "examples": len(task.images),
        "repeats": REPEATS.value,
    }
    rows = [_row(task, sizes, contestant, base) for contestant in everyone]
    return {"work": sizes, "ours": base.name if base else None, "contestants": rows, "goals": _goals(rows)}


def _row(task: work.Work, sizes: Row, contestant: Contestant, base: Contestant | None) -> Row:
    row: Row = {"name": contestant.name, "kind": contestant.kind}
    if contestant.missing:
        return row | {"missing": contestant.missing}
    seconds, losses = contestant.seconds, [done["loss"] for done in (contestant.first, *contestant.rounds)]
    quartiles = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    ratio = difference = None
    if base is not None:
        ratio = median(s / b for s, b in zip(seconds, base.seconds, strict=True))
        theirs, reference = (work.load_params(entry.checked) for entry in (contestant, base))
        difference = work.difference(theirs, reference, task.params)
    done = contestant.first["steps"], contestant.first["examples"], contestant.told["parameters"]
    count = sizes["steps"], sizes["examples"], sizes["parameters"]
    return row | {
        "round_s": {"median": median(seconds), "q1": quartiles[0], "q3": quartiles[2], "fastest": min(seconds)},
        "samples_s": seconds,
        "ratio": ratio,
        "start_s": contestant.start_s,
        "compile_s": contestant.first.get("compile_s"),
        "steps": contestant.first["steps"],
        "examples": contestant.first["examples"],
        "losses": losses,
        "difference": difference,
        "same_work": None if difference is None else difference < GREATEST_DIFFERENCE and done == count,
        **contestant.told,
    }


def _goals(rows: list[Row]) -> list[Row]:
    goals = []
    for kind, least in LEAST_RATIOS.items():
        value = min((row["ratio"] for row in rows if row["kind"] == kind and row.get("ratio")), default=None)
        name = f"{contestants.KINDS[kind].label} over ours"
        goals.append({"goal": name, "value": value, "limit": least, "met": None if value is None else value >= least})
    return goals


if __name__ == "__main__":
    launch.run(main)
