"""Logits equal torch's: golden files of every variant, and live where torch is importable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from snake_jax.models.hub import load_pretrained
from snake_jax.models.language import Tokens
from tests.models.make_golden import FOLDER, VARIANTS, random_ids, torch_logits, torch_model
from tests.sweeps import sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")


def assert_same_logits(ours, theirs):
    """Within 1e-4 relative; numbers near zero within the rounding of float32.

    Against float64 both sides are up to 2e-6 of the largest logit off, torch by 1.4e-6 or 2.0e-6 as
    its threads divide the sums: so they may be 4e-6 apart.
    """
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=4e-6 * np.abs(theirs).max())


def golden(variant, **options):
    model, params = load_pretrained(FOLDER / variant, **options)
    expected = load_file(FOLDER / variant / "golden.safetensors")
    return model, params, jnp.asarray(expected["ids"]), expected["logits"]


# What torch says, where it is installed, is compared with for every variant below.
@pytest.mark.parametrize(
    "variant", sweep(VARIANTS, quick=("llama_gqa_tied", "opt_post_norm_projected", "gemma3"))
)
def test_logits_equal_the_golden_ones(variant):
    model, params, ids, expected = golden(variant)
    logits = model.apply(params, ids)
    assert logits.dtype == jnp.float32
    assert_same_logits(logits, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_torch(variant, tmp_path):
    pytest.importorskip("torch")
    theirs, ids = torch_model(variant, seed=100), random_ids(seed=100)
    theirs.save_pretrained(tmp_path)
    model, params = load_pretrained(tmp_path)
    assert_same_logits(model.apply(params, jnp.asarray(ids)), torch_logits(theirs, ids))


@pytest.mark.parametrize("variant", ["llama_gqa_tied", "opt_post_norm_projected"])
def test_bfloat16_is_finite_and_close(variant):
    model, params, ids, expected = golden(variant, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    hidden = jax.jit(functools.partial(model.apply, stop=-1, dtype=jnp.bfloat16))(params, ids)
    assert hidden.values.dtype == jnp.bfloat16
    logits = model.apply(params, hidden, -1)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    # 8 bits of mantissa through two blocks: a few percent of the spread, and clearly not float32's
    # 1e-6.
    error = np.sqrt(np.square(logits - expected).mean()) / expected.std()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    "variant",
    sweep(
        ("llama_gqa_tied", "llama_rope_llama3", "opt_pre_norm", "opt_post_norm_projected"),
        quick=("llama_gqa_tied", "opt_pre_norm"),
    ),
)
def test_packed_texts_have_the_logits_they_have_apart(variant):
    model, params, ids, _ = golden(variant)
    one, other = np.asarray(ids[0, :9]), np.asarray(ids[1, :11])
    # The other text in the same row, then padding.
    row = np.concatenate([one, other, np.zeros(4, np.int32)])
    positions = np.concatenate([np.arange(9), np.arange(11), np.arange(4)])
    segments = np.repeat([1, 2, 0], [9, 11, 4])
    forward = jax.jit(model.apply)
    packed = forward(
        params, Tokens(*(jnp.asarray(x, jnp.int32)[None] for x in (row, positions, segments)))
    )[0]
    np.testing.assert_allclose(packed[:9], forward(params, one[None])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[9:20], forward(params, other[None])[0], rtol=1e-5, atol=1e-5)
    assert np.isfinite(packed).all()


def test_without_segments_the_second_text_sees_the_first():
    model, params, ids, _ = golden("opt_pre_norm")
    positions = jnp.concatenate([jnp.arange(9), jnp.arange(15)])[None]
    logits = model.apply(params, Tokens(ids[:1], positions, None))[0]
    assert not np.allclose(logits[9:], model.apply(params, ids[:1, 9:])[0], atol=1e-2)
