"""tensorflow-datasets without TensorFlow: real array_record files, written and read, with
CIFAR-10's own builder.
"""

import io
import sys
import tarfile

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from snake_jax.data.images.hold_out import HoldOut
from snake_jax.data.images.sources import load_dataset
from snake_jax.data.images.tfds import _cifar10_class, load_tfds
from snake_jax.errors import UserError

IMAGES = (load_digits().images * 15).astype(np.uint8)[..., None]
LABELS = load_digits().target


@pytest.fixture(autouse=True)
def no_tensorflow():
    """Nothing here imports TensorFlow, also where it is installed."""
    before = "tensorflow" in sys.modules
    yield
    assert ("tensorflow" in sys.modules) == before


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, format="png")
    return buffer.getvalue()


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Real digits as array_record; given as PNG bytes, because encoding an array takes
    TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    parts = (("train", range(60)), ("test", range(60, 90)))
    image, shape = "image", (8, 8, 1)

    def _info(self):
        features = {
            self.image: tfds.features.Image(shape=self.shape),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {part: self._generate_examples(rows) for part, rows in self.parts}

    def _generate_examples(self, rows):
        for row in rows:
            yield row, {self.image: png(self.pixels(row)), "label": int(LABELS[row])}

    def pixels(self, row):
        return IMAGES[row]


class TinyDigits(_Builder, skip_registration=True):
    pass


class NoTest(_Builder, skip_registration=True):
    parts = (("train", range(20)),)


class NoImage(_Builder, skip_registration=True):
    image = "picture"


class Ragged(_Builder, skip_registration=True):
    shape = (None, None, 1)

    def pixels(self, row):
        return IMAGES[row][: 8 - row % 2]


def prepare(builder, folder):
    made = builder(data_dir=folder, file_format="array_record")
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return made


def test_array_record_files_are_read_whole(tmp_path, monkeypatch):
    prepare(TinyDigits, tmp_path)
    assert list(tmp_path.glob("tiny_digits/1.0.0/*.array_record*"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = load_tfds("tiny_digits", str(tmp_path))
    for split, rows in ((dataset.train, slice(0, 60)), (dataset.test, slice(60, 90))):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        read = sorted((image.tobytes(), label) for image, label in zip(*split, strict=True))
        assert read == sorted(
            (image.tobytes(), label)
            for image, label in zip(IMAGES[rows], LABELS[rows], strict=True)
        )
    assert dataset.num_classes == 10
    assert dataset.name == "tiny_digits"


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (NoTest, "tfds:no_test has no test;"),
        (NoImage, "tfds:no_image has no image;"),
        (Ragged, "images differ in size (from (7, 8, 1) to (8, 8, 1))"),
    ],
)
def test_a_data_set_of_another_kind_is_a_user_error(builder, words, tmp_path):
    with pytest.raises(UserError) as caught:
        load_tfds(prepare(builder, tmp_path).name, str(tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_a_test_split_has_a_share_held_out(tmp_path):
    prepare(NoTest, tmp_path)
    dataset = load_tfds("no_test", str(tmp_path), HoldOut(0.25, seed=1))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (15, 5)
    read = [image.tobytes() for part in (dataset.train, dataset.test) for image in part.images]
    assert sorted(read) == sorted(image.tobytes() for image in IMAGES[:20])
    assert "5 of 20 training examples held out" in dataset.note
    with pytest.raises(UserError, match=r"has no test; --test_share=0.1 holds"):
        load_tfds("no_test", str(tmp_path))


def test_a_lost_or_truncated_file_is_a_user_error(tmp_path):
    made = prepare(TinyDigits, tmp_path)
    (file,) = made.data_path.glob("*test*array_record*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="prepare it again"):
        load_tfds("tiny_digits", str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="prepare it again"):
        load_tfds("tiny_digits", str(tmp_path))


def test_an_unknown_name_says_where_names_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_dataset("tfds:no_such_data_set")
    assert "tfds:no_such_data_set cannot be opened" in str(caught.value)
    assert "\n" not in str(caught.value)


def cifar_archive(folder, rng):
    """CIFAR-10's binary archive in small, and the images and labels in it."""
    labels = rng.integers(0, 10, (6, 7), dtype=np.uint8)
    labels[0, :2] = 0, 9
    planes = rng.integers(0, 256, (6, 7, 3, 32, 32), np.uint8)
    files = {f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin": i for i in range(6)}
    content = {
        name: np.concatenate([labels[i][:, None], planes[i].reshape(7, -1)], 1).tobytes()
        for name, i in files.items()
    }
    content["batches.meta.txt"] = b"\n".join(b"class%d" % i for i in range(10)) + b"\n\n"
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name, value in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return folder / "cifar.tar.gz", planes.transpose(0, 1, 3, 4, 2), labels


def test_cifar10_is_prepared_and_read_without_tensorflow(tmp_path, monkeypatch):
    archive, images, labels = cifar_archive(tmp_path, np.random.default_rng(0))
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download",
        lambda _, url: str(archive) if "cifar-10-binary" in url else 1 / 0,
    )
    dataset = load_tfds("cifar10", str(tmp_path))
    for split, batches in ((dataset.train, slice(0, 5)), (dataset.test, slice(5, 6))):
        expected = zip(images[batches].reshape(-1, 32, 32, 3), labels[batches].ravel(), strict=True)
        expected = sorted((image.tobytes(), label) for image, label in expected)
        read = sorted((image.tobytes(), label) for image, label in zip(*split, strict=True))
        assert read == expected
    # The second time nothing is asked of the network.
    monkeypatch.setattr(requests, "head", lambda *_, **__: 1 / 0)
    assert np.array_equal(load_tfds("cifar10", str(tmp_path)).train.images, dataset.train.images)
    info = tfds.builder("cifar10", data_dir=tmp_path, try_gcs=False).info
    assert info.features["label"].names == [f"class{i}" for i in range(10)]


def test_cifar10s_download_is_verified_against_the_known_checksum(tmp_path):
    known = _cifar10_class(tfds)(data_dir=tmp_path).url_infos
    (url,) = [url for url in known if url.endswith("cifar-10-binary.tar.gz")]
    assert len(known[url].checksum) == 64


def test_without_network_cifar10_says_how_to_prepare_it(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no route to host\nand more")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_tfds("cifar10", str(tmp_path))
    text = str(caught.value)
    assert "\n" not in text
    for words in (
        "no route to host",
        "--dataset=cifar10",
        "with network, run this once",
        "npz:PATH",
    ):
        assert words in text


class NeedsTensorFlow(_Builder, skip_registration=True):
    def _generate_examples(self, rows):
        raise ModuleNotFoundError("No module named 'tensorflow'")
        yield


def test_a_data_set_that_needs_tensorflow_to_be_prepared_says_so(tmp_path, monkeypatch):
    builder = NeedsTensorFlow(data_dir=tmp_path, file_format="array_record")
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(UserError) as caught:
        load_dataset("tfds:mnist")
    for words in (
        "--dataset=tfds:mnist",
        "No module named 'tensorflow'",
        "`tfds build mnist --file_format=array_record`",
    ):
        assert words in str(caught.value)
