"""Writes the partition of CIFAR-10 that Flower's fednova baseline trains on.

  python -m experiments.fednova_partition --output=runs/fednova_partition.json
  python -m experiments.classify --flagfile=experiments/presets/fednova_vgg11.flags \\
      --partition=file:runs/fednova_partition.json --workdir=runs/fednova_vgg11

After Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020 (FedNova), section 5: 16 clients, every class split by Dirichlet(0.1),
clients with their even share get no more. Their code draws it once for all seeds of a run, from
NumPy's legacy generator with seed 2020, so the same draws in the same order give the same split.
The data set must be CIFAR-10 in its original order.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from snake_jax.cli import launch
from snake_jax.data import partition
from snake_jax.data.images import sources
from snake_jax.errors import UserError

DATASET = flags.DEFINE_string(
    "dataset", "cifar10", "CIFAR-10 in its original order: cifar10, or npz:PATH"
)
OUTPUT = flags.DEFINE_string("output", "runs/fednova_partition.json", "file to write")

_CLIENTS = 16
_ALPHA = 0.1
_SEED = 2020
_LEAST = 10  # examples that every client has; a draw that leaves one with fewer is done again


def main(_: list[str]) -> None:
    """Draws and writes it."""
    train = sources.load_dataset(DATASET.value).train
    shards = draw(train.labels)
    text = json.dumps([shard.tolist() for shard in shards])
    file = Path(OUTPUT.value)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise UserError(
            f"--output={OUTPUT.value}: {error.strerror}; give a file that can be written"
        ) from error
    classes = int(train.labels.max()) + 1
    print(partition.counts_table(shards, train.labels, classes))


def draw(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of every client, from the draws that the baseline makes."""
    rng = np.random.RandomState(_SEED)
    while True:
        shards = [np.zeros(0, np.int64) for _ in range(_CLIENTS)]
        for label in range(int(labels.max()) + 1):
            members = np.flatnonzero(labels == label)
            rng.shuffle(members)
            shares = rng.dirichlet(np.full(_CLIENTS, _ALPHA))
            # A client with its even share gets no more.
            for client, shard in enumerate(shards):
                if len(shard) >= len(labels) / _CLIENTS:
                    shares[client] = 0
            ends = np.cumsum(shares / shares.sum()) * len(members)
            parts = np.split(members, ends.astype(int)[:-1])
            for client, part in enumerate(parts):
                shards[client] = np.concatenate([shards[client], part])
        if min(len(shard) for shard in shards) >= _LEAST:
            return shards


if __name__ == "__main__":
    launch.run(main)
