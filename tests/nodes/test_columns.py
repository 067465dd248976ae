"""Columns of adapters as items of their own: how they are cut, put together and counted."""

import jax
import numpy as np
import pytest

from snake_jax.nodes import columns
from snake_jax.nodes.columns import WHOLE, Columns
from snake_jax.training.optimizers import init_states, update_rule
from tests.helpers import same_bits

ITEM = "block_05.lora"
CUT = Columns((2, 8, 16), (8, 2, 8))
PARTS = (ITEM, f"{ITEM}[2:8]", f"{ITEM}[8:16]")


def adapters():
    rng = np.random.default_rng(0)
    pair = {"a": rng.normal(size=(3, 16)), "b": rng.normal(size=(16, 5))}
    return {"mlp": {"up": {name: value.astype(np.float32) for name, value in pair.items()}}}


def test_ranks_cut_the_columns_and_equal_ones_do_not():
    assert columns.of_ranks((8, 2, 8), 16) == CUT
    assert columns.of_ranks((), 16) == columns.of_ranks((16, 16), 16) == WHOLE


def test_every_node_trains_the_first_parts_up_to_its_rank():
    assert columns.parts(CUT, ITEM) == PARTS
    assert columns.trained(CUT, ITEM, 1) == PARTS[:1]
    assert columns.trained(CUT, ITEM, 0) == PARTS[:2]
    assert columns.all_trained(CUT, ("embed", ITEM), 1) == ("embed", ITEM)
    assert columns.all_parts(CUT, ("embed", ITEM)) == ("embed", *PARTS)
    assert columns.all_parts(WHOLE, ("embed", ITEM)) == ("embed", ITEM)


@pytest.mark.parametrize("kind", ["layer", "state"])
def test_parts_put_together_are_the_whole_bit_for_bit(kind):
    tree = adapters()
    if kind == "state":
        rule = update_rule("adamw", momentum=0.0, weight_decay=0.0)
        tree = jax.device_get(init_states(rule, {ITEM: tree}, (ITEM,))[ITEM])
    found = columns.split(CUT, ITEM, tree)
    assert tuple(found) == PARTS
    assert same_bits(columns.joined(CUT, ITEM, found), tree)
    widths = [sum(leaf.size for leaf in jax.tree.leaves(found[part])) for part in PARTS[1:]]
    assert widths[0] * 8 == widths[1] * 6
    # What nobody has trained yet is zero, as a fresh state is.
    first = columns.joined(CUT, ITEM, {ITEM: found[ITEM]})
    again = columns.split(CUT, ITEM, first)
    assert same_bits(again[ITEM], found[ITEM])
    for part in PARTS[1:]:
        assert not any(leaf.any() for leaf in again[part])


def test_shapes_of_parts_are_those_of_their_arrays():
    found = columns.shapes(CUT, {"embed": np.zeros(3), ITEM: adapters()})
    assert tuple(found) == ("embed", *PARTS)
    assert found[ITEM]["mlp"]["up"]["a"].shape == (3, 2)
    assert [leaf.shape for leaf in found[PARTS[1]]] == [(3, 6), (6, 5)]
