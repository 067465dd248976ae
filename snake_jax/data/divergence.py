"""How unlike the nodes' label distributions are: what turns distillation on (`--distill=auto`),
measured from class counts.

The Snake Learning paper names Kullback-Leibler and Jensen-Shannon divergence; each is one number
here, the mean over the nodes (weighted by their examples) of the measure between a node's labels
and the pooled labels of all nodes. It is 0 for equal nodes.
"""

import numpy as np

from snake_jax.errors import UserError

SMOOTHING = (
    1e-6  # probability added to every class of both distributions before they are normalised again
)


def kullback_leibler(p: np.ndarray, q: np.ndarray, smoothing: float = SMOOTHING) -> np.ndarray:
    """KL(p || q) in nats over the last axis of counts or probabilities `[..., C]`.

    A class that q lacks would make it infinite, so both get `smoothing` per class; with smoothing=0
    it is scipy.stats.entropy(p, q).
    """
    return _relative_entropy(_normalised(p, smoothing), _normalised(q, smoothing))


def jensen_shannon_distance(p: np.ndarray, q: np.ndarray, base: float = 2) -> np.ndarray:
    """Root of the Jensen-Shannon divergence over the last axis `[..., C]`; in base 2 from 0 (equal)
    to 1 (disjoint).
    """
    p, q = _normalised(p), _normalised(q)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.sqrt(np.maximum(divergence, 0) / np.log(base))


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.special import rel_entr  # slow to load, and most launches need none of it

    return rel_entr(p, q).sum(-1)


MEASURES = {"js": jensen_shannon_distance, "kl": kullback_leibler}


def label_divergence(counts: np.ndarray, measure: str = "js") -> float:
    """Mean over the nodes, weighted by examples, of the measure between a node's labels and the
    pooled ones; counts `[K, C]`.

    Unit: nats for "kl", a distance in [0, 1] for "js". Nodes without examples have no weight.
    Raises UserError for an unknown measure or where no node has an example.
    """
    if measure not in MEASURES:
        raise UserError(f"divergence measure {measure} is unknown; allowed: {', '.join(MEASURES)}")
    counts = np.asarray(counts, np.float64)
    counts = counts[counts.sum(1) > 0]
    if not len(counts):
        raise UserError(
            "no node has any example: give the nodes data before measuring how their labels differ"
        )
    return float(np.average(MEASURES[measure](counts, counts.sum(0)), weights=counts.sum(1)))


def _normalised(weights: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    smoothed = weights / weights.sum(-1, keepdims=True) + smoothing
    return smoothed / smoothed.sum(-1, keepdims=True)
