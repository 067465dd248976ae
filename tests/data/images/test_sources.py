"""Sources: the bundled digits, .npz files, every wrong input, normalisation; real CIFAR-10 where it
is at hand.
"""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.config import ImageConfig
from snake_jax.data.images.dataset import channel_stats, normalise
from snake_jax.data.images.npz import NAMES
from snake_jax.data.images.sources import load_dataset
from snake_jax.errors import UserError

CIFAR10 = os.environ.get("SNAKE_JAX_CIFAR10", "")


def arrays(**changes):
    """A sound little data set as the arrays of one file, with some of them replaced (None: left
    out).
    """
    rng = np.random.default_rng(0)
    content = {
        "train_x": rng.integers(0, 256, (12, 5, 6, 3), np.uint8),
        "train_y": np.arange(12) % 3,
        "test_x": rng.integers(0, 256, (4, 5, 6, 3), np.uint8),
        "test_y": np.array([0, 1, 2, 0]),
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def message(spec):
    with pytest.raises(UserError) as caught:
        load_dataset(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outcome(spec):
    """The data set, or the message of the UserError."""
    try:
        return load_dataset(spec)
    except UserError as error:
        return str(error)


def test_a_file_is_read_with_its_statistics_and_extra_keys_are_ignored(tmp_path):
    content = arrays()
    np.savez_compressed(tmp_path / "own.npz", **content, lossless=np.ones(3), notes="x")
    dataset = load_dataset(f"npz:{tmp_path / 'own.npz'}")
    assert np.array_equal(dataset.train.images, content["train_x"])
    assert np.array_equal(dataset.test.labels, content["test_y"])
    assert dataset.train.labels.dtype == np.int32
    assert dataset.num_classes == 3
    unit = content["train_x"] / 255
    assert np.allclose(dataset.mean, unit.mean((0, 1, 2)))
    assert np.allclose(dataset.std, unit.std((0, 1, 2)))


def test_a_folder_is_concatenated_in_numeric_order(tmp_path):
    content = arrays()
    for number, rows in ((10, slice(8, 12)), (2, slice(4, 8)), (0, slice(0, 4))):
        np.savez(
            tmp_path / f"train_{number}.npz",
            x=content["train_x"][rows],
            y=content["train_y"][rows],
            lossless=True,
        )
    np.savez(tmp_path / "test_0.npz", x=content["test_x"], y=content["test_y"])
    (tmp_path / "README.txt").write_text("ignored")
    dataset = load_dataset(f"npz:{tmp_path}")
    assert np.array_equal(dataset.train.images, content["train_x"])
    assert np.array_equal(dataset.train.labels, content["train_y"])
    assert np.array_equal(dataset.test.images, content["test_x"])


def test_float_images_may_hold_nan_and_do_not_spoil_the_statistics(tmp_path):
    images = arrays()["train_x"].astype(np.float32) / 255
    broken = images.copy()
    broken[3, 0, 0, 0], broken[5, 1, 1, 1] = np.nan, np.inf
    np.savez(tmp_path / "f.npz", **arrays(train_x=broken, test_x=images[:4]))
    dataset = load_dataset(f"npz:{tmp_path / 'f.npz'}")
    kept = np.delete(images, [3, 5], axis=0)
    assert dataset.train.images.dtype == np.float32
    assert np.allclose(dataset.mean, kept.mean((0, 1, 2)))
    assert np.allclose(dataset.std, kept.std((0, 1, 2)))


GOOD = arrays()["train_x"]
WRONG = {
    "NCHW": ({"train_x": GOOD.transpose(0, 3, 1, 2)}, "look like NCHW"),
    "rows of pixels": (
        {"train_x": GOOD.reshape(12, -1)},
        "images have shape [12, 90], expected [N, H, W, C] or [N, H, W]; reshape them",
    ),
    "grey in one part only": (
        {"train_x": GOOD[..., 0]},
        "training images are uint8 [5, 6, 1] and test images uint8 [5, 6, 3]",
    ),
    "float64 not in unit range": (
        {"train_x": GOOD.astype(np.float64)},
        "float64 images go from 0 to 255, expected [0, 1]; divide by 255",
    ),
    "16 bits": (
        {"train_x": GOOD.astype(np.uint16) * 257},
        "images are uint16 from 0 to 65535, expected 0 to 255 (or float32 in [0, 1]); scale them",
    ),
    "negative pixels": (
        {"train_x": GOOD.astype(np.int16) - 128},
        "images are int16 from -128 to 127, expected 0 to 255",
    ),
    "masks": ({"train_x": GOOD > 127}, "images are bool, expected uint8"),
    "float not in unit range": (
        {"train_x": GOOD.astype(np.float32)},
        "expected [0, 1]; divide by 255",
    ),
    "all NaN": (
        {
            "train_x": np.full(GOOD.shape, np.nan, np.float32),
            "test_x": np.zeros((4, 5, 6, 3), np.float32),
        },
        "every training",
    ),
    "no images": ({"train_x": GOOD[:0], "train_y": np.zeros(0, int)}, "no images"),
    "empty test": ({"test_x": GOOD[:0], "test_y": np.zeros(0, int)}, "(test_x, test_y): no images"),
    "lengths": ({"train_y": np.arange(11) % 3}, "12 images but 11 labels"),
    "one-hot": (
        {"train_y": np.eye(12)},
        "labels have shape [12, 12], expected [N] class numbers; of one-hot rows y.argmax(1)",
    ),
    "negative": ({"train_y": np.arange(12) - 1}, "labels go from -1 to 10, out of range"),
    "NaN label": ({"train_y": np.full(12, np.nan)}, "labels hold NaN"),
    "fractions": ({"train_y": np.arange(12) / 2}, "labels are float64, expected integers"),
    "words": (
        {"train_y": np.array(["cat"] * 12)},
        "labels are words (cat, ...), expected integers from 0; np.unique",
    ),
    "huge label": ({"train_y": np.r_[np.arange(11) % 3, 2**40]}, "out of range"),
    "far label": (
        {"train_y": np.r_[np.arange(11) % 3, 99]},
        "training label 99 is out of range: only 4 classes occur",
    ),
    "test label": (
        {"test_y": np.array([0, 1, 2, 3])},
        "test label 3 is out of range: training labels go from 0 to 2",
    ),
    "one class": ({"train_y": np.zeros(12, int)}, "one class only"),
    "other size": ({"test_x": np.zeros((4, 6, 6, 3), np.uint8)}, "both must be the same"),
    "other dtype": ({"test_x": np.zeros((4, 5, 6, 3), np.float32)}, "both must be the same"),
    "missing key": (
        {"test_y": None},
        "no array named test_y in it (it has: train_x, train_y, test_x)",
    ),
    "mixed names": (
        {"train_y": None, "train_labels": np.arange(12) % 3},
        "no array named train_y in it (it has: train_x, test_x, test_y, train_labels)",
    ),
    "two pairs": (
        {"x_train": GOOD, "y_train": np.arange(12) % 3},
        "train_x, train_y and x_train, y_train are both images and labels of one part; leave",
    ),
    "other names": (
        {"train_x": None, "train_y": None, "pixels": GOOD},
        "no array named train_x in it (it has: test_x, test_y, pixels); name them train_x,",
    ),
    "pickle": ({"train_y": np.array([object()] * 12)}, "not a readable .npz file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line_that_names_the_file_and_the_fault(name, tmp_path):
    changes, words = WRONG[name]
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(**changes))
    assert words in message(f"npz:{path}")
    assert "own.npz" in message(f"npz:{path}")


def renamed(names):
    """The little data set with the arrays of one file under other names."""
    return dict(zip(names, arrays().values(), strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("images_train", "labels_train", "images_test", "labels_test"),
        ("train_data", "train_targets", "test_data", "test_targets"),
    ],
)
def test_the_arrays_may_have_any_of_the_usual_names(names, tmp_path):
    np.savez(tmp_path / "own.npz", **renamed(names), x=np.zeros(3))
    dataset = load_dataset(f"npz:{tmp_path / 'own.npz'}")
    content = arrays()
    assert np.array_equal(dataset.train.images, content["train_x"])
    assert np.array_equal(dataset.train.labels, content["train_y"])
    assert np.array_equal(dataset.test.images, content["test_x"])
    assert np.array_equal(dataset.test.labels, content["test_y"])
    assert dataset.note == ""


def test_the_help_of_the_flag_says_which_names_are_understood():
    (field,) = [f for f in dataclasses.fields(ImageConfig) if f.name == "dataset"]
    text = field.metadata["help"]
    for images, labels in NAMES:
        assert f"{images}, {labels}" in text
    assert "x_train for train_x" in text


def test_mnist_as_keras_ships_it_is_read(tmp_path):
    """Grey images [N, 28, 28] uint8 and labels uint8 under Keras' names."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28), np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 10
    test_y = labels[:, None]
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=test_y)
    dataset = load_dataset(f"npz:{tmp_path / 'mnist.npz'}")
    assert dataset.train.images.shape == (30, 28, 28, 1)
    assert np.array_equal(dataset.train.images[..., 0], images)
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == labels.tolist()
    assert dataset.train.labels.dtype == np.int32
    assert len(dataset.mean) == len(dataset.std) == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.int64, np.uint8),
        (np.int16, np.uint8),
        (np.float64, np.float32),
        (np.float16, np.float32),
    ],
)
def test_images_of_other_widths_are_kept_as_bytes_or_float32(given, kept, tmp_path):
    scale = 1 if kept == np.uint8 else 255
    train, test = ((arrays()[name] / scale).astype(given) for name in ("train_x", "test_x"))
    np.savez(tmp_path / "own.npz", **arrays(train_x=train, test_x=test))
    images = load_dataset(f"npz:{tmp_path / 'own.npz'}").train.images
    assert images.dtype == kept
    assert np.array_equal(images, train.astype(kept))


def test_a_folders_files_may_name_their_arrays_otherwise_too(tmp_path):
    content = arrays()
    np.savez(tmp_path / "train_0.npz", images=content["train_x"], labels=content["train_y"])
    np.savez(tmp_path / "test_0.npz", x=content["test_x"], y=content["test_y"][:, None])
    dataset = load_dataset(f"npz:{tmp_path}")
    assert np.array_equal(dataset.train.images, content["train_x"])
    assert np.array_equal(dataset.test.labels, content["test_y"])


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", **arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = load_dataset("npz:~/own.npz")
    assert np.array_equal(dataset.train.images, arrays()["train_x"])
    assert "npz:~/gone.npz: no such file" in message("npz:~/gone.npz")
    assert "no such file" in message("npz:~nobody_of_this_name/own.npz")


def test_a_folder_of_other_files_says_how_one_of_them_is_read(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays())
    assert f"to read a file of it give npz:{tmp_path / 'own.npz'}" in message(f"npz:{tmp_path}")


def test_wrong_folders_name_the_file(tmp_path):
    assert "no train_*.npz" in message(f"npz:{tmp_path}")
    content = arrays()
    np.savez(tmp_path / "train_0.npz", x=content["train_x"], y=content["train_y"])
    assert "no test_*.npz" in message(f"npz:{tmp_path}")
    np.savez(tmp_path / "train_1.npz", x=np.zeros((2, 9, 9, 3), np.uint8), y=[0, 1])
    assert "train_1.npz: images are uint8 [9, 9, 3], but in train_0.npz uint8 [5, 6, 3]" in message(
        f"npz:{tmp_path}"
    )
    np.savez(tmp_path / "train_1.npz", x=content["train_x"])
    assert "train_1.npz: no array named y" in message(f"npz:{tmp_path}")


def test_paths_that_are_no_data_file_are_named(tmp_path):
    assert "gone.npz: no such file or folder" in message(f"npz:{tmp_path / 'gone.npz'}")
    assert "no such file or folder" in message("npz:")
    (tmp_path / "text.npz").write_text("hello")
    assert "text.npz: not a readable .npz file" in message(f"npz:{tmp_path / 'text.npz'}")
    np.save(tmp_path / "array.npy", np.zeros(3))
    assert "array.npy: not a readable .npz file (it holds one array, without a name)" in message(
        f"npz:{tmp_path / 'array.npy'}"
    )


@settings(deadline=None, max_examples=80, derandomize=True)
@given(data=st.data())
def test_a_truncated_or_damaged_file_is_a_user_error_or_the_same_data(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    np.savez_compressed(folder / "own.npz", **arrays())
    content = bytearray((folder / "own.npz").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    (folder / "own.npz").write_bytes(content)
    result = outcome(f"npz:{folder / 'own.npz'}")
    if isinstance(result, str):
        assert "own.npz" in result
        assert "\n" not in result
    else:  # a byte flipped in what the reader does not use, such as a time stamp
        assert np.array_equal(result.train.images, GOOD)


@pytest.mark.parametrize("spec", ["mnist", "", "digits:", "tfds:", "NPZ:x"])
def test_an_unknown_source_lists_the_allowed(spec):
    assert f"--dataset={spec} is unknown; allowed: digits, cifar10, tfds:NAME, npz:PATH" in message(
        spec
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalised_images_have_mean_zero_and_deviation_one(dtype):
    images = GOOD if dtype == np.uint8 else (GOOD / 255).astype(np.float32)
    result = jax.jit(normalise, static_argnums=(1, 2))(images, *channel_stats(images))
    assert result.dtype == np.float32
    assert result.shape == images.shape
    assert np.allclose(result.mean((0, 1, 2)), 0, atol=1e-5)
    assert np.allclose(result.std((0, 1, 2)), 1, atol=1e-5)


def test_a_constant_channel_normalises_to_zero():
    images = np.full((3, 2, 2, 2), 77, np.uint8)
    assert np.allclose(normalise(images, *channel_stats(images)), 0, atol=1e-6)


@pytest.mark.skipif(
    not (CIFAR10 and Path(CIFAR10).is_dir()),
    reason="SNAKE_JAX_CIFAR10 names no folder of CIFAR-10 .npz files",
)
def test_real_cifar10_has_its_published_sizes_and_statistics():
    dataset = load_dataset(f"npz:{CIFAR10}")
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert dataset.train.images[0, 0, 0].tolist() == [59, 62, 63]
    assert dataset.test.images[0, 0, 0].tolist() == [
        158,
        112,
        49,
    ]
    assert np.allclose(dataset.mean, (0.49139968, 0.48215841, 0.44653091), atol=1e-5)
    assert np.allclose(dataset.std, (0.24703223, 0.24348513, 0.26158784), atol=1e-4)
