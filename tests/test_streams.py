"""Random streams: no two of a run begin alike, and each is what it is whatever else was drawn."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax import streams

NUMBERS = st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple)
STREAM = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(streams.NAMES), NUMBERS)


def first(seed, name, numbers):
    return streams.generator(seed, name, *numbers).integers(2**63, size=2).tolist()


def test_no_two_streams_of_a_run_begin_alike():
    numbers = [n for count in range(4) for n in itertools.product(range(3), repeat=count)]
    begun = {}
    for name in streams.NAMES:
        for some in numbers:
            begun.setdefault(tuple(first(7, name, some)), []).append((name, some))
    assert len(begun) == len(streams.NAMES) * len(numbers)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(one=STREAM, other=STREAM)
def test_streams_are_alike_only_where_they_are_one(one, other):
    assert (first(*one) == first(*other)) == (one == other)


def test_trailing_zeros_are_told_apart():
    """What NumPy does with a bare list: it fills up with zeros."""
    plain = [np.random.default_rng(seed).integers(2**63) for seed in ([7, 1], [7, 1, 0, 0])]
    assert plain[0] == plain[1]
    assert first(7, "shuffle", (1,)) != first(7, "shuffle", (1, 0, 0))


def test_keys_of_different_names_differ():
    keys = {str(streams.key(3, name)) for name in streams.NAMES}
    assert len(keys) == len(streams.NAMES)
    assert str(streams.key(3, "key/visits")) == str(streams.key(3, "key/visits"))


def test_a_stream_has_to_be_listed():
    with pytest.raises(ValueError, match=r"no stream of snake_jax"):
        streams.generator(0, "shufle")


def test_nobody_else_makes_a_generator():
    """Product code takes its generators from here; what needs no run's seed says so by `SEED`."""
    from tests.test_imports import our_files

    makers = [
        path
        for path, source in our_files().items()
        if path.startswith("snake_jax/") and ("default_rng(" in source or "RandomState(" in source)
    ]
    assert makers == ["snake_jax/streams.py"]
