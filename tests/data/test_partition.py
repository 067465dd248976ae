"""Partitions: every example exactly once, sizes, seeds, marginals, and the errors of wrong
flags.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments import fednova_partition
from snake_jax.data.divergence import label_divergence
from snake_jax.data.partition import (
    PARTITIONS,
    class_priors,
    counts_table,
    dirichlet_prior,
    dirichlet_split,
    iid,
    label_counts,
    split_over_nodes,
)
from snake_jax.errors import UserError

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
BALANCED = np.repeat(np.arange(10, dtype=np.int32), 500)


@st.composite
def cases(draw):
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=200)), np.int32)
    nodes = draw(st.integers(1, len(labels)))
    return labels, nodes, draw(st.floats(1e-3, 1e3)), draw(st.integers(0, 2**32))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
@PROPERTY
@given(case=cases())
def test_equal_partitions_hold_every_index_once_in_sizes_that_differ_by_at_most_one(kind, case):
    labels, nodes, alpha, seed = case
    shards = split_over_nodes(kind, labels, nodes, alpha, seed)
    assert len(shards) == nodes
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(labels)))
    sizes = [len(shard) for shard in shards]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert all(
        shard.dtype == np.int32 and np.array_equal(shard, np.sort(shard)) for shard in shards
    )


@PROPERTY
@given(case=cases())
def test_pathological_deals_every_index_once_and_two_pieces_of_sorted_labels_a_node(case):
    labels, nodes, alpha, seed = case
    if 2 * nodes > len(labels):
        with pytest.raises(UserError, match=r"take \d+ pieces of the \d+ training examples"):
            split_over_nodes("pathological", labels, nodes, alpha, seed)
        return
    shards = split_over_nodes("pathological", labels, nodes, alpha, seed)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(labels)))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 2


@pytest.mark.parametrize("seed", [0, 1])
def test_pathological_nodes_hold_one_or_two_classes_where_pieces_end_with_classes(seed):
    shards = split_over_nodes("pathological", BALANCED, 50, 1.0, seed)
    assert {len(shard) for shard in shards} == {100}
    held = (label_counts(shards, BALANCED, 10) > 0).sum(1)
    assert set(held) <= {1, 2}
    assert (held == 2).mean() > 0.7
    other = split_over_nodes("pathological", BALANCED, 50, 1.0, seed + 2)
    assert not all(np.array_equal(a, b) for a, b in zip(shards, other, strict=True))


@PROPERTY
@given(seed=st.integers(0, 2**32), nodes=st.integers(1, 16), alpha=st.floats(0.05, 100))
def test_capped_class_split_gives_a_node_nothing_once_it_holds_its_even_share(seed, nodes, alpha):
    shards = split_over_nodes("dirichlet_capped", BALANCED, nodes, alpha, seed)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(BALANCED)))
    counts = label_counts(shards, BALANCED, 10)
    assert counts.sum(1).min() >= 10
    held_before = counts.cumsum(1) - counts
    assert not counts[held_before >= len(BALANCED) / nodes].any()


@PROPERTY
@given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 12),
    alpha=st.floats(0.3, 100),
    least=st.integers(1, 10),
)
def test_class_split_holds_every_index_once_and_leaves_no_node_short(seed, nodes, alpha, least):
    shards = dirichlet_split(BALANCED, nodes, alpha, seed, min_examples=least)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(BALANCED)))
    assert len(shards) == nodes
    assert min(map(len, shards)) >= least


@pytest.mark.parametrize("kind", PARTITIONS)
def test_the_seed_decides_the_partition(kind):
    first, again, other = (split_over_nodes(kind, BALANCED, 9, 2.0, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", PARTITIONS)
def test_the_global_random_state_is_left_alone(kind):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    split_over_nodes(kind, BALANCED, 9, 2.0, 0)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_iid_marginals_pass_a_chi_square_test_as_often_as_chance_says():
    pvalues = [
        stats.chi2_contingency(label_counts(iid(BALANCED, 9, seed), BALANCED, 10)).pvalue
        for seed in range(60)
    ]
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01


def test_dirichlet_with_large_alpha_is_near_uniform_and_with_small_alpha_is_not():
    for kind in ("dirichlet", "dirichlet_split"):
        counts = {
            a: label_counts(split_over_nodes(kind, BALANCED, 9, a, 0), BALANCED, 10)
            for a in (0.1, 2.0, 1e6)
        }
        assert np.abs(counts[1e6] / counts[1e6].sum(1, keepdims=True) - 0.1).max() < 0.05
        divergences = [label_divergence(count) for count in counts.values()]
        assert divergences[0] > 1.5 * divergences[1] > 3 * divergences[2]


def test_class_priors_have_dirichlet_moments():
    alpha, classes = 2.0, 10
    priors = class_priors(20_000, classes, alpha, 0)
    assert np.allclose(priors.sum(1), 1)
    assert np.allclose(priors.mean(0), 0.1, atol=0.002)
    assert np.allclose(priors.var(0), 0.1 * 0.9 / (alpha * classes + 1), rtol=0.05)


def test_prior_partition_follows_its_priors_where_the_stock_allows_it():
    """Classes run out late (alpha 2, 9 nodes, equal classes), so counts stay near the priors.

    How near depends on the seed (0.07 to 0.15 in the mean over nodes), so five are averaged.
    """
    labels = np.repeat(np.arange(10), 5000)
    own, others = [], []
    for seed in range(5):
        counts = label_counts(dirichlet_prior(labels, 9, 2.0, seed), labels, 10)
        shares = counts / counts.sum(1, keepdims=True)
        own.append(np.abs(shares - class_priors(9, 10, 2.0, seed)).sum(1) / 2)
        others.append(np.abs(shares - class_priors(9, 10, 2.0, seed + 1)).sum(1) / 2)
        assert np.mean(others[-1]) > 2 * np.mean(own[-1])
    distance = np.mean(own, axis=0)
    assert distance.mean() < 0.1
    assert distance.max() < 0.15


def test_prior_partition_leaves_no_node_with_the_leftovers():
    """Over seeds, the last node's labels are no further from the pool than the first node's."""
    totals = np.zeros(9)
    for seed in range(40):
        counts = label_counts(dirichlet_prior(BALANCED, 9, 2.0, seed), BALANCED, 10)
        totals += [label_divergence(np.stack([row, counts.sum(0)])) for row in counts]
    assert totals.max() / totals.min() < 1.25


def test_the_odd_examples_go_to_other_nodes_with_other_seeds():
    larger = set()
    for seed in range(5):
        sizes = np.array([len(shard) for shard in dirichlet_prior(BALANCED, 9, 2.0, seed)])
        larger.add(tuple(np.argsort(-sizes)[:5]))
    assert len(larger) > 1


def test_class_split_counts_have_dirichlet_means_and_spread():
    nodes, alpha, per_class = 5, 2.0, 500
    counts = np.stack(
        [
            label_counts(dirichlet_split(BALANCED, nodes, alpha, seed), BALANCED, 10)
            for seed in range(200)
        ]
    )
    assert np.array_equal(counts.sum(1), np.full((200, 10), per_class))
    shares = counts / per_class
    assert np.allclose(shares.mean((0, 2)), 1 / nodes, atol=0.02)
    assert np.isclose(shares.var(), (1 / nodes) * (1 - 1 / nodes) / (nodes * alpha + 1), rtol=0.1)


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e300])
def test_extreme_alphas_give_sound_partitions(alpha):
    shards = dirichlet_prior(BALANCED, 7, alpha, 0)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(BALANCED)))
    counts = label_counts(shards, BALANCED, 10)
    assert (label_divergence(counts) > 0.4) == (alpha < 1)


def test_a_class_without_examples_and_one_node_are_allowed():
    labels = np.array([0, 0, 2, 2, 2], np.int32)
    for kind in PARTITIONS:
        (only,) = split_over_nodes(kind, labels, 1, 1.0, 0)
        assert only.tolist() == [0, 1, 2, 3, 4]
    assert label_counts([np.array([0, 2])], labels, 4).tolist() == [[1, 0, 1, 0]]


def test_the_table_prints_size_and_class_counts_of_every_node():
    labels = np.array([0, 1, 1, 2])
    table = counts_table([np.array([0, 1]), np.array([2, 3])], labels, 3).splitlines()
    assert [line.split() for line in table] == [
        ["node", "examples", "0", "1", "2"],
        ["0", "2", "1", "1", "0"],
        ["1", "2", "0", "1", "1"],
    ]
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize(
    ("kind", "nodes", "alpha", "seed", "words"),
    [
        ("dirichlet", 2, 0.0, 0, "--alpha=0 must be"),
        ("dirichlet_split", 2, -1.0, 0, "--alpha=-1 must be"),
        ("dirichlet", 2, float("nan"), 0, "--alpha=nan must be"),
        ("iid", 2, float("inf"), 0, "--alpha=inf must be"),
        ("iid", 0, 1.0, 0, "--nodes=0 must be at least 1"),
        ("dirichlet", 6, 1.0, 0, "--nodes=6 is more than the 5 training examples"),
        ("noniid", 2, 1.0, 0, "allowed: iid, dirichlet, dirichlet_split, dirichlet_capped"),
        ("iid", 2, 1.0, -1, "--seed=-1"),
        ("dirichlet_split", 5, 1e-3, 0, "use a larger --alpha"),
    ],
)
def test_wrong_flags_are_one_line_that_names_them(kind, nodes, alpha, seed, words):
    with pytest.raises(UserError) as caught:
        split_over_nodes(kind, np.array([0, 1, 0, 1, 1]), nodes, alpha, seed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"file:{path}"


def test_a_partition_from_a_file_is_taken_as_it_is_also_where_it_leaves_examples_out(tmp_path):
    kind = written(tmp_path / "p.json", [[3, 1], [0], [7, 5, 6]])
    shards = split_over_nodes(kind, np.zeros(9, np.int32), 3, 1.0, 0)
    assert [shard.tolist() for shard in shards] == [[1, 3], [0], [5, 6, 7]]
    assert all(shard.dtype == np.int32 for shard in shards)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0, 1", "is not JSON"),
        ({"0": [1]}, "a list of example numbers, not empty, for each node"),
        ([[0], []], "a list of example numbers, not empty, for each node"),
        ([[0], [1], [2]], "describes 3 nodes; give --nodes=3"),
        ([[0], [4]], "4 is not a training example; they are numbered 0 to 3"),
        ([[0], [True]], "True is not a training example"),
        ([[0, 1], [1]], "names an example twice"),
    ],
)
def test_a_wrong_partition_file_is_one_line_that_names_it(content, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        split_over_nodes(written(tmp_path / "p.json", content), np.zeros(4, np.int32), 2, 1.0, 0)
    assert str(tmp_path / "p.json") in str(error.value)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    written(tmp_path / "p.json", [[0], [1, 2]])
    monkeypatch.setenv("HOME", str(tmp_path))
    shards = split_over_nodes("file:~/p.json", np.zeros(4, np.int32), 2, 1.0, 0)
    assert [shard.tolist() for shard in shards] == [[0], [1, 2]]
    with pytest.raises(UserError, match=r"file:~/q.json: No such file"):
        split_over_nodes("file:~/q.json", np.zeros(4, np.int32), 2, 1.0, 0)


def test_a_byte_order_mark_in_a_partition_file_is_passed_over(tmp_path):
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf[[1], [0]]")
    shards = split_over_nodes(f"file:{tmp_path / 'p.json'}", np.zeros(2, np.int32), 2, 1.0, 0)
    assert [shard.tolist() for shard in shards] == [[1], [0]]


def test_a_missing_partition_file_is_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        split_over_nodes(f"file:{tmp_path / 'none.json'}", np.zeros(4, np.int32), 2, 1.0, 0)


def test_the_published_split_of_fednova_is_drawn_again():
    """Sizes as the baseline's own code prints them depend on the labels' order; here on labels in a
    fixed one.
    """
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))
    shards = fednova_partition.draw(labels)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(labels)))
    first = np.random.RandomState(2020)
    members = np.flatnonzero(labels == 0)
    first.shuffle(members)
    end = int(np.cumsum(first.dirichlet(np.full(16, 0.1)))[0] * 500)
    assert np.array_equal(shards[0][:end], members[:end])
