"""Who holds which training examples: IID and the partitions that "Dirichlet(alpha)" can mean.

`dirichlet` is the Snake Learning paper's (Yu et al., IEEE Network, "Training of Classification
Tasks"): "the datasets are partitioned based on Dirichlet distribution as class priors", a class
distribution per node (as in Hsu et al. 2019). `dirichlet_split` is the other common one (as in
Yurochkin et al. 2019): every class is split over the nodes. Both use every example exactly once.
`dirichlet_capped` is `dirichlet_split` as FedNova's experiments (Wang et al. 2020) draw it: a node
that holds its even share gets no more. `pathological` is how FedAvg's own experiments (McMahan et
al. 2017) divide MNIST: most nodes hold two classes. `file:PATH` reads one drawn elsewhere, for
comparisons on the same data. A partition is a list of sorted int32 index arrays, one a node.
"""

import json
import os
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from snake_jax import streams
from snake_jax.data import drawn as drawing
from snake_jax.errors import UserError

PARTITIONS = ("iid", "dirichlet", "dirichlet_split", "dirichlet_capped", "pathological")

_ATTEMPTS = 1000
_LISTED = 100  # nodes that are printed
_CAPPED_LEAST = 10  # examples that FedNova's experiments leave every client
_PIECES = 2  # that FedAvg's experiments deal to every client


def split_over_nodes(
    kind: str, labels: np.ndarray, nodes: int, alpha: float, seed: int
) -> Sequence[np.ndarray]:
    """The indices `[N_k]` into `labels` of every node k.

    Args:
      kind: one of PARTITIONS, `file:PATH` (see `from_file`) or `drawn:LEAST-MOST` (see `drawn`).
      labels: `[N]` of the training examples, from 0.
      nodes: how many.
      alpha: of the Dirichlet distribution; `iid` and files do not use it.
      seed: of the draws.

    Raises:
      UserError: the kind is unknown, alpha <= 0 or not finite, the seed negative, or there are no
        nodes or more than examples.
    """
    # What cannot be is refused before anything is drawn.
    if kind.startswith(f"{drawing.KIND}:"):
        return drawing.drawn(kind, len(labels), nodes, seed)
    path = kind.removeprefix("file:")
    is_file = path != kind and path != ""
    if kind not in PARTITIONS and not is_file:
        raise UserError(
            f"--partition={kind} is unknown; allowed: {', '.join(PARTITIONS)}, drawn:LEAST-MOST, "
            "file:PATH"
        )
    _check(labels, nodes, alpha, seed)
    if is_file:
        return from_file(path, len(labels), nodes)
    if kind == "iid":
        return iid(labels, nodes, seed)
    if kind == "dirichlet":
        return dirichlet_prior(labels, nodes, alpha, seed)
    if kind == "pathological":
        return pathological(labels, nodes, seed)
    if kind == "dirichlet_capped":
        least = min(_CAPPED_LEAST, len(labels) // nodes)
        return dirichlet_split(labels, nodes, alpha, seed, min_examples=least, capped=True)
    return dirichlet_split(labels, nodes, alpha, seed)


def iid(labels: np.ndarray, nodes: int, seed: int) -> list[np.ndarray]:
    """Uniformly at random; sizes differ by at most one."""
    _check(labels, nodes, 1.0, seed)
    order = streams.generator(seed, "partition/iid").permutation(len(labels))
    return _shards(np.array_split(order, nodes))


def pathological(labels: np.ndarray, nodes: int, seed: int) -> list[np.ndarray]:
    """Sorted by class and cut into two equal pieces a node, which are dealt at random.

    As McMahan et al. 2017 (3, "Optimizing"), who call it pathological: a node holds two classes, or
    one, or three or four where a piece has the end of a class. Sizes differ by at most two.

    Raises:
      UserError: there are fewer examples than pieces.
    """
    _check(labels, nodes, 1.0, seed)
    count = _PIECES * nodes
    if count > len(labels):
        raise UserError(
            f"--partition=pathological: --nodes={nodes} take {count} pieces of the "
            f"{len(labels)} training examples, two each; give fewer nodes"
        )
    rng = streams.generator(seed, "partition/pathological")
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    pieces = np.array_split(by_class, count)
    dealt = rng.permutation(count).reshape(nodes, _PIECES)
    return _shards([np.concatenate([pieces[number] for number in mine]) for mine in dealt])


def from_file(path: str, examples: int, nodes: int) -> list[np.ndarray]:
    """A partition from a JSON file: for each node a list of its training examples, from 0.

    Args:
      path: of the file; `~` is the home folder.
      examples: how many training examples there are; the file need not name all of them.
      nodes: how many lists it must have.

    Raises:
      UserError: there is no such file, or it is not of this form.
    """
    where = f"--partition=file:{path}"
    lists = _lists_of(where, path)
    if len(lists) != nodes:
        found = len(lists)
        raise UserError(f"{where}: describes {found} nodes; give --nodes={found}")

    # Every number is an example's, and on one node alone. A bool would pass as an integer.
    named: set[int] = set()
    for part in lists:
        for number in part:
            if type(number) is not int or not 0 <= number < examples:
                raise UserError(
                    f"{where}: {number!r} is not a training example; they are numbered 0 to "
                    f"{examples - 1}"
                )
            if number in named:
                raise UserError(f"{where}: names an example twice; each lies on one node")
            named.add(number)
    return _shards(lists)


def _lists_of(where: str, path: str) -> list[list[Any]]:
    """What a partition file holds, as far as its form says: lists that are not empty."""
    wanted = "want a list of example numbers for each node"
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
        lists = json.loads(text)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; {wanted}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where}: is not JSON; {wanted}") from None
    if not isinstance(lists, list) or not all(isinstance(part, list) and part for part in lists):
        raise UserError(
            f"{where}: want a list that has a list of example numbers, not empty, for each node"
        )
    return lists


def class_priors(nodes: int, num_classes: int, alpha: float, seed: int) -> np.ndarray:
    """`[nodes, classes]`: the class distributions q_k ~ Dir(alpha, ...) of `dirichlet_prior`."""
    return _dirichlet(streams.generator(seed, "partition/priors"), alpha, nodes, num_classes)


def dirichlet_prior(labels: np.ndarray, nodes: int, alpha: float, seed: int) -> list[np.ndarray]:
    """As the paper: every node draws its examples' classes from its own prior.

    Sizes differ by at most one. The nodes draw one example each in turn, in an order shuffled anew
    every turn, so that no node is left with what the others did not want. Where a class has run
    out, its probability goes to the classes that remain (renormalised; in proportion to what is
    left where a node's prior has no mass there). So the labels follow the priors until classes run
    out: with 50,000 examples of 10 equal classes on 9 nodes, the total variation distance between a
    node's labels and its prior is 0.04 on average for alpha 10, 0.09 for 2, 0.18 for 0.5 and 0.29
    for 0.1 (seeds 0 to 19).
    """
    _check(labels, nodes, alpha, seed)
    rng = streams.generator(seed, "partition/dirichlet")
    stock = _shuffled_classes(rng, labels)
    priors = class_priors(nodes, len(stock), alpha, seed)

    # Who draws the example of every position: all nodes, then all nodes again, each time shuffled.
    num_turns = -(-len(labels) // nodes)
    turns = [rng.permutation(nodes) for _ in range(num_turns)]
    drawers = np.concatenate(turns)
    drawers = drawers[: len(labels)]
    uniforms = rng.random(len(labels))

    # Plain lists and bisect: the loop runs once an example, and NumPy calls would dominate it.
    cumulative = _cumulative(priors, stock)
    shards: list[list[int]] = [[] for _ in range(nodes)]
    for node, uniform in zip(drawers.tolist(), uniforms.tolist(), strict=True):
        chosen = bisect(cumulative[node], uniform)
        shards[node].append(stock[chosen].pop())
        if not stock[chosen]:
            cumulative = _cumulative(priors, stock)
    return _shards(shards)


def dirichlet_split(
    labels: np.ndarray,
    nodes: int,
    alpha: float,
    seed: int,
    min_examples: int = 1,
    capped: bool = False,
) -> list[np.ndarray]:
    """Every class is split over the nodes in proportions ~ Dir(alpha, ...); sizes differ.

    Args:
      labels: `[N]` of the training examples.
      nodes: how many.
      alpha: of the distribution.
      seed: of the draws.
      min_examples: of every node; the proportions are drawn again until all have them.
      capped: a node that holds its even share of all examples gets none of the classes that follow.

    Raises:
      UserError: 1000 draws leave a node with fewer, or as `split_over_nodes`.
    """
    _check(labels, nodes, alpha, seed)
    kind = "dirichlet_capped" if capped else "dirichlet_split"
    rng = streams.generator(seed, f"partition/{kind}")
    classes = _shuffled_classes(rng, labels)
    sizes = np.array([len(indices) for indices in classes])

    # With a small alpha a draw easily leaves a node with nothing; such draws are thrown away.
    for _ in range(_ATTEMPTS):
        proportions = _dirichlet(rng, alpha, len(classes), nodes)
        if capped:
            proportions = _cap(proportions, sizes)
        cuts = _cuts(proportions, sizes)
        counts = np.diff(cuts, axis=1, prepend=0, append=sizes[:, None])
        if counts.sum(0).min() >= min_examples:
            return _cut_classes(classes, cuts)
    raise UserError(
        f"--partition={kind} with --alpha={alpha:g} leaves one of --nodes={nodes} with fewer than "
        f"{min_examples} examples in each of {_ATTEMPTS} draws; use a larger --alpha, fewer "
        f"--nodes or --partition=dirichlet"
    )


def _cut_classes(classes: list[list[int]], cuts: np.ndarray) -> list[np.ndarray]:
    """A node's part of every class, joined; cuts `[classes, nodes - 1]`."""
    nodes = cuts.shape[1] + 1
    parts: list[list[np.ndarray]] = [[] for _ in range(nodes)]
    for indices, of_class in zip(classes, cuts, strict=True):
        pieces = np.split(np.array(indices), of_class)
        for node, piece in enumerate(pieces):
            parts[node].append(piece)
    return _shards([np.concatenate(of_node) for of_node in parts])


def _cuts(proportions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`[classes, nodes - 1]`: where each class is cut."""
    ends = np.cumsum(proportions, axis=1)
    inner_ends = ends[:, :-1]  # the last part ends with its class
    cuts = np.rint(inner_ends * sizes[:, None])
    return cuts.astype(int)


def _cap(proportions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Proportions `[classes, nodes]` in which no node gets more once it holds its even share.

    Class after class, the nodes that hold `sizes.sum() / nodes` give their part to the others.
    """
    capped = np.zeros_like(proportions)
    held = np.zeros(proportions.shape[1])
    even_share = sizes.sum() / len(held)
    for number, size in enumerate(sizes):
        is_open = held < even_share
        row = proportions[number] * is_open
        if row.sum() <= 0:
            row = is_open.astype(float)  # the open nodes' proportions are 0 to rounding: evenly
        capped[number] = row / row.sum()
        (cuts,) = _cuts(capped[[number]], sizes[[number]])
        held += np.diff(cuts, prepend=0, append=size)
    return capped


def label_counts(shards: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """`[nodes, classes]` int: how many examples of each class a node holds."""
    counts = []
    for shard in shards:
        of_node = np.bincount(labels[shard], minlength=num_classes)
        counts.append(of_node)
    return np.stack(counts)


def counts_table(shards: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> str:
    """A table for printing: a line a node with its number of examples and of each class, of the
    first nodes where there are many.
    """
    table = label_counts(shards[:_LISTED], labels, num_classes)
    classes = map(str, range(num_classes))
    rows = [["node", "examples", *classes]]
    for node, counts in enumerate(table):
        numbers = (node, counts.sum(), *counts)
        rows.append([str(number) for number in numbers])

    # A column is as wide as its longest cell.
    columns = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in rows:
        pairs = zip(row, widths, strict=True)
        cells = [cell.rjust(width) for cell, width in pairs]
        lines.append("  ".join(cells))
    if len(shards) > _LISTED:
        lines.append(f"and {len(shards) - _LISTED} nodes more")
    return "\n".join(lines)


def _check(labels: np.ndarray, nodes: int, alpha: float, seed: int) -> None:
    """Raises UserError for a number out of its range."""
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


def _dirichlet(rng: np.random.Generator, alpha: float, draws: int, size: int) -> np.ndarray:
    """`[draws, size]` of the symmetric Dirichlet.

    An alpha below 1e-6 or above 1e9 changes nothing any more, but fails in float64.
    """
    bounded = np.clip(alpha, 1e-6, 1e9)
    return rng.dirichlet(np.full(size, bounded), draws)


def _shards(indices: Sequence) -> list[np.ndarray]:
    """Each node's indices sorted, as int32."""
    shards = []
    for of_node in indices:
        shard = np.asarray(of_node, np.int32)
        shards.append(np.sort(shard))
    return shards


def _shuffled_classes(rng: np.random.Generator, labels: np.ndarray) -> list[list[int]]:
    """The indices of every class 0, 1, ..., in random order."""
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    classes = []
    for number in range(int(labels.max()) + 1):
        members = order[shuffled == number]
        classes.append(members.tolist())
    return classes


def _cumulative(priors: np.ndarray, stock: list[list[int]]) -> list[list[float]]:
    """Per node, cumulative probabilities of the classes that are left in stock.

    `bisect(row, u)` is the class that a uniform u in [0, 1) draws.
    """
    left = np.array([len(indices) for indices in stock])
    weights = priors * (left > 0)
    has_lost_all = weights.sum(1, keepdims=True) <= 0
    weights = np.where(has_lost_all, left, weights)

    # Sums may end a little below 1; from the last class in stock on they are 1, so that no u falls
    # behind it.
    last = 0
    if left.any():
        last = int(np.flatnonzero(left)[-1])
    rows = []
    for row in weights:
        probabilities = row / max(row.sum(), 1e-300)
        sums = list(accumulate(probabilities.tolist()))
        for number in range(last, len(sums)):
            sums[number] = 1.0
        rows.append(sums)
    return rows
