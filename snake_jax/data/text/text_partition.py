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
    """Which node holds which text.

    Args:
      kind: one of PARTITIONS. `iid` is shuffled, and sizes differ by at most one; for
        `by_category`, see there.
      categories: one an example.
      nodes: how many; at least 1, at most as many as examples.
      seed: of the draw; not negative.
      categories_per_node: see `by_category`.

    Returns:
      `[N_k]` sorted indices into `categories` of every node k.

    Raises:
      UserError: an unknown kind, or a number that is out of its range.
    """
    if kind not in PARTITIONS:
        raise UserError(f"--partition={kind} is unknown for text; allowed: {', '.join(PARTITIONS)}")
    labels = _numbers(categories)
    # Drawn in any case, since it checks nodes and seed.
    equal = iid(labels, nodes, seed)
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
    shuffled_labels = labels[order]
    num_categories = int(labels.max()) + 1
    members = [order[shuffled_labels == label] for label in range(num_categories)]
    groups = _groups(members, nodes * categories_per_node)

    # How many nodes hold each group, and which.
    per_node = min(categories_per_node, len(groups))
    sizes = [len(group) for group in groups]
    places = _places(sizes, nodes, per_node)
    holders = _holders(places, nodes, per_node, rng)

    # The nodes of a group share its examples.
    shards: list[list[int]] = [[] for _ in range(nodes)]
    for group, group_holders in zip(groups, holders, strict=True):
        parts = np.array_split(group, len(group_holders))
        for node, part in zip(group_holders, parts, strict=True):
            shards[node].extend(part.tolist())
    return [np.sort(np.array(shard, np.int32)) for shard in shards]


def category_counts(
    shards: Sequence[np.ndarray], categories: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """The categories' names, and how many examples of each a node holds: `[nodes, categories]`.

    The counts are what `snake_jax.data.label_divergence` takes.
    """
    names = tuple(sorted(set(categories)))
    return names, label_counts(shards, _numbers(categories), len(names))


def describe_text_partition(
    shards: Sequence[np.ndarray], categories: Sequence[str], tokens: Sequence[int]
) -> str:
    """A table for printing: a line a node with its texts, tokens and categories.

    Args:
      shards: of `partition_texts`.
      categories: one an example.
      tokens: `[nodes]`, how many each holds.
    """
    names, counts = category_counts(shards, categories)
    rows = [("node", "texts", "tokens", "categories")]
    for node, of_node in enumerate(counts):
        # The largest category first.
        held = []
        for category in np.argsort(-of_node, kind="stable"):
            if of_node[category]:
                held.append(f"{names[category]} {of_node[category]}")
        rows.append((str(node), str(of_node.sum()), str(tokens[node]), ", ".join(held)))

    # Numbers are aligned at their right, as wide as the widest of their column.
    widths = [0, 0, 0]
    for row in rows:
        for column in range(3):
            widths[column] = max(widths[column], len(row[column]))
    lines = []
    for *numbers, held_names in rows:
        aligned = map(str.rjust, numbers, widths)
        lines.append("  ".join([*aligned, held_names]))
    return "\n".join(lines)


def _numbers(categories: Sequence[str]) -> np.ndarray:
    """`[N]` int: the categories numbered in alphabetical order."""
    _, numbers = np.unique(np.array(categories, str), return_inverse=True)
    return numbers.reshape(-1)


def _groups(members: list[np.ndarray], most: int) -> list[np.ndarray]:
    """The categories, the largest first; those beyond `most` join the group smallest by then."""
    largest_first = sorted(members, key=len, reverse=True)
    groups = largest_first[:most]
    for member in largest_first[most:]:
        sizes = [len(group) for group in groups]
        smallest = sizes.index(min(sizes))
        groups[smallest] = np.concatenate([groups[smallest], member])
    return groups


def _places(sizes: Sequence[int], nodes: int, per_node: int) -> list[int]:
    """How many nodes hold each group: never more than nodes, or than its examples.

    One, then one more wherever the most examples come on a place, while there are places.
    """
    places = [1] * len(sizes)
    for _ in range(nodes * per_node - len(sizes)):
        fullest = None
        most = 0.0
        for group, size in enumerate(sizes):
            is_free = places[group] < min(nodes, size)
            examples_a_place = size / places[group]
            if is_free and examples_a_place > most:
                fullest = group
                most = examples_a_place
        if fullest is None:
            break
        places[fullest] += 1
    return places


def _holders(
    places: Sequence[int], nodes: int, per_node: int, rng: np.random.Generator
) -> list[list[int]]:
    """The nodes of each group.

    Every node takes the groups with the most places left, equals at random, which always comes out:
    no group has ever more places left than there are nodes.
    """
    left = np.array(places)
    holders: list[list[int]] = [[] for _ in places]
    for turn, node in enumerate(rng.permutation(nodes).tolist()):
        # Each leaves a place for all who follow.
        still_to_come = nodes - turn - 1
        takes = min(per_node, int(left.sum()) - still_to_come)
        # Shuffled before a stable sort: so equals come at random.
        shuffled = rng.permutation(len(left))
        most_first = shuffled[np.argsort(-left[shuffled], kind="stable")]
        for group in most_first[:takes].tolist():
            if left[group] > 0:
                holders[group].append(node)
                left[group] -= 1
    return holders
