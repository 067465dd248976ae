"""Places and their words, there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snake_jax.errors import UserError
from snake_jax.nodes.places import CLOUD, SERVER, Place, from_word, node


def test_places_have_the_words_of_the_ledgers_files():
    assert str(SERVER) == "server"
    assert str(CLOUD) == "cloud"
    assert str(node(3)) == str(Place("node", 3)) == "node3"


@given(st.one_of(st.just(SERVER), st.just(CLOUD), st.integers(0, 10**6).map(node)))
def test_a_word_is_read_back_as_the_place_it_was(place):
    assert from_word(str(place)) == place


@pytest.mark.parametrize(
    "word", ["", "node", "node-1", "node03", "node3 ", "Node3", "server0", "cloud0", "3", "node3\n"]
)
def test_other_words_are_refused_in_one_line(word):
    with pytest.raises(
        UserError, match="is no place: want server, cloud, or a node as node0"
    ) as error:
        from_word(word)
    assert "\n" not in str(error.value)


def test_places_sort_and_hash_by_kind_and_number():
    assert sorted({node(10), SERVER, node(2), CLOUD, node(2)}) == [CLOUD, node(2), node(10), SERVER]
