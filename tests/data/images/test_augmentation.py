"""Augmentation equals a numpy reference for given offsets, and draws anew with every key and
example.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from snake_jax.data.images.augmentation import (
    AUGMENTATIONS,
    augment,
    check,
    crop_flip,
    flip,
    shift_mirror,
)
from snake_jax.errors import UserError

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 10, 3)), jnp.float32)


def reference(image, row, column, mirrored, padding, mode="constant"):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    crop = padded[row : row + image.shape[0], column : column + image.shape[1]]
    return crop[:, ::-1] if mirrored else crop


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_shift_and_mirror_equal_numpy_crops_of_the_padded_image(padding, mode):
    rng = np.random.default_rng(1)
    offsets = rng.integers(0, 2 * padding + 1, (16, 2))
    offsets[0], offsets[1] = 0, 2 * padding
    mirrored = rng.random(16) < 0.5
    result = jax.jit(shift_mirror, static_argnums=(3, 4))(
        IMAGES, jnp.asarray(offsets), jnp.asarray(mirrored), padding, mode == "reflect"
    )
    expected = [
        reference(i, *o, m, padding, mode)
        for i, o, m in zip(np.asarray(IMAGES), offsets, mirrored, strict=True)
    ]
    assert np.array_equal(result, np.stack(expected))


def test_no_shift_and_no_mirror_is_the_image_itself():
    result = shift_mirror(IMAGES, jnp.full((16, 2), 4), jnp.zeros(16, bool), 4)
    assert np.array_equal(result, IMAGES)


def test_crop_flip_gives_only_crops_and_draws_every_shift_and_both_directions():
    """A random image identifies its crop: over many draws all 9 x 9 x 2 are met, equally often, and
    nothing else.
    """
    image = np.asarray(IMAGES[0])
    allowed = {
        reference(image, r, c, m, 4).tobytes()
        for r in range(9)
        for c in range(9)
        for m in (False, True)
    }
    drawn = np.asarray(crop_flip(jax.random.key(0), jnp.broadcast_to(IMAGES[0], (3000, 8, 10, 3))))
    counts = Counter(draw.tobytes() for draw in drawn)
    assert set(counts) == allowed
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_flip_mirrors_about_half():
    flipped = np.asarray(flip(jax.random.key(0), jnp.broadcast_to(IMAGES[0], (1000, 8, 10, 3))))
    mirrored = [np.array_equal(image, IMAGES[0][:, ::-1]) for image in flipped]
    kept = [np.array_equal(image, IMAGES[0]) for image in flipped]
    assert sum(mirrored) + sum(kept) == 1000
    assert 430 < sum(mirrored) < 570


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_augment_keeps_shape_and_dtype_and_depends_on_the_key_alone(kind, dtype):
    images = IMAGES.astype(dtype)
    run = jax.jit(lambda key: augment(kind, key, images))
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    assert first.shape == images.shape
    assert first.dtype == dtype
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (kind == "none") == np.array_equal(first, images)


def test_every_step_of_a_scan_augments_anew():
    keys = jax.random.split(jax.random.key(0), 5)
    _, steps = jax.lax.scan(lambda carry, key: (carry, crop_flip(key, IMAGES)), 0, keys)
    assert all(not np.array_equal(steps[0], step) for step in steps[1:])
    assert np.array_equal(steps[3], crop_flip(keys[3], IMAGES))


def test_unknown_kind_lists_the_allowed():
    with pytest.raises(
        UserError,
        match="--augment=cutout is unknown; allowed: none, crop_flip, crop_flip_reflect, flip",
    ):
        augment("cutout", jax.random.key(0), IMAGES)


def test_images_that_have_no_pixels_to_reflect_are_refused():
    check("crop_flip_reflect", (5, 5, 3))
    check("crop_flip", (4, 4, 3))
    with pytest.raises(UserError, match=r"reflects 4 pixels, and images of 8 x 4 have no more"):
        check("crop_flip_reflect", (8, 4, 1))
