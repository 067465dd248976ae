"""The quality step: broken values, duplicates and, on demand, outliers are dropped.

A data set passes it once, before it is laid out over the nodes (`clean`), or each node passes its
own data through it and sees no other's (`clean_nodes`).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.data.images.dataset import Dataset, channel_stats, finite_examples, take
from snake_jax.data.node_quality import NodeQuality, consistent, first_of_each
from snake_jax.errors import UserError

_PCA_SIZE = 32
_PCA_SAMPLE = 5000  # examples the principal axes are fitted on; all are projected


class QualityReport(NamedTuple):
    """Numbers of examples kept, dropped and noticed; as a string one line for the log.

    Attributes:
      train_kept: of the training examples.
      test_kept: of the test examples.
      train_nonfinite: dropped, NaN or infinity in the image.
      test_nonfinite: likewise.
      duplicates: dropped from train, the same image as an earlier one.
      conflicting_labels: of these, those whose label differs from the one kept.
      outliers: dropped from train by the isolation forest.
      test_overlap: kept train images that are in the test split too: noticed, not dropped.
    """

    train_kept: int
    test_kept: int
    train_nonfinite: int
    test_nonfinite: int
    duplicates: int
    conflicting_labels: int
    outliers: int
    test_overlap: int

    def __str__(self) -> str:
        return (
            f"quality: kept {self.train_kept} train and {self.test_kept} test examples; dropped "
            f"{self.train_nonfinite} train and {self.test_nonfinite} test with NaN or infinity, "
            f"{self.duplicates} duplicates ({self.conflicting_labels} with another label), "
            f"{self.outliers} outliers; {self.test_overlap} train images are also in test"
        )


def clean(
    dataset: Dataset, *, outliers: float = 0.0, seed: int = 0
) -> tuple[Dataset, QualityReport]:
    """The data set without non-finite examples, exact duplicates in train and outliers in train.

    Outliers are what scikit-learn's IsolationForest finds most isolated on 32 principal components.
    The channel statistics are computed again where train has changed. What is left keeps its order.

    Args:
      dataset: as it was loaded.
      outliers: share of the training examples to drop as such; 0: none.
      seed: of the search for them.

    Raises:
      UserError: `outliers` is not in [0, 0.5], or a split is left empty or train with one class.
    """
    if not 0 <= outliers <= 0.5:
        raise UserError(f"--outliers={outliers:g} must be a fraction from 0 (off) to 0.5")

    # Broken images go first: NaN equals nothing, so they would pass as different ones.
    train = take(dataset.train, finite_examples(dataset.train.images))
    test = take(dataset.test, finite_examples(dataset.test.images))

    # Then duplicates, so that no image counts twice in what is usual.
    first, conflicting = _first_occurrences(_digests(train.images), train.labels)
    unique = take(train, first)
    kept = unique
    if outliers and len(first):
        kept = take(unique, _inliers(unique.images, outliers, seed))

    if not len(test.labels) or len(np.unique(kept.labels)) < 2:
        raise UserError(
            f"{dataset.name}: {len(kept.labels)} train and {len(test.labels)} test examples are "
            f"left by the quality step; at least one test example and two classes in train are "
            f"needed"
        )
    overlap = set(_digests(kept.images)) & set(_digests(test.images))
    report = QualityReport(
        train_kept=len(kept.labels),
        test_kept=len(test.labels),
        train_nonfinite=len(dataset.train.labels) - len(train.labels),
        test_nonfinite=len(dataset.test.labels) - len(test.labels),
        duplicates=len(train.labels) - len(unique.labels),
        conflicting_labels=conflicting,
        outliers=len(unique.labels) - len(kept.labels),
        test_overlap=len(overlap),
    )

    # Statistics of unchanged images stay bit for bit what they were, and cost nothing.
    if len(kept.labels) == len(dataset.train.labels):
        return dataset._replace(test=test), report
    mean, std = channel_stats(kept.images)
    return dataset._replace(train=kept, test=test, mean=mean, std=std), report


def clean_nodes(
    dataset: Dataset,
    shards: Sequence[np.ndarray],
    *,
    outliers: float = 0.0,
    clusters: int = 0,
    seed: int = 0,
) -> tuple[Dataset, list[np.ndarray], tuple[NodeQuality, ...]]:
    """The data set without what each node drops of its own data, and the nodes' indices into it.

    Broken test images are dropped too. The channel statistics are computed again where train has
    changed. What is left keeps its order.

    Args:
      dataset: as it was loaded.
      shards: each node's indices into the training examples.
      outliers: share of a node's examples to drop as such; 0: none.
      clusters: groups of alike examples that a node looks for; 0: none.
      seed: of the search for both.

    Raises:
      UserError: a node or the test split is left empty, or train with one class.
    """
    found = []
    kept_shards = []
    for node, shard in enumerate(shards):
        is_kept, quality = _of_node(
            dataset.train.images[shard], dataset.train.labels[shard], outliers, clusters, seed, node
        )
        if not is_kept.any():
            raise UserError(f"{dataset.name}: the quality step leaves node {node} no example")
        found.append(quality)
        kept_shards.append(shard[is_kept])
    test = take(dataset.test, finite_examples(dataset.test.images))

    # Examples are numbered anew where some are gone; those that lie on no node go too.
    dropped = any(quality.kept < quality.held for quality in found)
    kept = dataset._replace(test=test)
    if dropped:
        every = np.sort(np.concatenate(kept_shards))
        kept_shards = [np.searchsorted(every, shard).astype(np.int32) for shard in kept_shards]
        train = take(dataset.train, every)
        mean, std = channel_stats(train.images)
        kept = kept._replace(train=train, mean=mean, std=std)
    if not len(test.labels) or len(np.unique(kept.train.labels)) < 2:
        raise UserError(
            f"{dataset.name}: {len(kept.train.labels)} train and {len(test.labels)} test examples "
            f"are left by the quality step; at least one test example and two classes in train "
            f"are needed"
        )
    return kept, kept_shards, tuple(found)


def _of_node(
    images: np.ndarray, labels: np.ndarray, outliers: float, clusters: int, seed: int, node: int
) -> tuple[np.ndarray, NodeQuality]:
    """`[N]` bool: which of a node's own images it trains on, and what is wrong with the others."""
    # Broken images go first: NaN equals nothing, so they would pass as different ones.
    is_sound = finite_examples(images)
    missing = int((~is_sound).sum())

    # Then duplicates, so that no image counts twice in what is usual.
    digests = _digests(images)
    is_first = first_of_each(digests)
    repeated = is_sound & ~is_first
    _, conflicting = _first_occurrences(digests, np.where(is_sound, labels, -1))
    is_kept = is_sound & is_first

    outlying = 0
    sizes: tuple[int, ...] = ()
    if (outliers or clusters) and is_kept.any():
        features = _features(images[is_kept], seed, node)
        agrees, sizes = consistent(features, outliers, clusters, seed, node)
        outlying = int((~agrees).sum())
        is_kept[np.flatnonzero(is_kept)[~agrees]] = False
    dropped = {
        "with missing values": missing,
        "repeated": int(repeated.sum()) - conflicting,
        "repeated with another label": conflicting,
        "outliers": outlying,
    }
    return is_kept, NodeQuality(len(images), dropped, sizes)


def _digests(images: np.ndarray) -> list[bytes]:
    """A hash of each image: equal where all of its bytes are."""
    return [hashlib.blake2b(image, digest_size=16).digest() for image in images]


def _first_occurrences(digests: list[bytes], labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Indices of the first example of every digest.

    Also how many later ones carry another label than it.
    """
    first: dict[bytes, int] = {}
    conflicting = 0
    for index, digest in enumerate(digests):
        original = first.setdefault(digest, index)
        if labels[original] != labels[index]:
            conflicting += 1
    return np.array(list(first.values()), int), conflicting


def _inliers(images: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """`[N]` bool: false for the most isolated `fraction` of the images."""
    from sklearn.ensemble import IsolationForest

    features = _features(images, seed)
    state = streams.integer(seed, "images/outliers")
    forest = IsolationForest(contamination=fraction, random_state=state)
    return forest.fit_predict(features) == 1


def _features(images: np.ndarray, seed: int, *node: int) -> np.ndarray:
    """`[N, C]`: images on their own principal components.

    Args:
      images: `[N, H, W, C]`.
      seed: of the sample that the components are fitted on.
      *node: whose images they are; none: all nodes'.
    """
    from sklearn.decomposition import PCA

    flat = images.reshape(len(images), -1)
    order = streams.generator(seed, "images/outliers", *node).permutation(len(flat))
    sample = flat[np.sort(order[:_PCA_SAMPLE])]

    # There are no more components than examples or pixels.
    components = min(_PCA_SIZE, *sample.shape)
    state = streams.integer(seed, "images/outliers")
    pca = PCA(components, svd_solver="randomized", random_state=state)
    pca.fit(sample.astype(np.float32))

    # In parts: a float copy of all images may be larger than the memory.
    parts = []
    for part in np.array_split(flat, -(-len(flat) // _PCA_SAMPLE)):
        parts.append(pca.transform(part.astype(np.float32)))
    return np.concatenate(parts)
