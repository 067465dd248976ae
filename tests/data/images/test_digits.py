"""The bundled digits are scikit-learn's own, cut and enlarged as scikit-learn and scipy do it."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import zoom
from sklearn import datasets
from sklearn.model_selection import train_test_split

from snake_jax.data.images import digits
from snake_jax.data.images.sources import load_dataset
from snake_jax.errors import UserError


def test_digits_are_scikit_learn_s_bit_for_bit():
    images, labels = datasets.load_digits(return_X_y=True)
    grey = zoom(images.reshape(-1, 8, 8), (1, 4, 4), order=1, mode="nearest", grid_mode=True)
    levels = np.rint(grey * (255 / 16)).astype(np.uint8)
    split = train_test_split(levels, labels, test_size=360, stratify=labels, random_state=0)

    dataset = load_dataset("digits")
    train, test = dataset.train, dataset.test
    found = train.images, test.images, train.labels, test.labels
    for ours, theirs in zip((train.images, test.images), split[:2], strict=True):
        for channel in range(3):
            np.testing.assert_array_equal(ours[..., channel], theirs)
    for ours, theirs in zip((train.labels, test.labels), split[2:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [array.dtype for array in found] == [np.uint8, np.uint8, np.int32, np.int32]
    assert dataset.num_classes == 10


# With classes of equal and of unlike sizes, so that remainders are equal or not.
@pytest.mark.parametrize("counts", [(20, 20, 20), (31, 7, 12, 50), (9, 9, 13)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_labels_are_cut_as_scikit_learn_cuts_them(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    for num_test in (5, len(labels) // 3):
        theirs = train_test_split(
            np.arange(len(labels)), test_size=num_test, stratify=labels, random_state=seed
        )
        ours = digits.stratified(labels, num_test, seed)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_reading_them_imports_neither_scikit_learn_nor_scipy():
    code = (
        "import sys; from snake_jax.data.images.digits import load_digits; load_digits(); "
        "print([name for name in ('sklearn', 'scipy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_digits_without_scikit_learn_are_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(digits, "_FILE", digits.Path("nowhere.csv.gz"))
    with pytest.raises(UserError, match="scikit-learn"):
        digits.load_digits()
