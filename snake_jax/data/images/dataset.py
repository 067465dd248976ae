"""What a data set is: arrays of images and labels, checked once where they enter, normalised on the
device.

Images stay as the source gives them (uint8, or float32 in [0, 1]); `normalise` turns a batch into
float32 inside the compiled step, so that a node's whole data set rests on the device at one byte a
value.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.errors import UserError

_CHUNK = 1024  # examples read at a time where a whole float copy of the images would be large


class Split(NamedTuple):
    """Images `[N, H, W, C]`, uint8 or float32 in [0, 1], and labels `[N]`, int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A training and a test split; `mean` and `std` are per channel of the training images, in
    units of x / 255.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalise(
    images: jax.typing.ArrayLike, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """`[..., C]` uint8 (or float in [0, 1]) to float32 with mean 0 and deviation 1 per channel.
    Works under jit.
    """
    images = jnp.asarray(images)
    unit = images.astype(jnp.float32) / (
        255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
    )
    return (unit - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def finite_examples(images: np.ndarray) -> np.ndarray:
    """`[N]` bool: which images hold neither NaN nor infinity."""
    if images.dtype == np.uint8:
        return np.ones(len(images), bool)
    return np.isfinite(images).all(axis=(1, 2, 3))


def channel_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel over the finite images, in units of x / 255; 1 where a channel
    is constant.
    """
    values, sums, count = images.reshape(len(images), -1), np.zeros((2, images[0].size)), 0
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        chunk = chunk[np.isfinite(chunk).all(1)]
        sums += chunk.sum(0), np.einsum("nd,nd->d", chunk, chunk)
        count += len(chunk)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    mean, square = sums.reshape(2, -1, images.shape[-1]).mean(1) / max(count, 1)
    std = np.sqrt(np.maximum(square - mean**2, 0)) / scale
    return tuple((mean / scale).tolist()), tuple(np.where(std > 1e-6, std, 1.0).tolist())


def checked_split(where: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """One split whose shapes, dtypes and values are sound; `where` names it in the UserError of one
    that is not.
    """
    _check_images(where, images)
    _check_labels(where, labels, len(images))
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def make_dataset(name: str, train: Split, test: Split) -> Dataset:
    """Joins two checked splits: `num_classes` is the largest training label + 1, and the test must
    agree with it.

    Raises UserError: image shapes or dtypes differ, fewer than two classes, or labels that leave
    most classes empty.
    """
    if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        shapes = [f"{s.images.dtype} {list(s.images.shape[1:])}" for s in (train, test)]
        raise UserError(
            f"{name}: training images are {shapes[0]} and test images {shapes[1]}: both must be "
            f"the same"
        )
    num_classes, present = int(train.labels.max()) + 1, len(np.unique(train.labels))
    if present < 2:
        raise UserError(
            f"{name}: the training labels hold one class only; classification needs two or more"
        )
    if 2 * present < num_classes:
        raise UserError(
            f"{name}: training label {num_classes - 1} is out of range: only {present} classes "
            f"occur; number them "
            f"0 to {present - 1} without gaps"
        )
    if test.labels.max() >= num_classes:
        raise UserError(
            f"{name}: test label {test.labels.max()} is out of range: training labels go from 0 "
            f"to {num_classes - 1}"
        )
    if not finite_examples(train.images).any():
        raise UserError(
            f"{name}: every training image holds NaN or infinity; export the images again"
        )
    return Dataset(name, train, test, num_classes, *channel_stats(train.images))


def _check_images(where: str, images: np.ndarray) -> None:
    if images.ndim != 4:
        raise UserError(f"{where}: images have shape {list(images.shape)}, expected [N, H, W, C]")
    if images.size == 0:
        raise UserError(f"{where}: no images (shape {list(images.shape)})")
    if images.shape[1] <= 4 < images.shape[3]:
        raise UserError(
            f"{where}: images of shape {list(images.shape)} look like NCHW; transpose them to "
            f"NHWC (0, 2, 3, 1)"
        )
    if images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"{where}: images are {images.dtype}, expected uint8 (or float32 in [0, 1])"
        )
    if images.dtype == np.float32:
        finite = images[np.isfinite(images)]
        if finite.size and not 0 <= finite.min() <= finite.max() <= 1:
            raise UserError(
                f"{where}: float32 images go from {finite.min():g} to {finite.max():g}, expected "
                f"[0, 1]; divide by 255"
            )


def _check_labels(where: str, labels: np.ndarray, examples: int) -> None:
    if labels.ndim != 1:
        raise UserError(
            f"{where}: labels have shape {list(labels.shape)}, expected [N] class numbers"
        )
    if len(labels) != examples:
        raise UserError(f"{where}: {examples} images but {len(labels)} labels")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UserError(f"{where}: labels hold NaN, expected integers from 0")
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels are {labels.dtype}, expected integers from 0; convert with "
            f"y.astype('int32')"
        )
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
        raise UserError(
            f"{where}: labels go from {labels.min()} to {labels.max()}, out of range; number the "
            f"classes from 0"
        )
