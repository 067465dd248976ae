"""Rounds of federated learning on one machine: this library beside PyTorch, Flower and fedjax.

Every contestant is a process that waits until it is asked for a round. They are asked in turn, so
that all see the same load of the machine, and none works while another does. All start from the
same weights and take the same examples in the same order; after two rounds their parameters are
compared, and the rounds after those are counted. Flower is tried first with one CPU for a client
and with all, and the faster takes part. Nothing is reported where somebody's parameters are not
ours: then the times would compare unlike things.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from experiments.bench import contestants, ours, work
from experiments.bench.contestants import Contestant, over_base
from experiments.bench.rows import HIGHER, LOWER, Measured, Request, Row, measured
from snake_jax import streams
from snake_jax.config import ImageConfig
from snake_jax.data.images import sources
from snake_jax.data.images.dataset import Split
from snake_jax.errors import UserError
from snake_jax.runs import loop

MODEL = "cnn"
SEED = 0
LEARNING_RATE = 0.003
"""Without clipping the library's default of 0.02 kills this network's units; the time is the
same.
"""
GREATEST_DIFFERENCE = 0.01
"""Of parameters after the checked rounds, over what those changed: ten times what float32 and its
sums explain.
"""
TRIAL_ROUNDS = 3
TEST_EXAMPLES = 64  # nobody evaluates, but a data set has a test split
PEERS = ("torch", "flower", "fedjax")


class Sizes(NamedTuple):
    """What a round is, and who takes part.

    Attributes:
      nodes: all of them train in every round.
      examples: on each node.
      batch: examples in a step.
      dataset: as in `experiments.classify`; empty: noise in the shape of CIFAR-10.
      executors: of this library.
      snake: whether a Snake cycle over the same nodes is timed too.
    """

    nodes: int
    examples: int
    batch: int
    dataset: str
    executors: tuple[str, ...]
    snake: bool = False


class UnlikeWork(RuntimeError):
    """Somebody did not do the same work; the message names them."""


def run(
    sizes: Sizes, table: str, goals: dict[str, float], repeats: int, request: Request
) -> Measured:
    """All contestants' rounds.

    Args:
      sizes: of a round.
      table: its title.
      goals: by kind of contestant, how many times our time theirs should be, at least.
      repeats: rounds that count.
      request: what was asked for.

    Raises:
      UnlikeWork: parameters of somebody are not ours.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "work.npz"
        config, task = prepare(sizes, repeats, Path(folder))
        work.save(task, file)
        everyone, trials = _contest(sizes, config, file, repeats, request)
        # Parameters to compare lie in the folder.
        rows, detail = _results(table, goals, task, everyone)
    peers = {}
    for contestant in everyone:
        if contestant.kind in PEERS:
            peers[contestants.KINDS[contestant.kind].label] = _peer(contestant)
    note = (
        f"A round: {sizes.nodes} nodes with {sizes.examples} examples of "
        f"{sizes.dataset or 'noise'}, one epoch each, batch {sizes.batch}, the {MODEL} of "
        f"{_num_params(task):,} parameters. Over ours: the median of ratios within one turn, over "
        f"the fastest of ours. Start: seconds until the first round was over."
    )
    return Measured(rows, peers, [note], {"contestants": detail, "trials_s": trials})


def _contest(
    sizes: Sizes, config: dict[str, Any], file: Path, repeats: int, request: Request
) -> tuple[list[Contestant], dict[str, float]]:
    """Everyone after all rounds, ended; and what trials took."""
    trials: dict[str, float] = {}
    everyone: list[Contestant] = []
    try:
        for variants in _field(sizes, config, request):
            request.say(f"start: {variants[0].name}")
            chosen, tried = contestants.fastest(variants, file, TRIAL_ROUNDS)
            trials |= tried
            everyone.append(chosen)
            chosen.start(file)
        # The first round was each one's start.
        not_counted = work.CHECKED_ROUNDS - 1
        turns = not_counted + repeats
        for turn in range(turns):
            request.say(f"round {turn + 1} of {turns}")
            for contestant in everyone:
                contestant.round(counted=turn >= not_counted)
    finally:
        for contestant in everyone:
            contestant.close()
    return everyone, trials


def _peer(contestant: Contestant) -> str:
    """With which versions and in which variant it ran, or why it did not."""
    if contestant.missing:
        return contestant.missing
    return f"{contestant.versions()} ({contestant.told['variant']})"


def prepare(sizes: Sizes, repeats: int, folder: Path) -> tuple[dict[str, Any], work.Work]:
    """The configuration of ours, as keyword arguments of ImageConfig, and the same as work for all.

    Raises:
      UserError: the data set is missing or too small.
    """
    # Both read the same file of examples.
    dataset = folder / "data.npz"
    train, test = _splits(sizes.dataset, sizes.nodes * sizes.examples)
    np.savez(
        dataset, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels
    )
    # Ours evaluates in its last round, so there is one more, which nobody asks for.
    rounds = work.CHECKED_ROUNDS + max(repeats, TRIAL_ROUNDS) + 1
    config: dict[str, Any] = {
        "algorithm": "fedavg",
        "model": MODEL,
        "dataset": f"npz:{dataset}",
        "nodes": sizes.nodes,
        "cycles": rounds,
        "batch_size": sizes.batch,
        "learning_rate": LEARNING_RATE,
        "lr_schedule": "constant",
        "clip_norm": 0.0,
        "distill": "off",
        "eval_every": 10**6,
        "seed": SEED,
    }
    setup = loop.prepare(ImageConfig(**config))
    prepared = setup.data.dataset
    task = work.Work(
        images=prepared.train.images,
        labels=prepared.train.labels,
        orders=orders(setup.data.shards, rounds, SEED),
        mean=np.asarray(prepared.mean, np.float32),
        std=np.asarray(prepared.std, np.float32),
        params=ours.named(loop.initial_state(setup).params),
        batch_size=sizes.batch,
        learning_rate=LEARNING_RATE,
        momentum=setup.config.momentum,
        clip_norm=0.0,
    )
    return config, task


def orders(shards: Sequence[np.ndarray], rounds: int, seed: int) -> list[list[np.ndarray]]:
    """For each round and node the node's examples in the order in which a visit takes them.

    The visit is of one epoch, and every round is a turn.
    """
    found = []
    for number in range(rounds):
        nodes = []
        for node, shard in enumerate(shards):
            generator = streams.generator(seed, "shuffle", number, node, 0)
            nodes.append(generator.permutation(shard))
        found.append(nodes)
    return found


def _splits(dataset: str, wanted: int) -> tuple[Split, Split]:
    rng = np.random.default_rng(SEED)
    if not dataset:
        return _noise(rng, wanted), _noise(rng, TEST_EXAMPLES)
    found = sources.load_dataset(dataset)
    if len(found.train.labels) < wanted:
        raise UserError(f"{dataset}: {wanted} examples wanted, {len(found.train.labels)} there")
    chosen = rng.permutation(len(found.train.labels))[:wanted]
    train = Split(found.train.images[chosen], found.train.labels[chosen])
    return train, found.test


def _noise(rng: np.random.Generator, count: int) -> Split:
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int32) % 10
    return Split(images, labels)


def _results(
    table: str, goals: dict[str, float], task: work.Work, everyone: list[Contestant]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows of those who ran, and what everybody told."""
    ran = [contestant for contestant in everyone if not contestant.missing]
    mine = [contestant for contestant in ran if contestant.kind == "ours"]
    if not mine:
        raise UnlikeWork(f"none of ours ran: {everyone[0].missing}")
    medians = [median(contestant.seconds) for contestant in mine]
    base = mine[medians.index(min(medians))]

    # Whoever trained on something else is no contestant. A Snake cycle is other work on purpose.
    off = {}
    for contestant in ran:
        if contestant.kind != "snake":
            off[contestant.name] = difference(task, contestant, base)
    unlike = [name for name, value in off.items() if value >= GREATEST_DIFFERENCE]
    if unlike:
        raise UnlikeWork(
            f"{', '.join(unlike)}: not the same work as ours, so the times mean nothing"
        )

    rows: list[Row] = []
    told: list[dict[str, Any]] = []
    for contestant in ran:
        rows += _rows(table, goals, contestant, base)
        about = {
            "name": contestant.name,
            "start_s": contestant.start_s,
            "difference": off.get(contestant.name),
            "first": contestant.first,
        }
        told.append(about | contestant.told)
    return rows, told


def difference(task: work.Work, contestant: Contestant, base: Contestant) -> float:
    """How far a contestant's checked parameters are from ours, over what those changed.

    1 where it did other steps.
    """
    if _counts(contestant) != _counts(base):
        return 1.0
    theirs = work.load_params(contestant.checked)
    reference = work.load_params(base.checked)
    return work.difference(theirs, reference, task.params)


def _counts(contestant: Contestant) -> tuple[int, int, int]:
    """Steps and examples of its first round, and its parameters."""
    first = contestant.first
    return first["steps"], first["examples"], contestant.told["parameters"]


def _rows(
    table: str, goals: dict[str, float], contestant: Contestant, base: Contestant
) -> list[Row]:
    seconds = contestant.seconds
    examples = contestant.first["examples"]
    an_example_us = [1e6 * round_s / examples for round_s in seconds]
    over_ours = over_base(contestant, base)
    # Peers are to be slower than ours, others of ours as fast as its fastest.
    better = HIGHER if contestant.kind in PEERS else LOWER
    goal = goals.get(contestant.kind)
    name = contestant.name
    return [
        measured(table, name, "round", seconds, "s"),
        measured(table, name, "an example", an_example_us, "µs"),
        measured(table, name, "over ours", over_ours, better=better, limit=goal),
        Row(table, name, "start", contestant.start_s, "s"),
    ]


def _num_params(task: work.Work) -> int:
    return sum(kernel.size + bias.size for kernel, bias in task.params.values())


def _field(sizes: Sizes, config: dict[str, Any], request: Request) -> list[list[Contestant]]:
    """Everyone's variants, of which the fastest is to take part."""
    field = []
    for executor in sizes.executors:
        ours_config = {**config, "executor": executor}
        field.append([_mine("ours", executor, ours_config, 1, request)])
    if sizes.snake:
        # A cycle makes a report a visit, where a round of FedAvg makes one.
        snake: dict[str, Any] = {**config, "algorithm": "snake"}
        one_cycle: dict[str, Any] = {**snake, "cycles": 1}
        setup = loop.prepare(ImageConfig(**one_cycle))
        visits = len(loop.planned(setup))
        field.append([_mine("snake", "", snake, visits, request)])

    torch_loop = Contestant("torch", "", request.peer_python, {"cores": request.cores}, {})
    flowers = [_flower(cpus, request) for cpus in sorted({1, request.cores})]
    fedjax = Contestant("fedjax", "", request.fedjax_python, {}, {})
    field += [[torch_loop], flowers, [fedjax]]
    return field


def _mine(
    kind: str, variant: str, config: dict[str, Any], reports: int, request: Request
) -> Contestant:
    """One of this library; those that emulate nodes on devices are given as many as cores."""
    environment = {}
    if variant not in ("", "loop", "scan", "vmap"):
        devices = f"--xla_force_host_platform_device_count={request.cores}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
    options = {"config": config, "reports": reports}
    return Contestant(kind, variant, sys.executable, options, environment)


def _flower(cpus: int, request: Request) -> Contestant:
    """Flower with so many CPUs for a client."""
    options = {"cpus": cpus, "cores": request.cores, "channels_last": True}
    return Contestant("flower", f"{cpus} CPU a client", request.peer_python, options, {})
