"""Partitions of text: every example once, one or two categories a node, sizes as even as they can
be.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.data.divergence import label_divergence
from snake_jax.data.partition import iid
from snake_jax.data.text.text_partition import (
    PARTITIONS,
    category_counts,
    describe_text_partition,
    partition_texts,
)
from snake_jax.errors import UserError

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
# The four data sets of the paper in their sizes, a hundredth of them.
PAPER = ["rm-static"] * 763 + ["synthetic"] * 331 + ["full-hh"] * 1121 + ["reward"] * 763


@st.composite
def cases(draw):
    categories = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=120))
    return (
        categories,
        draw(st.integers(1, len(categories))),
        draw(st.integers(0, 2**32)),
        draw(st.integers(1, 3)),
    )


@pytest.mark.parametrize("kind", PARTITIONS)
@PROPERTY
@given(case=cases())
def test_every_example_lies_on_one_node_and_every_node_has_some(kind, case):
    categories, nodes, seed, per_node = case
    shards = partition_texts(kind, categories, nodes, seed, per_node)
    assert len(shards) == nodes
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(categories)))
    assert min(map(len, shards)) >= 1
    assert all(
        shard.dtype == np.int32 and np.array_equal(shard, np.sort(shard)) for shard in shards
    )


@PROPERTY
@given(case=cases())
def test_no_node_holds_more_categories_than_asked_where_the_places_suffice(case):
    categories, nodes, seed, per_node = case
    shards = partition_texts("by_category", categories, nodes, seed, per_node)
    held = [len({categories[i] for i in shard}) for shard in shards]
    if len(set(categories)) <= nodes * per_node:
        assert max(held) <= per_node


@pytest.mark.parametrize("per_node", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_paper_s_24_nodes_hold_one_or_two_of_its_four_data_sets(per_node, seed):
    _, counts = category_counts(partition_texts("by_category", PAPER, 24, seed, per_node), PAPER)
    assert ((counts > 0).sum(1) == per_node).all()
    assert counts.sum(1).max() < 1.3 * counts.sum(1).min()


def test_two_to_a_node_does_not_always_pair_the_same_categories():
    _, counts = category_counts(
        partition_texts("by_category", list("abcd") * 60, 24, 0), list("abcd") * 60
    )
    assert len({tuple(row > 0) for row in counts}) > 2


def test_more_categories_than_places_share_them_small_ones_with_small_ones():
    categories = ["a"] * 10 + ["b"] * 10 + ["c"] * 3 + ["d"] * 2
    shards = partition_texts("by_category", categories, 2, 0, 1)
    assert sorted("".join(sorted({categories[i] for i in shard})) for shard in shards) in (
        ["ac", "bd"],
        ["ad", "bc"],
    )


def test_one_category_is_shared_by_all_nodes():
    shards = partition_texts("by_category", ["a"] * 10, 3, 0)
    assert sorted(map(len, shards)) == [3, 3, 4]


@pytest.mark.parametrize("kind", PARTITIONS)
def test_the_seed_decides_the_partition(kind):
    first, again, other = (partition_texts(kind, PAPER, 9, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_is_that_of_the_other_data():
    for ours, theirs in zip(
        partition_texts("iid", PAPER, 7, 5), iid(np.arange(len(PAPER)), 7, 5), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_counts_measure_how_unlike_the_nodes_are():
    names, alike = category_counts(partition_texts("iid", PAPER, 24, 0), PAPER)
    _, unlike = category_counts(partition_texts("by_category", PAPER, 24, 0, 1), PAPER)
    assert names == ("full-hh", "reward", "rm-static", "synthetic")
    assert label_divergence(alike) < 0.2
    assert label_divergence(unlike) > 0.5


def test_the_table_has_a_line_for_each_node():
    shards = [np.array([0, 1, 2]), np.array([3])]
    assert describe_text_partition(shards, ["a", "b", "b", "b"], [120, 7]).split("\n") == [
        "node  texts  tokens  categories",
        "   0      3     120  b 2, a 1",
        "   1      1       7  b 1",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("dirichlet", PAPER, 2, 0),
            "--partition=dirichlet is unknown for text; allowed: iid, by_category",
        ),
        (("by_category", PAPER, 0, 0), "--nodes=0 must be at least 1"),
        (("by_category", ["a"], 2, 0), "--nodes=2 is more than the 1 training examples"),
        (("by_category", PAPER, 2, -1), "--seed=-1"),
        (("by_category", PAPER, 2, 0, 0), "--categories_per_node=0"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        partition_texts(*arguments)
