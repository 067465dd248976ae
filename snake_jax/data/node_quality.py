"""What a node finds wrong with its own data, by itself: the Data Module of its computation engine.

"Before training the assigned layers from locally stored data, a Data Module in LCE gets involved
for preprocessing (e.g., normalization, cleaning) and filtering of the data. To ensure training
effectiveness, local data heterogeneity can be optimized by adopting techniques such as clustering
and anomaly detection to identify similarities and isolate data inconsistencies"
(snake_learning_magazine, "Local Training"). Clusters are the similarities here, and what lies far
from all of them is inconsistent. Nothing of another node is looked at.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams

# A cluster of a quarter of an even share, or of one example, is no similarity but an inconsistency.
_LEAST_SHARE = 0.25
_LEAST = 2
_ITERATIONS = 25


class NodeQuality(NamedTuple):
    """What a node's data was found to be.

    Attributes:
      held: examples that lay on the node.
      dropped: `{what is wrong: how many were left out for it}`.
      clusters: sizes of the groups of alike examples, the largest first; empty: none were sought.
    """

    held: int
    dropped: Mapping[str, int]
    clusters: tuple[int, ...] = ()

    @property
    def kept(self) -> int:
        """Examples that are left."""
        return self.held - sum(self.dropped.values())

    @property
    def dropped_share(self) -> float:
        """The share of its examples that were left out."""
        return (self.held - self.kept) / self.held if self.held else 0.0


def said(quality: NodeQuality) -> str:
    """What was left out and why: `dropped 2 repeated, 1 outlier`; empty where it was nothing."""
    found = [f"{count} {what}" for what, count in quality.dropped.items() if count]
    parts = []
    if found:
        parts.append(f"dropped {', '.join(found)}")
    if quality.clusters:
        sizes = ", ".join(str(size) for size in quality.clusters)
        parts.append(f"clusters of {sizes}")
    return "; ".join(parts)


def table(qualities: Sequence[NodeQuality]) -> str:
    """A line for all nodes, then one for each that has something to say."""
    held = sum(quality.held for quality in qualities)
    kept = sum(quality.kept for quality in qualities)
    lines = [f"quality, each node by itself: kept {kept} of {held} examples"]
    for node, quality in enumerate(qualities):
        about = said(quality)
        if about:
            lines.append(f"  node {node} kept {quality.kept} of {quality.held}: {about}")
    return "\n".join(lines)


def first_of_each(keys: Sequence[bytes]) -> np.ndarray:
    """`[N]` bool: false for what repeats an earlier one."""
    seen: set[bytes] = set()
    is_first = np.zeros(len(keys), bool)
    for index, key in enumerate(keys):
        is_first[index] = key not in seen
        seen.add(key)
    return is_first


def consistent(
    features: np.ndarray, outliers: float, clusters: int, seed: int, node: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which of a node's examples agree with the others, and how large the groups of alike ones are.

    The `outliers` share is left out that lies farthest from the centres of the clusters, or without
    clusters is the most isolated by scikit-learn's IsolationForest.

    Args:
      features: `[N, D]` of the node's examples.
      outliers: share to leave out; 0: none.
      clusters: how many groups to look for; 0: none.
      seed: of the run.
      node: which node, from 0.

    Returns:
      `[N]` bool, and the sizes of the clusters, the largest first.
    """
    is_kept = np.ones(len(features), bool)
    sizes: tuple[int, ...] = ()
    wanted = round(outliers * len(features))
    if clusters and len(features) > clusters:
        distances, sizes = _distances(features, clusters, seed, node)
        if wanted:
            farthest = np.argsort(-distances, kind="stable")
            is_kept[farthest[:wanted]] = False
    elif wanted:
        from sklearn.ensemble import IsolationForest  # slow to load, for those who ask for it

        state = int(streams.generator(seed, "nodes/outliers", node).integers(2**32))
        forest = IsolationForest(contamination=outliers, random_state=state)
        is_kept = forest.fit_predict(features) == 1
    return is_kept, sizes


def _distances(
    features: np.ndarray, clusters: int, seed: int, node: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """`[N]` distances to the nearest centre of a cluster that counts, and the clusters' sizes."""
    rng = streams.generator(seed, "nodes/clusters", node)
    centres = _centres(features.astype(np.float64), clusters, rng)
    gaps = _gaps(features, centres)
    sizes = np.bincount(gaps.argmin(1), minlength=len(centres))

    # What is alone or among few others is near their centre, which says nothing for it.
    least = max(_LEAST, _LEAST_SHARE * len(features) / len(centres))
    found = sorted(sizes[sizes > 0].tolist(), reverse=True)
    return gaps[:, sizes >= least].min(1), tuple(found)


def _centres(features: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """`[K, D]` centres of k-means: Lloyd's iterations from k-means++ (Arthur, Vassilvitskii 2007).

    By hand, since threads of a library would add up in another order each time.
    """
    # Each further centre is an example, drawn by its squared distance to the nearest one so far.
    centres = features[[rng.integers(len(features))]]
    while len(centres) < clusters:
        weights = _gaps(features, centres).min(1) ** 2
        total = weights.sum()
        if not total:
            break  # no more different examples than centres
        chosen = rng.choice(len(features), p=weights / total)
        centres = np.concatenate([centres, features[[chosen]]])

    # A cluster that runs empty keeps its centre.
    for _ in range(_ITERATIONS):
        groups = _gaps(features, centres).argmin(1)
        moved = centres.copy()
        for group in range(len(centres)):
            members = features[groups == group]
            if len(members):
                moved[group] = members.mean(0)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _gaps(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`[N, K]` distances of examples from centres."""
    columns = []
    for centre in centres:
        difference = features - centre
        columns.append(np.sqrt((difference**2).sum(1)))
    return np.stack(columns, 1)
