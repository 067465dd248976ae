"""Divergence measures against scipy, and what the label divergence of known partitions must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from scipy.stats import entropy

from snake_jax.data.divergence import (
    MEASURES,
    SMOOTHING,
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
