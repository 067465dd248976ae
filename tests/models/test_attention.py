"""Attention in parts equals attention at once, forward and backward, and never has all scores
there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.models import attention

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0]] * 3)


def inputs(length=8, batch=3):
    keys = jax.random.split(jax.random.key(0), 3)
    return [
        jax.random.normal(key, (batch, length, heads, 4))
        for key, heads in zip(keys, (6, 2, 2), strict=True)
    ]


def attend(segments):
    return lambda *given: attention.attend_causally(segments)(*given)[0]


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize(("limit", "parts"), [(2000, (3, 1)), (800, (3, 2)), (1, (3, 2))])
def test_parts_change_nothing(limit, parts, segments, monkeypatch):
    given = inputs()

    def loss(*given):
        out = attend(segments)(*given)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    whole = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given)
    monkeypatch.setattr(attention, "SCORE_BYTES", limit)
    assert attention._parts(given[0].shape, 2) == parts
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given),
        whole,
    )


def test_scores_of_all_rows_are_never_there_at_once(monkeypatch):
    given = inputs(length=256, batch=8)

    def temporary_bytes():
        gradient = jax.jit(jax.grad(lambda *given: attend(None)(*given).sum(), (0, 1, 2)))
        return gradient.lower(*given).compile().memory_analysis().temp_size_in_bytes

    at_once = temporary_bytes()
    monkeypatch.setattr(attention, "SCORE_BYTES", 4 * 6 * 256 * 256)
    scores = 4 * 8 * 6 * 256 * 256
    assert at_once > scores
    assert temporary_bytes() < scores
