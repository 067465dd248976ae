"""The quality step finds exactly what was planted."""

import numpy as np
import pytest

from snake_jax.data.images.dataset import Split, make_dataset
from snake_jax.data.images.quality import QualityReport, clean
from snake_jax.data.images.sources import load_dataset
from snake_jax.errors import UserError


def planted(dtype=np.uint8):
    """60 images of noise to train on and 10 to test on, labels 0, 1, 2, 0, 1, ..."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)
    test_images = rng.integers(0, 256, (10, 4, 4, 3), np.uint8)
    if dtype == np.float32:
        images = (images / 255).astype(dtype)
        test_images = (test_images / 255).astype(dtype)
    labels = (np.arange(60) % 3).astype(np.int32)
    test_labels = (np.arange(10) % 3).astype(np.int32)
    return images, labels, test_images, test_labels


def dataset(images, labels, test_images, test_labels):
    train = Split(images, labels)
    test = Split(test_images, test_labels)
    return make_dataset("planted", train, test)


def test_a_clean_data_set_is_left_as_it_is():
    before = dataset(*planted())
    after, report = clean(before)
    assert report == QualityReport(60, 10, 0, 0, 0, 0, 0, 0)
    assert np.array_equal(after.train.images, before.train.images)
    assert after.mean == before.mean


def test_duplicates_are_dropped_once_each_and_conflicting_labels_and_test_overlap_counted():
    images, labels, test_images, test_labels = planted()
    # Labels 1 and 2 against 1, then 1 against 0: two of the copies contradict what they copy.
    images[10] = images[4]
    images[20] = images[4]
    images[31] = images[30]
    images[7] = test_images[3]
    after, report = clean(dataset(images, labels, test_images, test_labels))
    assert report == QualityReport(57, 10, 0, 0, 3, 2, 0, 1)

    copies = [10, 20, 31]
    kept = np.delete(images, copies, axis=0)
    assert np.array_equal(after.train.images, kept)
    assert np.array_equal(after.train.labels, np.delete(labels, copies))
    assert np.allclose(after.mean, kept.mean((0, 1, 2)) / 255)


def test_nan_and_infinite_examples_are_dropped_from_both_splits():
    images, labels, test_images, test_labels = planted(np.float32)
    images[0, 1, 2, 0] = np.nan
    images[59] = np.inf
    test_images[9, 0, 0, 0] = -np.inf
    after, report = clean(dataset(images, labels, test_images, test_labels))
    assert report == QualityReport(58, 9, 2, 1, 0, 0, 0, 0)
    assert np.isfinite(after.train.images).all()
    assert np.isfinite(after.test.images).all()

    kept = images[1:59]
    assert np.array_equal(after.train.images, kept)
    assert np.array_equal(after.test.labels, test_labels[:9])
    assert np.allclose(after.std, kept.std((0, 1, 2)), atol=1e-6)


def test_equal_images_with_nan_count_as_broken_not_as_duplicates():
    images, labels, test_images, test_labels = planted(np.float32)
    images[:5] = np.nan
    _, report = clean(dataset(images, labels, test_images, test_labels))
    assert report[:6] == (55, 10, 5, 0, 0, 0)


def test_outliers_are_the_images_unlike_the_others():
    digits = load_dataset("digits")
    images = digits.train.images[:500].copy()
    labels = digits.train.labels[:500]
    strange = np.random.default_rng(0).choice(len(images), 10, replace=False)
    noise = np.random.default_rng(1).integers(0, 256, (10, 32, 32, 3), np.uint8)
    images[strange] = noise
    before = digits._replace(train=Split(images, labels))

    after, report = clean(before, outliers=0.05)
    assert report.outliers == pytest.approx(0.05 * len(images), abs=2)
    assert report.train_kept == len(images) - report.outliers

    kept = {image.tobytes() for image in after.train.images}
    strange_kept = [place for place in strange if images[place].tobytes() in kept]
    assert len(strange_kept) <= 1

    again, _ = clean(before, outliers=0.05)
    assert np.array_equal(after.train.images, again.train.images)


def test_digits_need_no_cleaning_and_the_report_is_one_line():
    _, report = clean(load_dataset("digits"))
    assert report == QualityReport(1437, 360, 0, 0, 0, 0, 0, 0)
    assert "1437 train" in str(report)
    assert "\n" not in str(report)


@pytest.mark.parametrize("fraction", [-0.1, 0.6, float("nan")])
def test_the_outlier_fraction_is_checked(fraction):
    with pytest.raises(UserError, match="--outliers"):
        clean(dataset(*planted()), outliers=fraction)


def test_nothing_left_is_a_user_error():
    images, labels, test_images, test_labels = planted(np.float32)
    no_test = dataset(images, labels, np.full_like(test_images, np.nan), test_labels)
    with pytest.raises(UserError, match="60 train and 0 test examples are left"):
        clean(no_test)
    images[labels != 1] = np.nan
    one_class = dataset(images, labels, test_images, test_labels)
    with pytest.raises(UserError, match="20 train and 10 test examples are left"):
        clean(one_class)
