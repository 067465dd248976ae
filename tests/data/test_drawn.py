"""Virtual nodes: what each holds follows from its number, and nothing is kept of the others."""

import numpy as np
import pytest

from snake_jax.data.drawn import Drawn, drawn, shard_sizes
from snake_jax.data.partition import counts_table, split_over_nodes
from snake_jax.errors import UserError


def test_each_node_draws_as_many_examples_as_its_size_says():
    shards = drawn("drawn:2-9", 50, 300, seed=1)
    assert len(shards) == 300 > 50, "more nodes than examples"
    sizes = [len(shard) for shard in shards]
    assert sizes == shard_sizes(shards)
    assert set(sizes) == set(range(2, 10)), "both ends are drawn"
    for shard in shards:
        assert shard.dtype == np.int32
        assert (np.diff(shard) > 0).all()
        assert 0 <= shard[0] <= shard[-1] < 50
    counts = np.bincount(np.concatenate(list(shards)), minlength=50)
    assert counts.min() > 0.4 * counts.mean(), "all examples are somewhere"


def test_a_node_s_examples_do_not_depend_on_who_was_asked_before():
    shards = drawn("drawn:3-3", 40, 10, seed=2)
    later = drawn("drawn:3-3", 40, 10, seed=2)[7]
    assert np.array_equal([*shards][7], later)
    assert not np.array_equal(shards[6], later)
    assert not np.array_equal(drawn("drawn:3-3", 40, 10, seed=3)[7], later)


def test_nothing_is_drawn_to_know_sizes_or_to_print_some(monkeypatch):
    asked = []
    inner = Drawn.__getitem__

    def counted(self, node):
        asked.append(node)
        return inner(self, node)

    monkeypatch.setattr(Drawn, "__getitem__", counted)
    labels = np.arange(30) % 3
    shards = split_over_nodes("drawn:1-5", labels, 10_000, 2.0, 0)
    assert sum(shard_sizes(shards)) > 10_000
    assert asked == []
    table = counts_table(shards, labels, 3).splitlines()
    assert (len(table), table[-1]) == (102, "and 9900 nodes more")
    assert len(asked) == 101, "a slice, and each of those in it"


@pytest.mark.parametrize("kind", ["drawn:", "drawn:5", "drawn:0-5", "drawn:6-5", "drawn:1-51"])
def test_a_range_that_is_none_is_refused(kind):
    with pytest.raises(UserError, match=r"want drawn:LEAST-MOST examples a node.* the 50 training"):
        split_over_nodes(kind, np.zeros(50, int), 3, 2.0, 0)
