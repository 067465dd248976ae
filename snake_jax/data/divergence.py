"""How unlike the nodes' label distributions are, measured from class counts.

It is what turns distillation on where `--distill=auto`. The Snake Learning paper names
Kullback-Leibler and Jensen-Shannon divergence; each is one number here, the mean over the nodes
(weighted by their examples) of the measure between a node's labels and the pooled labels of all
nodes. It is 0 for equal nodes.

Of nodes that draw from one distribution it is not 0 but the larger the smaller the nodes are. So it
is compared with what the same examples show when they are dealt out at random to nodes of the same
sizes: a permutation test, which is exact whatever the measure and the sizes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.errors import UserError

# Random deals for a test at a level: so many times 1 / level, less the one that was found.
_DEALS = 5


class Divergence(NamedTuple):
    """How unlike nodes are, beside what chance alone makes of nodes of their sizes.

    Attributes:
      value: see `label_divergence`, in the measure's unit.
      by_chance: the mean of the same where the examples are dealt out at random.
      p_value: the share of random deals that are at least as far, the found one counted in.
    """

    value: float
    by_chance: float
    p_value: float

    @property
    def excess(self) -> float:
        """What is left of the value without its bias, in the measure's unit."""
        return self.value - self.by_chance


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
    """The sum of `p log(p / q)` over the last axis, of distributions `[..., C]`.

    Classes that p lacks add nothing, one that q alone lacks makes it infinite. As
    `scipy.special.rel_entr`, which is not imported, since scipy takes a launch half a second.
    """
    p, q = np.broadcast_arrays(p, q)
    terms = np.where(p == 0, 0.0, np.inf)
    both = (p > 0) & (q > 0)
    own, other = p[both], q[both]
    ratio = own / other
    # Near 1 the logarithm of the ratio would be that of its rounding.
    near = (ratio > 0.5) & (ratio < 2)
    difference = np.where(near, (own - other) / other, 0.0)
    terms[both] = own * np.where(near, np.log1p(difference), np.log(ratio))
    return terms.sum(-1)


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
    counts = _of_holders(counts)
    return _mean_divergence(counts, measure)


def beyond_chance(
    tables: Sequence[np.ndarray], measure: str, level: float, seed: int
) -> Divergence:
    """The divergence of nodes, tested against random deals of the same examples.

    Several tables, as the seeds of one launch have, are one test: of the mean of their divergences.

    Args:
      tables: `[K, C]` each, examples of each class at each node.
      measure: "js" or "kl".
      level: that is to be tested at; the smaller it is, the more deals are drawn.
      seed: of the deals.

    Raises:
      UserError: no node of a table has an example.
    """
    # The margins of every table are kept: who holds how many, and how many there are of a class.
    deals = round(_DEALS / level) - 1
    found = 0.0
    drawn = np.zeros(deals)
    for number, table in enumerate(tables):
        counts = _of_holders(table)
        rng = streams.generator(seed, "divergence/deals", number)
        found += _mean_divergence(counts, measure) / len(tables)
        sizes, pooled = counts.sum(1), counts.sum(0)
        for size, own in zip(sizes, _dealt(counts, deals, rng), strict=True):
            share = size / sizes.sum() / len(tables)
            drawn += share * MEASURES[measure](own, pooled)

    # Equal tables may differ in the last bit, by the order of their sums.
    as_far = int((drawn >= found - 1e-12).sum())
    return Divergence(found, float(drawn.mean()), (1 + as_far) / (1 + deals))


def _dealt(counts: np.ndarray, deals: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`[deals, C]` of node after node: tables with the margins of `[K, C]` counts, as shuffled
    labels give them.

    Each node draws from what is left, class after class: the multivariate hypergeometric
    distribution, as a chain of plain ones. No table is kept, so many nodes take no more memory.
    """
    left = np.tile(counts.sum(0).astype(np.int64), (deals, 1))  # [deals, C]
    for size in counts.sum(1).astype(np.int64):
        wanted = np.full(deals, size)
        others = left.sum(1)
        own = np.zeros_like(left)
        for label in range(counts.shape[1]):
            of_label = left[:, label]
            others = others - of_label
            own[:, label] = rng.hypergeometric(of_label, others, wanted)
            wanted = wanted - own[:, label]
        left = left - own
        yield own


def _of_holders(counts: np.ndarray) -> np.ndarray:
    """The rows of nodes that hold something.

    Raises:
      UserError: there are none.
    """
    counts = np.asarray(counts, np.float64)
    counts = counts[counts.sum(1) > 0]
    if not len(counts):
        raise UserError(
            "no node has any example: give the nodes data before measuring how their labels differ"
        )
    return counts


def _mean_divergence(counts: np.ndarray, measure: str) -> float:
    """The mean over the nodes, weighted by their examples, of `[K, C]` counts."""
    divergences = MEASURES[measure](counts, counts.sum(0))
    return float(np.average(divergences, weights=counts.sum(1)))


def _normalised(weights: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    probabilities = weights / weights.sum(-1, keepdims=True)
    smoothed = probabilities + smoothing
    return smoothed / smoothed.sum(-1, keepdims=True)
