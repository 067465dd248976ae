"""FedAvg here and in PyTorch, from equal ground: rounds to 97 % of MNIST.

  python -m experiments.fedavg_peer --output=experiments/results/fedavg_peer.json

The setting is that of FedAvg's paper for its 2NN (experiments/reproduction/rounds.py): 100 clients,
ten a round, one epoch, batches of 10, SGD without momentum. The side `pytorch` is algorithm 1 of
the paper (McMahan et al. 2017) in PyTorch, as plain as it can be written; `ours` is this project.
Both train on the same division, from weights drawn as PyTorch's layers start, at the same rate, and
each with draws of its own of weights, clients and batches. With the same --output it goes on where
it was.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import own_flags
from experiments.bench import results
from experiments.reproduction import rounds
from experiments.reproduction.cases import Case
from snake_jax.cli import launch
from snake_jax.errors import UserError
from snake_jax.runs import image_task, loop
from snake_jax.runs.engines import make_engine
from snake_jax.runs.image_task import ImageSetup

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_string(
    "dataset", rounds.MNIST, "MNIST: tfds:mnist (downloads it) or npz:FILE", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", "", "JSON file of what came out; empty: print only", flag_values=FLAGS
)
SEEDS = flags.DEFINE_string("seeds", "0,1,2", "a run of both sides for each", flag_values=FLAGS)
PARTITIONS = flags.DEFINE_list(
    "partitions", ",".join(rounds.PARTITIONS), "divisions", flag_values=FLAGS
)
RATE = flags.DEFINE_float("rate", 0.215, "learning rate", lower_bound=0, flag_values=FLAGS)
MOST = flags.DEFINE_integer(
    "most_rounds", 0, "of a run; 0: half as many again as published", flag_values=FLAGS
)

ROW = rounds.ROWS["2nn_10"]
METHOD = "2nn_10_0.215"
"""Of that row; the rate is told apart."""
_UNITS = 200


def main(_: list[str]) -> None:
    """Runs what is missing, and prints the rounds of every run and the mean of a side."""
    for partition in PARTITIONS.value:
        if partition not in ROW.published:
            raise UserError(f"--partitions={partition}: want some of {', '.join(ROW.published)}")
    own_flags.check_pytorch()
    every = list(itertools.product(PARTITIONS.value, own_flags.seeds(SEEDS.value)))
    output = Path(OUTPUT.value) if OUTPUT.value else None
    rows = results.kept(output)
    done = {(row["side"], row["partition"], row["rate"], row["seed"]) for row in rows}
    sides = {"ours": _ours, "pytorch": _in_pytorch}
    for partition, seed in every:
        missing = [side for side in sides if (side, partition, RATE.value, seed) not in done]
        if not missing:
            continue
        setup = _setup(partition, seed)
        for side in missing:
            key = side, partition, RATE.value, seed
            accuracies = _until(sides[side](setup), setup.config.cycles)
            reached = rounds.rounds_to(ROW.target, accuracies)
            row = dict(zip(("side", "partition", "rate", "seed"), key, strict=True))
            rows.append({**row, "rounds": reached, "accuracies": accuracies})
            said = "not reached" if reached is None else f"{reached:.1f} rounds"
            launch.say(f"{side}, {partition}, seed {seed}: {said}")
            results.keep(output, _command(rows), rows)
    for side, partition in itertools.product(sides, PARTITIONS.value):
        mine = [row for row in rows if (row["side"], row["partition"]) == (side, partition)]
        found = [row["rounds"] for row in mine if row["rate"] == RATE.value]
        if found and None not in found:
            launch.say(f"{side}, {partition}: {statistics.fmean(found):.1f} rounds on average")


def _command(rows: Iterable[Mapping[str, Any]]) -> str:
    """One that gives all rows of this rate, whichever launch each is of."""
    seeds = sorted({row["seed"] for row in rows if row["rate"] == RATE.value})
    named = ",".join(str(seed) for seed in seeds)
    return f"python -m experiments.fedavg_peer --rate={RATE.value:g} --seeds={named}"


def _setup(partition: str, seed: int) -> ImageSetup:
    """Our run's, which has the division for both sides."""
    scale = rounds.TOPIC.scales["cpu"]
    case = Case(METHOD, partition, seed=seed)
    config = rounds.config_of(case, scale, {"data": DATASET.value}, RATE.value)
    most = MOST.value or config.cycles
    return image_task.prepare(dataclasses.replace(config, init="torch", cycles=most))


def _until(accuracies: Iterator[float], most: int) -> list[float]:
    """Those up to the target, or of so many rounds."""
    found = []
    for accuracy in itertools.islice(accuracies, most):
        found.append(accuracy)
        if accuracy >= ROW.target:
            break
    return found


def _ours(setup: ImageSetup) -> Iterator[float]:
    """The test accuracy after each round."""
    engine = make_engine(setup)
    try:
        for report in loop.train(setup, engine, loop.initial_state(setup), lambda state: None):
            yield report.record["accuracy"]
    finally:
        engine.close()


def _in_pytorch(setup: ImageSetup) -> Iterator[float]:
    """Likewise, of algorithm 1."""
    import torch
    from torch import nn

    # Pixels from 0 to 1 as in our own run (`--pixel_mean=0 --pixel_std=1`), a row an image.
    config, dataset = setup.config, setup.data.dataset

    def rows_of(images: np.ndarray) -> Any:
        return torch.from_numpy(images.reshape(len(images), -1)).float() / 255

    x, test_x = rows_of(dataset.train.images), rows_of(dataset.test.images)
    y = torch.from_numpy(dataset.train.labels.astype(np.int64))
    test_y = torch.from_numpy(dataset.test.labels.astype(np.int64))

    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = nn.Sequential(
        nn.Linear(x.shape[1], _UNITS),
        nn.ReLU(),
        nn.Linear(_UNITS, _UNITS),
        nn.ReLU(),
        nn.Linear(_UNITS, dataset.num_classes),
    )
    weights = [param.detach().clone() for param in model.parameters()]
    while True:
        clients = rng.choice(config.nodes, config.nodes_per_round, replace=False)
        counts = [len(setup.data.shards[client]) for client in clients]
        mean = [torch.zeros_like(weight) for weight in weights]
        for client, count in zip(clients, counts, strict=True):
            # Every client starts from the last mean.
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
            members = torch.from_numpy(rng.permutation(setup.data.shards[client]).astype(np.int64))
            for chosen in members.split(config.batch_size):
                loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(mean, list(model.parameters()), alpha=count / sum(counts))
        weights = mean
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), weights)
            correct = (model(test_x).argmax(1) == test_y).float().mean()
        yield float(correct)


if __name__ == "__main__":
    launch.run(main, parser=own_flags.parser(FLAGS, __doc__))
