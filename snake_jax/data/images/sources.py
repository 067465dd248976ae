"""Where images come from: `digits` (bundled), `cifar10`, `tfds:NAME` (tensorflow-datasets),
`npz:PATH` (the user's).
"""

import numpy as np

from snake_jax.data.images.dataset import Dataset, Split, checked_split, make_dataset, normalise
from snake_jax.data.images.npz import load_npz
from snake_jax.data.images.tfds import load_tfds
from snake_jax.errors import UserError

__all__ = ["SOURCES", "Dataset", "Split", "load", "normalise"]

SOURCES = ("digits", "cifar10", "tfds:NAME", "npz:PATH")

_DIGITS_TEST = 360  # a fifth of the 1797 images
_DIGITS_SEED = 0


def load(spec: str) -> Dataset:
    """The data set that `spec` (the flag --dataset) names: one of SOURCES.

    Raises UserError, in one line, for an unknown name or for data that is missing, broken or of the
    wrong form.
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return _load_digits()
    if spec == "cifar10":
        return load_tfds("cifar10")
    if kind == "tfds" and rest:
        return load_tfds(rest)
    if kind == "npz":
        return load_npz(rest)
    raise UserError(f"--dataset={spec} is unknown; allowed: {', '.join(SOURCES)}")


def _load_digits() -> Dataset:
    """scikit-learn's 1797 real handwritten digits (UCI, 8x8, 16 grey levels), as 32x32x3; 1437
    train, 360 test, stratified.

    The split is fixed: it is part of the data set, not of a run's seed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        _upsample(images.reshape(-1, 8, 8)),
        labels,
        test_size=_DIGITS_TEST,
        stratify=labels,
        random_state=_DIGITS_SEED,
    )
    train_images, test_images, train_labels, test_labels = parts
    splits = (
        checked_split("digits", train_images, train_labels),
        checked_split("digits", test_images, test_labels),
    )
    return make_dataset("digits", *splits)


def _upsample(images: np.ndarray) -> np.ndarray:
    """`[N, 8, 8]` of 0..16 to `[N, 32, 32, 3]` uint8, bilinear between pixel centres.

    Bilinear rather than nearest: repeated pixels would put 4x4 blocks with hard edges in the image,
    which a 3x3 filter sees as flat areas and steps of the grid instead of pen strokes, and which
    random crops of 1 to 3 pixels would shift against the digit.
    """
    from scipy.ndimage import zoom

    grey = zoom(images, (1, 4, 4), order=1, mode="nearest", grid_mode=True) * (255 / 16)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
