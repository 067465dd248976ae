"""Random crops and flips on the device, drawn anew at every step: pure functions of a key, for jit,
vmap and scan.

One gather does shift and flip together. On a CPU (two cores) it takes 0.1 ms or less for a batch
[32, 32, 32, 3] inside a compiled scan, where dynamic_slice under vmap takes 1 ms and a chain of
selects 4 ms. Images are float32 and already normalised, so that the zeros a crop lets in are the
mean colour.
"""

import jax
import jax.numpy as jnp

from snake_jax.errors import UserError

AUGMENTATIONS = ("none", "crop_flip", "flip")


def augment(kind: str, key: jax.Array, images: jax.Array) -> jax.Array:
    """`images` `[B, H, W, C]` augmented as `kind`, one of AUGMENTATIONS, says. Raises UserError for
    another kind.
    """
    if kind not in AUGMENTATIONS:
        raise UserError(f"--augment={kind} is unknown; allowed: {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return images
    return crop_flip(key, images) if kind == "crop_flip" else flip(key, images)


def crop_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Every image shifted by up to `padding` pixels each way, zeros coming in, and mirrored with
    probability 1/2.
    """
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (images.shape[0], 2), 0, 2 * padding + 1)
    return shift_mirror(images, offsets, _coins(flip_key, images), padding)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Every image mirrored left to right with probability 1/2."""
    return jnp.where(_coins(key, images)[:, None, None, None], images[:, :, ::-1], images)


def shift_mirror(
    images: jax.Array, offsets: jax.Array, mirrored: jax.Array, padding: int
) -> jax.Array:
    """Crops of the zero-padded images at row, column `offsets` `[B, 2]` (0 to 2 * padding),
    mirrored where told.
    """
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    columns = (
        jnp.where(mirrored[:, None], jnp.arange(width)[::-1], jnp.arange(width))
        + offsets[:, 1, None]
    )
    rows = jnp.arange(height) + offsets[:, 0, None]
    index = (jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :])
    return padded.at[index].get(mode="promise_in_bounds")


def _coins(key: jax.Array, images: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key, 0.5, (images.shape[0],))
