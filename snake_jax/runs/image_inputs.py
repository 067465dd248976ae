"""What a run on images reads: a data set, cleaned, cut down, and laid out over the nodes."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.algorithms.base import Algorithm
from snake_jax.config import ImageConfig
from snake_jax.data import partition
from snake_jax.data.divergence import label_divergence
from snake_jax.data.drawn import shard_sizes
from snake_jax.data.images import subsets
from snake_jax.data.images.dataset import Dataset, take
from snake_jax.data.images.quality import clean, clean_nodes
from snake_jax.data.node_hold_out import held_out
from snake_jax.data.node_quality import NodeQuality, table
from snake_jax.errors import UserError

ARRAYS = "arrays"
"""The data set of a run on arrays of one's own, as its configuration names it."""
NOTHING_COUNTED = np.zeros((0, 0), np.int64)
"""Of data that was not counted by node and class."""


class Images(NamedTuple):
    """The images of a run.

    Attributes:
      dataset: cleaned, with the statistics to normalise by.
      shards: each node's indices into the training examples, as the method trains on them.
      divergence: between the nodes' label distributions, by `config.distill_measure`.
      quality: what cleaning did, one line.
      largest: how many examples the largest of all nodes holds, where these are not all nodes'
        images; else 0.
      counts: `[K, C]` examples of each class at each node.
      own: each node's indices into the training examples that it holds out; empty: nothing.
      of_nodes: what each node found its own data to be; empty: none looked.
    """

    dataset: Dataset
    shards: Sequence[np.ndarray]
    divergence: float
    quality: str
    largest: int = 0
    counts: np.ndarray = NOTHING_COUNTED
    own: Sequence[np.ndarray] = ()
    of_nodes: tuple[NodeQuality, ...] = ()


def prepare_data(config: ImageConfig, algorithm: Algorithm, loaded: Dataset) -> Images:
    """The data set cleaned, cut down, normalised and laid out over the nodes as the flags say.

    Args:
      config: of the run.
      algorithm: its method, which may put all nodes' examples together.
      loaded: the data set as its source has it.

    Raises:
      UserError: it cannot be.
    """
    # Where one cleans for all, examples are dropped before nodes are given any.
    dataset, quality = loaded, ""
    if config.clean == "together":
        _check_together(config)
        dataset, report = clean(loaded, outliers=config.outliers, seed=config.seed)
        quality = str(report)
    dataset = subsets.subsample(
        dataset,
        train_examples=config.train_examples,
        validation=config.validation,
        seed=config.seed,
    )

    labels = dataset.train.labels
    shards = partition.split_over_nodes(
        config.partition, labels, config.nodes, config.alpha, config.seed
    )
    # Where each node cleans for itself, it does so before anything else is made of its data.
    of_nodes: tuple[NodeQuality, ...] = ()
    if config.clean == "each_node":
        dataset, shards, of_nodes = clean_nodes(
            dataset, shards, outliers=config.outliers, clusters=config.clusters, seed=config.seed
        )
        quality = table(of_nodes)
        labels = dataset.train.labels
    if loaded.note:
        quality = f"{loaded.note}\n{quality}"
    if config.pixel_mean:
        mean = _of_channels("pixel_mean", config.pixel_mean, dataset.mean, or_zero=True)
        dataset = dataset._replace(mean=mean)
    if config.pixel_std:
        std = _of_channels("pixel_std", config.pixel_std, dataset.std, or_zero=False)
        dataset = dataset._replace(std=std)

    # Divergence is one of the nodes' data, whatever the method then makes of their shards.
    counts = partition.label_counts(shards, labels, dataset.num_classes)
    divergence = label_divergence(counts, config.distill_measure)
    own: list[np.ndarray] = []
    if config.evaluate_nodes:
        shards = list(shards)
        for node, shard in enumerate(shards):
            is_held = held_out(len(shard), config.evaluate_nodes, config.seed, node)
            own.append(shard[is_held])
            shards[node] = shard[~is_held]
    trained = algorithm.shards(shards)
    return Images(dataset, trained, divergence, quality, counts=counts, own=own, of_nodes=of_nodes)


def _check_together(config: ImageConfig) -> None:
    """Raises UserError for what no node can find where one cleans for all."""
    for flag in ("clusters", "max_dropped"):
        value = getattr(config, flag)
        if value:
            raise UserError(
                f"--{flag}={value}: with --clean=together no node looks at its own data; say "
                "--clean=each_node"
            )


def _of_channels(flag: str, text: str, own: tuple[float, ...], or_zero: bool) -> tuple[float, ...]:
    """What a flag gives for each of the data set's channels.

    Args:
      flag: its name.
      text: its value, numbers with commas between them.
      own: what the data set has there.
      or_zero: whether they may be 0; else they are above it. None is above 1.

    Raises:
      UserError: they are not one for each channel.
    """
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    in_range = all(0 < value <= 1 or (or_zero and value == 0) for value in found)
    if len(found) != len(own) or not in_range:
        allowed = "[0, 1]" if or_zero else "(0, 1]"
        example = ",".join(f"{value:.4f}" for value in own)
        raise UserError(
            f"--{flag}={text}: want {len(own)} numbers in {allowed}, a channel each; the data's: "
            f"{example}"
        )
    return found


def named_by_content(config: ImageConfig, dataset: Dataset) -> ImageConfig:
    """The configuration with arrays of one's own named by what they hold.

    So a run that goes on with other arrays is refused, as one with another data set is.
    """
    if config.dataset != ARRAYS:
        return config
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        for array in split:
            digest.update(np.ascontiguousarray(array).data)
    name = f"{ARRAYS}:{digest.hexdigest()[:16]}"
    return dataclasses.replace(config, dataset=name)


def part_of(data: Images, nodes: Sequence[int], held_out: bool) -> Images:
    """What these nodes hold of the data, and of all others what shapes everybody's batches.

    Args:
      data: of all nodes.
      nodes: whose images stay.
      held_out: whether the held-out images do.
    """
    shards, chosen, start = [], [np.zeros(0, np.int64)], 0
    for node, shard in enumerate(data.shards):
        count = len(shard) if node in nodes else 0
        shards.append(np.arange(start, start + count, dtype=shard.dtype))
        chosen.append(shard[:count])
        start += count
    dataset = data.dataset._replace(train=take(data.dataset.train, np.concatenate(chosen)))
    if not held_out:
        dataset = dataset._replace(test=take(dataset.test, np.zeros(0, np.int64)))
    largest = max(shard_sizes(data.shards))
    # How other nodes' labels are spread is none of theirs.
    return Images(dataset, shards, data.divergence, data.quality, largest, counts=NOTHING_COUNTED)
