"""Initial weights drawn in pieces have the bits of flax's own initialisers, at any shape."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.models import drawing, registry

KEY = jax.random.key(7)
# Less than a piece, and more than two.
SHAPES = ((3, 3, 2, 5), (130, 1100))


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 64, so that little arrays take several."""
    monkeypatch.setattr(drawing, "_PIECE", 64)
    drawing._piece.clear_cache()
    yield
    drawing._piece.clear_cache()


@pytest.mark.parametrize(
    ("scale", "mode", "distribution"),
    [
        (2.0, "fan_in", "truncated_normal"),
        (2.0, "fan_out", "normal"),
        (1 / 3, "fan_in", "uniform"),
    ],
)
def test_the_bits_are_flax_s(scale, mode, distribution):
    ours = drawing.scaled(scale, mode, distribution)
    flax = nn.initializers.variance_scaling(scale, mode, distribution)
    for shape in SHAPES:
        expected = jax.jit(flax, static_argnums=1)(KEY, shape)
        np.testing.assert_array_equal(ours(KEY, shape), expected)


def test_a_uniform_draw_has_the_bits_of_jax_s():
    expected = jax.random.uniform(KEY, (70,), jnp.float32, -0.25, 0.25)
    np.testing.assert_array_equal(drawing.uniform(0.25)(KEY, (70,)), expected)


@pytest.mark.usefixtures("small_pieces")
def test_one_program_draws_every_shape():
    ours = drawing.scaled(2.0, "fan_in", "truncated_normal")
    for shape in ((3, 3, 3, 8), (40, 10), (7, 5)):
        assert ours(KEY, shape).shape == shape
    assert drawing._piece._cache_size() == 1


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("name", "init"), [("cnn", "he"), ("cnn", "torch"), ("lenet", "torch")])
def test_a_network_starts_alike_in_pieces_and_in_one_program(name, init):
    model = registry.build(name, 10, (16, 16, 3), init=init)
    at_once = jax.jit(model.init)(KEY)
    in_pieces = model.init(KEY)
    assert jax.tree.structure(in_pieces) == jax.tree.structure(at_once)
    for one, other in zip(jax.tree.leaves(in_pieces), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_other_keys_and_dtypes_are_drawn_by_jax():
    ours = drawing.scaled(2.0, "fan_in", "truncated_normal")
    assert ours(jax.random.key(1, impl="rbg"), (4, 3)).shape == (4, 3)
    assert ours(KEY, (4, 3), jnp.bfloat16).dtype == jnp.bfloat16
