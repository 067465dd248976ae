"""A test part held out of training, where the data has none: its size, its classes, its errors."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from snake_jax.config import ImageConfig
from snake_jax.data.images.dataset import Split
from snake_jax.data.images.hold_out import HoldOut, with_test_part
from snake_jax.data.images.sources import load_dataset
from snake_jax.errors import UserError
from snake_jax.runs import loop


def numbered(counts):
    """So many examples of each class, mixed; images carry their own number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(labels).astype(np.int32)
    images = np.zeros((len(labels), 2, 2, 1), np.float32)
    images[:, 0, 0, 0] = np.arange(len(labels)) / 1000
    return Split(images, labels)


def held_out(train, share=0.1, seed=0):
    return with_test_part("own", train, None, "no array named test_x", HoldOut(share, seed))


def test_the_share_is_held_out_in_each_class_and_nothing_is_lost():
    train = numbered([100, 50, 20])
    dataset = held_out(train)
    assert np.bincount(dataset.test.labels).tolist() == [10, 5, 2]
    assert np.bincount(dataset.train.labels).tolist() == [90, 45, 18]
    for part in (dataset.train, dataset.test):
        numbers = np.rint(part.images[:, 0, 0, 0] * 1000).astype(int)
        assert np.array_equal(numbers, np.sort(numbers))
        assert np.array_equal(part.labels, train.labels[numbers])
    both = np.concatenate([dataset.train.images, dataset.test.images])
    assert np.array_equal(np.sort(both[:, 0, 0, 0]), train.images[:, 0, 0, 0])


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(2, 60), min_size=2, max_size=8), st.floats(0.05, 0.5))
def test_the_size_is_the_share_and_each_class_is_within_one_of_its_own(counts, share):
    counts = np.array(counts)
    wanted = round(share * counts.sum())
    assume(wanted)
    dataset = held_out(numbered(counts), share)
    taken = np.bincount(dataset.test.labels, minlength=len(counts))
    assert taken.sum() == wanted
    assert np.abs(taken - share * counts).max() < 1
    assert (taken < counts).all()


def test_a_class_of_one_example_trains():
    dataset = held_out(numbered([40, 1, 1]), 0.5)
    assert np.bincount(dataset.train.labels).tolist() == [20, 1, 1]


def test_the_seed_decides_and_the_log_says_what_was_done():
    train = numbered([100, 100])
    first, again, other = held_out(train), held_out(train), held_out(train, seed=1)
    assert np.array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.images, other.test.images)
    assert first.note == (
        "own: 20 of 200 training examples held out as the test part (--test_share=0.1), drawn by "
        "--seed=0 with the same share of each class"
    )


@pytest.mark.parametrize(
    ("counts", "share", "said"),
    [
        ([4, 4], 0.0, "no array named test_x; --test_share=0.1 holds a tenth of the training"),
        ([4, 4], 0.05, "--test_share=0.05 of 8 training examples is less than one"),
        ([1, 1, 1, 1], 0.5, "no class has an example to spare"),
    ],
)
def test_without_a_part_to_test_on_one_line_says_the_way_out(counts, share, said):
    with pytest.raises(UserError, match=said) as error:
        held_out(numbered(counts), share)
    assert "\n" not in str(error.value)


def test_data_with_a_test_part_refuses_the_flag():
    with pytest.raises(UserError, match=r"--test_share=0.2: digits has a test part of 360"):
        load_dataset("digits", test_share=0.2)


def only_training(folder, form):
    """A file or folder of 60 training examples without a test part."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 3
    if form == "folder":
        np.savez(folder / "train_0.npz", x=x[:20], y=y[:20])
        np.savez(folder / "train_1.npz", x=x[20:], y=y[20:])
        return f"npz:{folder}"
    images, labels = form.split()
    np.savez(folder / "own.npz", **{images: x, labels: y})
    return f"npz:{folder / 'own.npz'}"


FORMS = ("train_x train_y", "x y", "images labels", "data targets", "X_train y_train", "folder")


@pytest.mark.parametrize("form", FORMS)
def test_files_with_a_training_part_only_are_read_with_a_share_to_test_on(form, tmp_path):
    spec = only_training(tmp_path, form)
    dataset = load_dataset(spec, test_share=0.1, seed=3)
    assert np.bincount(dataset.train.labels).tolist() == [18] * 3
    assert np.bincount(dataset.test.labels).tolist() == [2] * 3
    missing = "no test_*.npz" if form == "folder" else "no array named test_x in it (it has:"
    with pytest.raises(UserError) as error:
        load_dataset(spec)
    assert missing in str(error.value)
    assert "; --test_share=0.1 holds" in str(error.value)


def test_a_run_is_prepared_on_what_is_left_and_says_so(tmp_path):
    spec = only_training(tmp_path, "images labels")
    setup = loop.prepare(ImageConfig(model="mlp", nodes=3, dataset=spec, test_share=0.2, seed=5))
    assert (len(setup.data.dataset.train.labels), len(setup.data.dataset.test.labels)) == (48, 12)
    assert sum(map(len, setup.data.shards)) == 48
    note, quality = setup.data.quality.splitlines()
    assert note.endswith("(--test_share=0.2), drawn by --seed=5 with the same share of each class")
    assert quality == "quality, each node by itself: kept 48 of 48 examples"
    with pytest.raises(UserError, match="must be at most"):
        ImageConfig(test_share=0.6)
