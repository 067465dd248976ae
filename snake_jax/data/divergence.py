"""How unlike the nodes' label distributions are, measured from class counts.

It is what turns distillation on where `--distill=auto`. The Snake Learning paper names
Kullback-Leibler and Jensen-Shannon divergence; each is one number here, the mean over the nodes
(weighted by their examples) of the measure between a node's labels and the pooled labels of all
nodes. It is 0 for equal nodes.
"""

import numpy as np

from snake_jax.errors import UserError

# Probability added to every class of both distributions before they are normalised again.
SMOOTHING = 1e-6


def kullback_leibler(p: np.ndarray, q: np.ndarray, smoothing: float = SMOOTHING) -> np.ndarray:
    """KL(p || q) in nats over the last axis of counts or probabilities `[..., C]`.

    A class that q lacks would make it infinite, so both get `smoothing` per class; with smoothing=0
    it is scipy.stats.entropy(p, q).
    """
    p = _normalised(p, smoothing)
    q = _normalised(q, smoothing)
    return _relative_entropy(p, q)


def jensen_shannon_distance(p: np.ndarray, q: np.ndarray, base: float = 2) -> np.ndarray:
    """Root of the Jensen-Shannon divergence over the last axis `[..., C]`.

    In base 2 it goes from 0 (equal) to 1 (disjoint).
    """
    p = _normalised(p)
    q = _normalised(q)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.sqrt(np.maximum(divergence, 0) / np.log(base))


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.special import rel_entr  # slow to load, and most launches need none of it

    return rel_entr(p, q).sum(-1)


MEASURES = {"js": jensen_shannon_distance, "kl": kullback_leibler}


def label_divergence(counts: np.ndarray, measure: str = "js") -> float:
    """How unlike the labels of the nodes are those of all nodes together.

    The mean over the nodes, weighted by their examples, of the measure between a node's labels and
    the pooled ones. Nodes without examples have no weight.

    Args:
      counts: `[K, C]` examples of each class at each node.
      measure: "kl", in nats, or "js", a distance in [0, 1].

    Raises:
      UserError: the measure is unknown, or no node has an example.
    """
    if measure not in MEASURES:
        raise UserError(f"divergence measure {measure} is unknown; allowed: {', '.join(MEASURES)}")
    counts = np.asarray(counts, np.float64)
    counts = counts[counts.sum(1) > 0]
    if not len(counts):
        raise UserError(
            "no node has any example: give the nodes data before measuring how their labels differ"
        )
    divergences = MEASURES[measure](counts, counts.sum(0))
    return float(np.average(divergences, weights=counts.sum(1)))


def _normalised(weights: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    probabilities = weights / weights.sum(-1, keepdims=True)
    smoothed = probabilities + smoothing
    return smoothed / smoothed.sum(-1, keepdims=True)
