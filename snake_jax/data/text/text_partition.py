"""Which node holds which text: IID, or by category, the paper's two ways.

The Snake Learning paper ("Fine-Tuning of LLMs"): the data sets "are uniformly distributed across
the nodes in IID settings; while in Non-IID settings, each node holds only 2 types of datasets" (the
magazine: "different datasets or different types of sub-topics"). All examples are used exactly
once. A partition is a list of sorted int32 index arrays, one a node, as in
`snake_jax.data.partition`.
"""

from collections.abc import Sequence

import numpy as np

from snake_jax import streams
from snake_jax.data.partition import iid, label_counts
from snake_jax.errors import UserError

PARTITIONS = ("iid", "by_category")


def partition_texts(
    kind: str, categories: Sequence[str], nodes: int, seed: int, categories_per_node: int = 2
) -> list[np.ndarray]:
    """The indices `[N_k]` into `categories` (one an example) of every node k; `kind` is one of
    PARTITIONS.

    `iid` is shuffled, and sizes differ by at most one. For `by_category`, see there. Raises
    UserError for an unknown kind, a negative seed, nodes < 1, more nodes than examples, or
    categories_per_node < 1.
    """
    if kind not in PARTITIONS:
        raise UserError(f"--partition={kind} is unknown for text; allowed: {', '.join(PARTITIONS)}")
    labels = _numbers(categories)
    equal = iid(labels, nodes, seed)  # which also checks nodes and seed
    if kind == "iid":
        return equal
    return by_category(labels, nodes, seed, categories_per_node)


def by_category(
    labels: np.ndarray, nodes: int, seed: int, categories_per_node: int
) -> list[np.ndarray]:
    """Every node holds `categories_per_node` categories (1 or 2 in the paper), or all where there
    are fewer.

    Categories are given to nodes so that all find one and the nodes' sizes are as even as the sizes
    of the categories allow: a larger category goes to more nodes, which share its examples evenly.
    Where there are more categories than places (`nodes * categories_per_node`), some are joined
    first, small ones to small ones, and the nodes with those hold more than `categories_per_node`.
    Where a category has fewer examples than places, some nodes hold fewer categories. No node is
    without examples.
    """
    if categories_per_node < 1:
        raise UserError(f"--categories_per_node={categories_per_node} must be at least 1")
    rng = streams.generator(seed, "partition/by_category")
    # The examples of each category in a random order, and small categories joined to groups.
    order = rng.permutation(len(labels))
    members = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    groups = _groups(members, nodes * categories_per_node)
    # How many nodes hold each group, and which.
    per_node = min(categories_per_node, len(groups))
    places = _places([len(group) for group in groups], nodes, per_node)
    holders = _holders(places, nodes, per_node, rng)
    # The nodes of a group share its examples.
    shards: list[list[int]] = [[] for _ in range(nodes)]
    for group, own in zip(groups, holders, strict=True):
        for node, part in zip(own, np.array_split(group, len(own)), strict=True):
            shards[node].extend(part.tolist())
    return [np.sort(np.array(shard, np.int32)) for shard in shards]


def category_counts(
    shards: Sequence[np.ndarray], categories: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """The categories' names, and `[nodes, categories]` how many examples of each a node holds (what
    `snake_jax.data.label_divergence` takes)."""
    names = tuple(sorted(set(categories)))
    return names, label_counts(shards, _numbers(categories), len(names))


def describe_text_partition(
    shards: Sequence[np.ndarray], categories: Sequence[str], tokens: Sequence[int]
) -> str:
    """A table for printing: a line a node with its texts, tokens `[nodes]` and categories, the
    largest first.
    """
    names, counts = category_counts(shards, categories)
    rows = [("node", "texts", "tokens", "categories")]
    for node, row in enumerate(counts):
        largest_first = np.argsort(-row, kind="stable")
        held = ", ".join(f"{names[c]} {row[c]}" for c in largest_first if row[c])
        rows.append((str(node), str(row.sum()), str(tokens[node]), held))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for *numbers, held in rows:
        lines.append("  ".join([*map(str.rjust, numbers, widths), held]))
    return "\n".join(lines)


def _numbers(categories: Sequence[str]) -> np.ndarray:
    """`[N]` int: the categories numbered in alphabetical order."""
    return np.unique(np.array(categories, str), return_inverse=True)[1].reshape(-1)


def _groups(members: list[np.ndarray], most: int) -> list[np.ndarray]:
    """The categories, the largest first; the rest beyond `most` join the group that is the smallest
    by then.
    """
    members = sorted(members, key=len, reverse=True)
    groups = members[:most]
    for member in members[most:]:
        smallest = min(range(len(groups)), key=lambda g: len(groups[g]))
        groups[smallest] = np.concatenate([groups[smallest], member])
    return groups


def _places(sizes: Sequence[int], nodes: int, per_node: int) -> list[int]:
    """How many nodes hold each group: one, then one more wherever the most examples come on a
    place, while there are places; never more than nodes, or than examples."""
    places = [1] * len(sizes)
    for _ in range(nodes * per_node - len(sizes)):
        free = [g for g, size in enumerate(sizes) if places[g] < min(nodes, size)]
        if not free:
            break
        places[max(free, key=lambda g: sizes[g] / places[g])] += 1
    return places


def _holders(
    places: Sequence[int], nodes: int, per_node: int, rng: np.random.Generator
) -> list[list[int]]:
    """The nodes of each group. Every node takes the groups with the most places left, equals at
    random, which always comes out: no group has ever more places left than there are nodes. Each
    leaves a place for all who follow.
    """
    left = np.array(places)
    holders: list[list[int]] = [[] for _ in places]
    for turn, node in enumerate(rng.permutation(nodes).tolist()):
        still_to_come = nodes - turn - 1
        takes = min(per_node, int(left.sum()) - still_to_come)
        shuffled = rng.permutation(len(left))
        most_first = shuffled[np.argsort(-left[shuffled], kind="stable")]
        for group in most_first[:takes].tolist():
            if left[group] > 0:
                holders[group].append(node)
                left[group] -= 1
    return holders
