"""Where images come from: digits (bundled), cifar10, tfds:NAME (tensorflow-datasets), npz:PATH."""

import numpy as np

from snake_jax.data.images.dataset import Dataset, checked_split
from snake_jax.data.images.hold_out import HoldOut, with_test_part
from snake_jax.data.images.npz import load_npz
from snake_jax.data.images.tfds import load_tfds
from snake_jax.errors import UserError

SOURCES = ("digits", "cifar10", "tfds:NAME", "npz:PATH")

_DIGITS_TEST = 360  # a fifth of the 1797 images
_DIGITS_SEED = 0


def load_dataset(spec: str, *, test_share: float = 0.0, seed: int = 0) -> Dataset:
    """The data set that `spec` (the flag --dataset) names: one of SOURCES.

    Args:
      spec: of the data set.
      test_share: share of the training examples to test on, where there is no test part; 0: a
        data set without one is refused.
      seed: of which examples those are.

    Raises:
      UserError: the name is unknown, the data is missing, broken or of the wrong form, or it has a
        test part beside `test_share`.
    """
    kind, _, rest = spec.partition(":")
    hold_out = HoldOut(test_share, seed)
    if spec == "digits":
        return _load_digits(hold_out)
    if spec == "cifar10":
        return load_tfds("cifar10", hold_out=hold_out)
    if kind == "tfds" and rest:
        return load_tfds(rest, hold_out=hold_out)
    if kind == "npz":
        return load_npz(rest, hold_out)
    raise UserError(f"--dataset={spec} is unknown; allowed: {', '.join(SOURCES)}")


def _load_digits(hold_out: HoldOut) -> Dataset:
    """scikit-learn's 1797 handwritten digits (UCI, 8x8, 16 grey levels) as 32x32x3.

    1437 train and 360 test, stratified. The split is fixed: it is part of the data set, not of a
    run's seed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        _upsample(images.reshape(-1, 8, 8)),
        labels,
        test_size=_DIGITS_TEST,
        stratify=labels,
        random_state=_DIGITS_SEED,
    )
    train = checked_split("digits", train_images, train_labels)
    test = checked_split("digits", test_images, test_labels)
    return with_test_part("digits", train, test, "", hold_out)


def _upsample(images: np.ndarray) -> np.ndarray:
    """`[N, 8, 8]` of 0..16 to `[N, 32, 32, 3]` uint8, bilinear between pixel centres.

    Bilinear rather than nearest: repeated pixels would put 4x4 blocks with hard edges in the image,
    which a 3x3 filter sees as flat areas and steps of the grid instead of pen strokes, and which
    random crops of 1 to 3 pixels would shift against the digit.
    """
    from scipy.ndimage import zoom

    grey = zoom(images, (1, 4, 4), order=1, mode="nearest", grid_mode=True)
    levels = np.rint(grey * (255 / 16)).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)
