"""Who holds which training examples: IID and the two partitions that "Dirichlet(alpha)" can mean.

`dirichlet` is the Snake Learning paper's (Yu et al., IEEE Network, "Training of Classification
Tasks"): "the datasets are partitioned based on Dirichlet distribution as class priors", a class
distribution per node (as in Hsu et al. 2019). `dirichlet_split` is the other common one (as in
Yurochkin et al. 2019): every class is split over the nodes. Both use every example exactly once.
`dirichlet_capped` is `dirichlet_split` as FedNova's experiments (Wang et al. 2020) draw it: a node
that holds its even share gets no more. `file:PATH` reads one drawn elsewhere, for comparisons on
the same data. A partition is a list of sorted int32 index arrays, one a node.
"""

import json
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from snake_jax import streams
from snake_jax.errors import UserError

PARTITIONS = ("iid", "dirichlet", "dirichlet_split", "dirichlet_capped")

_ATTEMPTS = 1000


def partition(
    kind: str, labels: np.ndarray, nodes: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """The indices `[N_k]` into `labels` of every node k; `kind` is one of PARTITIONS (alpha is not
    used by `iid`) or `file:PATH` (see `from_file`).

    Raises UserError for an unknown kind, alpha <= 0 or not finite, a negative seed, nodes < 1 or
    more nodes than examples.
    """
    path = kind.removeprefix("file:")
    if kind not in PARTITIONS and (not path or path == kind):
        raise UserError(
            f"--partition={kind} is unknown; allowed: {', '.join(PARTITIONS)}, file:PATH"
        )
    _check(labels, nodes, alpha, seed)
    if path != kind:
        return from_file(path, len(labels), nodes)
    if kind == "iid":
        return iid(labels, nodes, seed)
    if kind == "dirichlet":
        return dirichlet_prior(labels, nodes, alpha, seed)
    if kind == "dirichlet_capped":
        return dirichlet_split(
            labels, nodes, alpha, seed, min_examples=min(10, len(labels) // nodes), capped=True
        )
    return dirichlet_split(labels, nodes, alpha, seed)


def iid(labels: np.ndarray, nodes: int, seed: int) -> list[np.ndarray]:
    """Uniformly at random; sizes differ by at most one."""
    _check(labels, nodes, 1.0, seed)
    return _shards(np.array_split(_rng(seed, "iid").permutation(len(labels)), nodes))


def from_file(path: str, examples: int, nodes: int) -> list[np.ndarray]:
    """A partition from a JSON file: a list for each node of the training examples it holds,
    numbered from 0.

    Args:
      path: of the file.
      examples: how many training examples there are; the file need not name all of them.
      nodes: how many lists it must have.

    Raises:
      UserError: there is no such file, or it is not of this form.
    """
    where = f"--partition=file:{path}"
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not JSON"
        raise UserError(
            f"{where}: {reason}; want a list of example numbers for each node"
        ) from None
    if not isinstance(lists, list) or not all(isinstance(part, list) and part for part in lists):
        raise UserError(
            f"{where}: want a list that has a list of example numbers, not empty, for each node"
        )
    if len(lists) != nodes:
        raise UserError(f"{where}: describes {len(lists)} nodes; give --nodes={len(lists)}")
    numbers = [number for part in lists for number in part]
    if wrong := [n for n in numbers if type(n) is not int or not 0 <= n < examples]:
        raise UserError(
            f"{where}: {wrong[0]!r} is not a training example; they are numbered 0 to "
            f"{examples - 1}"
        )
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{where}: names an example twice; each lies on one node")
    return _shards(lists)


def class_priors(nodes: int, num_classes: int, alpha: float, seed: int) -> np.ndarray:
    """`[nodes, classes]`: the class distributions q_k ~ Dir(alpha, ..., alpha) of
    `dirichlet_prior`.
    """
    return _dirichlet(_rng(seed, "priors"), alpha, nodes, num_classes)


def dirichlet_prior(labels: np.ndarray, nodes: int, alpha: float, seed: int) -> list[np.ndarray]:
    """As the paper: every node draws its examples' classes from its own prior; sizes differ by at
    most one.

    The nodes draw one example each in turn, in an order shuffled anew every turn, so that no node
    is left with what the others did not want. Where a class has run out, its probability goes to
    the classes that remain (renormalised; in proportion to what is left where a node's prior has no
    mass there). So the labels follow the priors until classes run out: with 50,000 examples of 10
    equal classes on 9 nodes, the total variation distance between a node's labels and its prior is
    0.04 on average for alpha 10, 0.06 for 2, 0.19 for 0.5 and 0.29 for 0.1 (5 seeds).
    """
    _check(labels, nodes, alpha, seed)
    rng = _rng(seed, "dirichlet")
    stock = _shuffled_classes(rng, labels)
    weights = class_priors(nodes, len(stock), alpha, seed)
    cumulative = _cumulative(weights, stock)
    turns = np.concatenate([rng.permutation(nodes) for _ in range(-(-len(labels) // nodes))])[
        : len(labels)
    ]
    shards: list[list[int]] = [[] for _ in range(nodes)]
    for node, uniform in zip(turns.tolist(), rng.random(len(labels)).tolist(), strict=True):
        chosen = bisect(cumulative[node], uniform)
        shards[node].append(stock[chosen].pop())
        if not stock[chosen]:
            cumulative = _cumulative(weights, stock)
    return _shards(shards)


def dirichlet_split(
    labels: np.ndarray,
    nodes: int,
    alpha: float,
    seed: int,
    min_examples: int = 1,
    capped: bool = False,
) -> list[np.ndarray]:
    """Every class is split over the nodes in proportions ~ Dir(alpha, ..., alpha) over the nodes;
    sizes differ.

    Drawn again until every node has `min_examples`. With `capped`, a node that already holds its
    even share of all examples gets none of the classes that follow. Raises UserError where 1000
    draws do not give that.
    """
    _check(labels, nodes, alpha, seed)
    kind = "dirichlet_capped" if capped else "dirichlet_split"
    rng = _rng(seed, kind)
    classes = _shuffled_classes(rng, labels)
    sizes = np.array([len(indices) for indices in classes])
    for _ in range(_ATTEMPTS):
        proportions = _dirichlet(rng, alpha, len(classes), nodes)
        if capped:
            proportions = _cap(proportions, sizes)
        cuts = _cuts(proportions, sizes)
        counts = np.diff(cuts, axis=1, prepend=0, append=sizes[:, None])
        if counts.sum(0).min() >= min_examples:
            pieces = [
                np.split(np.array(indices), cut) for indices, cut in zip(classes, cuts, strict=True)
            ]
            return _shards([np.concatenate(parts) for parts in zip(*pieces, strict=True)])
    raise UserError(
        f"--partition={kind} with --alpha={alpha:g} leaves one of --nodes={nodes} with fewer than "
        f"{min_examples} examples in each of {_ATTEMPTS} draws; use a larger --alpha, fewer "
        f"--nodes or "
        f"--partition=dirichlet"
    )


def _cuts(proportions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`[classes, nodes - 1]`: where each class is cut."""
    return np.rint(np.cumsum(proportions, axis=1)[:, :-1] * sizes[:, None]).astype(int)


def _cap(proportions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Class after class, the nodes that hold `sizes.sum() / nodes` examples give their part to the
    others.
    """
    capped, held = np.zeros_like(proportions), np.zeros(proportions.shape[1])
    for number, (row, size) in enumerate(zip(proportions, sizes, strict=True)):
        open_row = row * (held < sizes.sum() / len(row))
        open_row = open_row if open_row.sum() > 0 else (held < sizes.sum() / len(row)).astype(float)
        capped[number] = open_row / open_row.sum()
        cuts = _cuts(capped[number : number + 1], np.array([size]))[0]
        held += np.diff(cuts, prepend=0, append=size)
    return capped


def label_counts(shards: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """`[nodes, classes]` int: how many examples of each class a node holds."""
    return np.stack([np.bincount(labels[shard], minlength=num_classes) for shard in shards])


def describe(shards: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> str:
    """A table for printing: a line a node with its number of examples and of each class."""
    counts = label_counts(shards, labels, num_classes)
    rows = [["node", "examples", *map(str, range(num_classes))]]
    rows += [[str(node), str(row.sum()), *map(str, row)] for node, row in enumerate(counts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _check(labels: np.ndarray, nodes: int, alpha: float, seed: int) -> None:
    if not 0 < alpha < np.inf:
        raise UserError(
            f"--alpha={alpha:g} must be a finite number above 0 (2.0 in the paper; smaller is "
            f"less alike)"
        )
    if nodes < 1:
        raise UserError(f"--nodes={nodes} must be at least 1")
    if nodes > len(labels):
        raise UserError(
            f"--nodes={nodes} is more than the {len(labels)} training examples: some nodes would "
            f"have no data"
        )
    if seed < 0:
        raise UserError(f"--seed={seed} must not be negative")


def _rng(seed: int, stream: str) -> np.random.Generator:
    return streams.generator(seed, f"partition/{stream}")


def _dirichlet(rng: np.random.Generator, alpha: float, draws: int, size: int) -> np.ndarray:
    """`[draws, size]` of the symmetric Dirichlet; an alpha beyond 1e-6 or 1e9 changes nothing but
    fails in float64.
    """
    return rng.dirichlet(np.full(size, np.clip(alpha, 1e-6, 1e9)), draws)


def _shards(indices: Sequence) -> list[np.ndarray]:
    return [np.sort(np.asarray(shard, np.int32)) for shard in indices]


def _shuffled_classes(rng: np.random.Generator, labels: np.ndarray) -> list[list[int]]:
    """The indices of every class 0, 1, ..., in random order."""
    order = rng.permutation(len(labels))
    return [order[labels[order] == number].tolist() for number in range(int(labels.max()) + 1)]


def _cumulative(weights: np.ndarray, stock: list[list[int]]) -> list[list[float]]:
    """Per node, cumulative probabilities of the classes left in stock: `bisect(row, u)` is the
    class of a uniform u.
    """
    left = np.array([len(indices) for indices in stock])
    open_weights = weights * (left > 0)
    lost = open_weights.sum(1, keepdims=True) <= 0
    probabilities = np.where(lost, left, open_weights)
    last = int(np.flatnonzero(left)[-1]) if left.any() else 0
    rows = [list(accumulate((row / max(row.sum(), 1e-300)).tolist())) for row in probabilities]
    return [row[:last] + [1.0] * (len(row) - last) for row in rows]
