"""scikit-learn's 1797 handwritten digits (UCI, 8x8, 16 grey levels), read from its package's file.

scikit-learn itself is not imported: with scipy it takes longer than jax, and all that it does to
these images is said here in a few lines. Tests hold the arrays to its own, bit for bit.
"""

import importlib.util
from pathlib import Path

import numpy as np

from snake_jax import streams
from snake_jax.data.images.dataset import Split, checked_split
from snake_jax.errors import UserError

_FILE = Path("datasets", "data", "digits.csv.gz")
_SIDE = 8
_TIMES = 4  # as many pixels a side
_TEST = 360  # a fifth of the 1797 images
_SEED = 0


def load_digits() -> tuple[Split, Split]:
    """1437 training and 360 test images as 32x32x3, stratified.

    The split is fixed: it is part of the data set, not of a run's seed.

    Raises:
      UserError: scikit-learn, or its file of digits, is not there.
    """
    table = _table()
    labels = table[:, -1]
    images = upsampled(table[:, :-1].reshape(-1, _SIDE, _SIDE))
    train, test = stratified(labels, _TEST, _SEED)
    return (
        checked_split("digits", images[train], labels[train]),
        checked_split("digits", images[test], labels[test]),
    )


def _table() -> np.ndarray:
    """`[1797, 65]` uint8: the pixels of an image row by row, and its label."""
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        file = Path(folder, _FILE)
        if file.is_file():
            return np.loadtxt(file, dtype=np.uint8, delimiter=",")
    raise UserError("--dataset=digits is in scikit-learn, which is not there: install it")


def upsampled(images: np.ndarray) -> np.ndarray:
    """`[N, 8, 8]` of 0..16 to `[N, 32, 32, 3]` uint8, bilinear between pixel centres.

    Bilinear rather than nearest: repeated pixels would put 4x4 blocks with hard edges in the image,
    which a 3x3 filter sees as flat areas and steps of the grid instead of pen strokes, and which
    random crops of 1 to 3 pixels would shift against the digit.
    """
    # Where the centres of the new pixels lie between those of the old ones; beyond the outermost
    # centre the outermost pixel goes on.
    places = (np.arange(_SIDE * _TIMES) + 0.5) / _TIMES - 0.5
    places = np.clip(places, 0, _SIDE - 1)
    before = np.floor(places).astype(int)
    after = np.minimum(before + 1, _SIDE - 1)

    # [32, 8]: what each new pixel has of each old one, in eighths. All products and sums are exact.
    share = np.zeros((len(places), _SIDE))
    rows = np.arange(len(places))
    share[rows, before] += 1 - (places - before)
    share[rows, after] += places - before
    grey = share @ images.astype(float) @ share.T
    levels = np.rint(grey * (255 / 16)).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def stratified(labels: np.ndarray, num_test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and test examples, with equal shares of every class in both.

    As `sklearn.model_selection.train_test_split(..., stratify=labels)` draws them.

    Args:
      labels: `[N]`.
      num_test: how many examples to test on; all others train.
      seed: of the draw.
    """
    random = streams.of_data(seed)
    counts = np.bincount(labels)
    of_train = _shared_out(counts, len(labels) - num_test, random)
    of_test = _shared_out(counts - of_train, num_test, random)

    # Class by class, each shuffled; then all.
    train, test = [], []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)[random.permutation(count)]
        end = of_train[label] + of_test[label]
        train.append(members[: of_train[label]])
        test.append(members[of_train[label] : end])
    shuffled = random.permutation(np.concatenate(train))
    return shuffled, random.permutation(np.concatenate(test))


def _shared_out(counts: np.ndarray, number: int, random: np.random.RandomState) -> np.ndarray:
    """`[C]`: how many of each class, where `number` examples are drawn in equal shares.

    Shares are rounded down; what is left goes to the classes with the largest remainders, where
    these are equal by lot.
    """
    exact = counts / counts.sum() * number
    shares = np.floor(exact)
    remainders = exact - shares
    left = int(number - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if left == 0:
            break
        tied = np.flatnonzero(remainders == remainder)
        chosen = random.choice(tied, size=min(len(tied), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    return shares.astype(int)
