"""Divergence measures against scipy, and what the label divergence of known partitions must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from scipy.special import rel_entr
from scipy.stats import binom, entropy

from snake_jax.data import divergence, partition
from snake_jax.data.divergence import (
    MEASURES,
    SMOOTHING,
    beyond_chance,
    jensen_shannon_distance,
    kullback_leibler,
    label_divergence,
)
from snake_jax.errors import UserError

PROPERTY = settings(deadline=None, max_examples=100, derandomize=True)
counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any).map(np.array)


@PROPERTY
@given(p=counts, q=counts, base=st.sampled_from([2, np.e, 10]))
def test_jensen_shannon_is_scipys(p, q, base):
    assert np.isclose(
        jensen_shannon_distance(p, q, base), distance.jensenshannon(p, q, base), atol=1e-7
    )


@PROPERTY
@given(p=counts, q=counts)
def test_kullback_leibler_is_scipys_on_the_smoothed_distributions(p, q):
    def smoothed(weights):
        return weights / weights.sum() + SMOOTHING

    assert np.isclose(
        kullback_leibler(p, q), entropy(smoothed(p), smoothed(q)), rtol=1e-9, atol=1e-12
    )
    assert np.isfinite(kullback_leibler(p, q))
    assert np.allclose(
        kullback_leibler(p, q + 1, smoothing=0), entropy(p, q + 1), rtol=1e-9, atol=1e-12
    )


def test_measures_work_over_leading_axes():
    p, q = np.random.default_rng(0).integers(1, 50, (2, 3, 5))
    for measure in MEASURES.values():
        assert np.allclose(measure(p, q), [measure(a, b) for a, b in zip(p, q, strict=True)])


def test_label_divergence_is_the_mean_weighted_by_examples_of_each_node_against_the_pool():
    table = np.array([[30, 10, 0], [5, 5, 10], [1, 0, 9]])
    pooled, weights = table.sum(0), table.sum(1) / table.sum()
    js = sum(
        w * distance.jensenshannon(row, pooled, 2) for w, row in zip(weights, table, strict=True)
    )
    kl = sum(w * entropy(row, pooled) for w, row in zip(weights, table, strict=True))
    assert np.isclose(label_divergence(table, "js"), js)
    assert np.isclose(label_divergence(table, "kl"), kl, rtol=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_nodes_have_none_and_disjoint_nodes_the_most(measure):
    assert label_divergence(np.full((4, 10), 7), measure) == pytest.approx(0, abs=1e-7)
    apart = label_divergence(np.eye(10, dtype=int) * 50, measure)
    assert label_divergence(np.eye(10, dtype=int) * 50 + 5, measure) < apart
    assert apart == pytest.approx(
        {"js": distance.jensenshannon(np.eye(10)[0], np.ones(10), 2), "kl": np.log(10)}[measure],
        rel=1e-3,
    )


def test_a_node_without_examples_has_no_weight():
    table = np.array([[30, 10], [5, 5]])
    assert label_divergence(np.vstack([table, [0, 0]])) == label_divergence(table)


def test_errors_name_the_way_out():
    with pytest.raises(UserError, match="wasserstein is unknown; allowed: js, kl"):
        label_divergence(np.ones((2, 2)), "wasserstein")
    with pytest.raises(UserError, match="no node has any example"):
        label_divergence(np.zeros((2, 2)))


def iid_counts(nodes, seed, classes=10, examples=1437):
    labels = np.random.default_rng(seed).integers(0, classes, examples)
    shards = partition.iid(labels, nodes, seed)
    return partition.label_counts(shards, labels, classes)


@pytest.mark.parametrize("nodes", [9, pytest.param(16, marks=pytest.mark.slow)])
def test_nodes_of_one_distribution_are_beyond_chance_as_rarely_as_the_level_says(nodes):
    """Over 100 seeds, by the binomial law; a bound of 0.1 on the distance holds for neither."""
    level, seeds = 0.05, range(100)
    for measure in MEASURES:
        p_values = []
        for seed in seeds:
            counts = iid_counts(nodes, seed)
            p_values.append(beyond_chance([counts], measure, level, seed).p_value)
        rejected = sum(p <= level for p in p_values)
        assert rejected <= binom.ppf(0.999, len(seeds), level)
        # Not only rare: p-values of chance are even over (0, 1].
        assert 0.35 < np.mean(p_values) < 0.65
    fixed = [label_divergence(iid_counts(nodes, seed)) > 0.1 for seed in seeds]
    assert np.mean(fixed) > 0.1


@pytest.mark.parametrize("measure", ["js", pytest.param("kl", marks=pytest.mark.slow)])
def test_nodes_of_unlike_labels_are_beyond_chance_for_every_seed(measure):
    labels = np.arange(1437) % 10
    for seed in range(100):
        shards = partition.split_over_nodes("dirichlet", labels, 9, 0.3, seed)
        counts = partition.label_counts(shards, labels, 10)
        found = beyond_chance([counts], measure, 0.05, seed)
        assert found.p_value <= 0.05
        assert found.value == label_divergence(counts, measure) > 2 * found.by_chance


def test_random_deals_keep_who_holds_how_many_and_how_many_there_are_of_a_class():
    counts = np.array([[30, 0, 2], [5, 5, 0], [1, 40, 9]])
    tables = np.stack([*divergence._dealt(counts, 2000, np.random.default_rng(0))], axis=1)
    assert (tables >= 0).all()
    assert (tables.sum(1) == counts.sum(0)).all()
    assert (tables.sum(2) == counts.sum(1)).all()
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    assert np.allclose(tables.mean(0), expected, atol=0.25)


def test_the_bias_of_kullback_leibler_by_chance_is_that_of_the_g_statistic():
    """2 N times the mean is G, of which chance expects (K - 1)(C - 1)."""
    counts = iid_counts(9, 0)
    found = beyond_chance([counts], "kl", 0.005, 0)
    assert 2 * counts.sum() * found.by_chance == pytest.approx(8 * 9, rel=0.05)
    assert found.excess == found.value - found.by_chance


def test_one_node_is_never_beyond_chance():
    assert beyond_chance([np.array([[3, 4, 0]])], "js", 0.01, 0) == (0, 0, 1)


def test_several_tables_are_one_test_of_their_mean():
    alike, unlike = iid_counts(9, 1), np.eye(10, dtype=int) * 30 + 10
    both = beyond_chance([alike, unlike], "js", 0.05, 3)
    assert both.value == pytest.approx((label_divergence(alike) + label_divergence(unlike)) / 2)
    assert both.p_value < beyond_chance([alike], "js", 0.05, 3).p_value


def test_relative_entropy_is_scipy_s():
    counts = np.random.default_rng(3).integers(0, 6, (40, 8)) / 7
    other = np.random.default_rng(4).integers(0, 3, (40, 8)) / 5
    with np.errstate(all="raise"):
        found = divergence._relative_entropy(counts, other)
    expected = rel_entr(counts, other).sum(-1)
    assert np.isinf(expected).any()
    np.testing.assert_allclose(found, expected, rtol=1e-14)
