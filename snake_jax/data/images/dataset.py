"""What a data set is: arrays of images and labels, checked once where they enter.

Images rest as uint8 or as float32 in [0, 1]; `normalise` turns a batch into float32 inside the
compiled step, so that a node's whole data set lies on the device at one byte a value.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.errors import UserError

_CHUNK = 1024  # examples read at a time where a whole float copy of the images would be large
_LARGEST_LABEL = 2**31 - 2  # so that the number of classes is an int32 too
_LEAST_STD = 1e-6  # a channel that varies less is constant


class Split(NamedTuple):
    """Images `[N, H, W, C]`, uint8 or float32 in [0, 1], and labels `[N]`, int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A training and a test split.

    Attributes:
      name: for messages.
      train: what is spread over the nodes.
      test: what the model is evaluated on.
      num_classes: labels go from 0 to one less.
      mean: of each channel of the training images, in units of x / 255.
      std: the deviation likewise; 1 where a channel is constant.
      note: what was done to have both splits, one line for the log; empty: nothing.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""


def normalise(
    images: jax.typing.ArrayLike, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """`[..., C]` uint8 (or float in [0, 1]) to float32 of mean 0 and deviation 1 in each channel.

    Works under jit.
    """
    images = jnp.asarray(images)
    scale = 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else 1.0
    unit = images.astype(jnp.float32) / scale
    return (unit - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def take(split: Split, which: np.ndarray) -> Split:
    """The examples that a mask `[N]` or a list of indices chooses, in its order."""
    return Split(split.images[which], split.labels[which])


def kind_of(split: Split) -> str:
    """What splits must agree in to be used together: the images' dtype and shape, for messages."""
    images = split.images
    return f"{images.dtype} {list(images.shape[1:])}"


def finite_examples(images: np.ndarray) -> np.ndarray:
    """`[N]` bool: which images hold neither NaN nor infinity."""
    if images.dtype == np.uint8:
        return np.ones(len(images), bool)
    return np.isfinite(images).all(axis=(1, 2, 3))


def channel_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over the finite images, in units of x / 255.

    The deviation is given as 1 where a channel is constant, so that it can be divided by.
    """
    values = images.reshape(len(images), -1)
    total = np.zeros(values.shape[1])
    total_square = np.zeros(values.shape[1])
    count = 0

    # In chunks, in float64: a float copy of all images may be larger than the memory.
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        chunk = chunk[np.isfinite(chunk).all(1)]
        total += chunk.sum(0)
        total_square += np.einsum("nd,nd->d", chunk, chunk)
        count += len(chunk)

    # Pixels of a channel are pooled: [H * W * C] -> [H * W, C] -> [C].
    channels = images.shape[-1]
    divisor = max(count, 1)
    mean = total.reshape(-1, channels).mean(0) / divisor
    square = total_square.reshape(-1, channels).mean(0) / divisor

    # The deviation is sqrt(E[x^2] - E[x]^2), which rounding can bring below 0.
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    std = np.sqrt(np.maximum(square - mean**2, 0)) / scale
    std = np.where(std > _LEAST_STD, std, 1.0)
    return tuple((mean / scale).tolist()), tuple(std.tolist())


def checked_split(where: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """One split in the form that everything below relies on.

    Args:
      where: names the split in an error.
      images: `[N, H, W, C]` or, of one channel, `[N, H, W]`; whole numbers from 0 to 255 or
        floats in [0, 1], of any width.
      labels: `[N]` or `[N, 1]` integers from 0.

    Raises:
      UserError: a shape, a dtype or a value is another.
    """
    images = _checked_images(where, images)
    labels = _checked_labels(where, labels, len(images))
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def make_dataset(name: str, train: Split, test: Split, note: str = "") -> Dataset:
    """Joins two checked splits. `num_classes` is the largest training label + 1.

    Args:
      name: of the data set.
      train: its training split.
      test: its test split.
      note: see `Dataset`.

    Raises:
      UserError: image shapes or dtypes differ, there are fewer than two classes, labels leave most
        classes empty, or the test split has a class that the training split has not.
    """
    if kind_of(train) != kind_of(test):
        raise UserError(
            f"{name}: training images are {kind_of(train)} and test images {kind_of(test)}: both "
            f"must be the same; convert one of them"
        )

    # A data set with a single far label is more often a slip than a hundred classes.
    num_classes = int(train.labels.max()) + 1
    present = len(np.unique(train.labels))
    if present < 2:
        raise UserError(
            f"{name}: the training labels hold one class only; classification needs two or more"
        )
    if 2 * present < num_classes:
        raise UserError(
            f"{name}: training label {num_classes - 1} is out of range: only {present} classes "
            f"occur; number them 0 to {present - 1} without gaps"
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
    mean, std = channel_stats(train.images)
    return Dataset(name, train, test, num_classes, mean, std, note)


def _checked_images(where: str, images: np.ndarray) -> np.ndarray:
    """`[N, H, W, C]`, uint8 or float32."""
    shape = list(images.shape)
    if images.ndim not in (3, 4):
        raise UserError(
            f"{where}: images have shape {shape}, expected [N, H, W, C] or [N, H, W]; reshape "
            f"them, as x.reshape(-1, 28, 28)"
        )
    if images.size == 0:
        raise UserError(f"{where}: no images (shape {shape})")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1] <= 4 < images.shape[3]:
        raise UserError(
            f"{where}: images of shape {shape} look like NCHW; transpose them to NHWC (0, 2, 3, 1)"
        )
    if images.dtype.kind == "f":
        return _unit_images(where, images)
    return _byte_images(where, images)


def _byte_images(where: str, images: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255, as uint8."""
    if images.dtype.kind not in "iu":
        raise UserError(
            f"{where}: images are {images.dtype}, expected uint8 (or float32 in [0, 1])"
        )
    if images.dtype == np.uint8:
        return images
    least, largest = images.min(), images.max()
    if least < 0 or largest > 255:
        raise UserError(
            f"{where}: images are {images.dtype} from {least} to {largest}, expected 0 to 255 (or "
            f"float32 in [0, 1]); scale them, as (x / x.max()).astype('float32')"
        )
    return images.astype(np.uint8)


def _unit_images(where: str, images: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as float32; what is not finite stays, for the quality step to drop."""
    finite = images[np.isfinite(images)]
    if finite.size and not 0 <= finite.min() <= finite.max() <= 1:
        raise UserError(
            f"{where}: {images.dtype} images go from {finite.min():g} to {finite.max():g}, "
            f"expected [0, 1]; divide by 255"
        )
    return images.astype(np.float32, copy=False)


def _checked_labels(where: str, labels: np.ndarray, examples: int) -> np.ndarray:
    """`[N]` integers that fit int32."""
    # A column is what Keras and many exports give.
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            f"{where}: labels have shape {list(labels.shape)}, expected [N] class numbers; of "
            f"one-hot rows y.argmax(1) gives them"
        )
    if len(labels) != examples:
        raise UserError(
            f"{where}: {examples} images but {len(labels)} labels; every image needs one"
        )

    # No rounding or numbering here: what a class number means is the user's to say.
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UserError(f"{where}: labels hold NaN, expected integers from 0")
    if labels.dtype.kind in "US":
        raise UserError(
            f"{where}: labels are words ({labels[0]}, ...), expected integers from 0; "
            f"np.unique(y, return_inverse=True)[1] numbers them"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels are {labels.dtype}, expected integers from 0; convert with "
            f"y.astype('int32')"
        )
    if labels.min() < 0 or labels.max() > _LARGEST_LABEL:
        raise UserError(
            f"{where}: labels go from {labels.min()} to {labels.max()}, out of range; number the "
            f"classes from 0"
        )
    return labels
