"""The columns of adapters that a node trains, and those that it reads only."""

import jax
import numpy as np

from snake_jax.training import adapter_columns
from snake_jax.training.optimizers import init_states, update_rule
from tests.helpers import same_bits


def trees():
    rng = np.random.default_rng(0)
    pair = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=(4, 5))}
    weights = {"mlp": {"up": {name: value.astype(np.float32) for name, value in pair.items()}}}
    states = init_states(
        update_rule("adam", momentum=0.0, weight_decay=0.0), {"x": weights}, ("x",)
    )
    return weights, jax.tree.map(lambda leaf: leaf + 1, states)


def test_what_is_cut_off_comes_back_as_it_was():
    for tree in trees():
        first = adapter_columns.cut(tree, 0, 1)
        assert adapter_columns.most(first) == 1
        assert adapter_columns.most(tree) == 4
        assert same_bits(adapter_columns.widened(first, tree), tree)


def test_new_columns_are_new_and_the_others_old():
    weights, _ = trees()
    new = jax.tree.map(lambda leaf: leaf + 1, adapter_columns.cut(weights, 0, 3))
    pair = adapter_columns.widened(new, weights)["mlp"]["up"]
    old = weights["mlp"]["up"]
    np.testing.assert_array_equal(pair["a"] - old["a"] > 0.5, [[True, True, True, False]] * 3)
    np.testing.assert_array_equal(pair["b"] - old["b"] > 0.5, [[True] * 5] * 3 + [[False] * 5])


def test_a_state_that_nobody_had_is_zero_beyond_the_columns_and_its_count_is_new():
    _, states = trees()
    first = adapter_columns.cut(states, 0, 3)
    whole = adapter_columns.widened(first, adapter_columns.zeros(first, 4))
    for (path, leaf), before in zip(
        jax.tree.leaves_with_path(whole), jax.tree.leaves(states), strict=True
    ):
        axis = adapter_columns.axis_of(path)
        expected = np.array(before)
        if axis is not None:
            np.moveaxis(expected, axis, 0)[3] = 0
        np.testing.assert_array_equal(leaf, expected)
