"""Images through tensorflow-datasets: prepared array_record files, read without TensorFlow.

Reading needs no TensorFlow, but preparing does in tensorflow-datasets 4.9.10 (it extracts archives
and encodes images through it; issue 11058 of tensorflow/datasets). `cifar10` is therefore prepared
by its own builder with the methods that touch TensorFlow replaced. Another data set may need
TensorFlow once, on any machine; the error says how.
"""

import tarfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from snake_jax.data.images.dataset import Dataset, Split, checked_split
from snake_jax.data.images.hold_out import HoldOut, with_test_part
from snake_jax.errors import UserError

# Bytes of an example in CIFAR-10's binary version: label, then the planes red, green, blue.
_CIFAR_ROW = 1 + 3 * 32 * 32
_CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CATALOG = (
    "names of tensorflow.org/datasets/catalog or, as array_record, in ~/tensorflow_datasets or "
    "TFDS_DATA_DIR"
)
_PROBE_S = 15
_NO_HOLD_OUT = HoldOut()


def load_tfds(name: str, data_dir: str | None = None, hold_out: HoldOut = _NO_HOLD_OUT) -> Dataset:
    """The splits `train` and `test` of a data set with the features `image` and `label`.

    Prepares the data set first where that has not been done (this needs network).

    Args:
      name: tensorflow-datasets' own: NAME, NAME/CONFIG or NAME:VERSION.
      data_dir: the folder of prepared data sets; None: TFDS_DATA_DIR or ~/tensorflow_datasets.
      hold_out: what to hold out where there is no split `test`.

    Raises:
      UserError: it cannot be prepared or read, or is no image classification data set.
    """
    builder = _builder(name, data_dir)
    if not builder.is_prepared():
        _prepare(name, builder)

    # What is no image classification data set is known by its features and splits.
    flag = f"--dataset=tfds:{name}"
    missing = {"image", "label"} - set(builder.info.features)
    if not missing:
        missing = {"train"} - set(builder.info.splits)
    if missing:
        raise UserError(
            f"{flag} has no {' and no '.join(sorted(missing))}; use an image classification data "
            f"set"
        )

    test = None
    if "test" in builder.info.splits:
        test = _read(builder, "test")
    train = _read(builder, "train")
    return with_test_part(name, train, test, f"{flag} has no test", hold_out)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        if name == "cifar10":
            return _cifar10_class(tfds)(data_dir=data_dir, file_format="array_record")
        return tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    # An unknown name, config or version, or a folder prepared in another format.
    except Exception as error:
        raise UserError(
            f"--dataset=tfds:{name} cannot be opened ({_reason(error)}); allowed: {_CATALOG}"
        ) from error


def _read(builder: Any, part: str) -> Split:
    """One split of a prepared data set."""
    where = f"{builder.info.full_name} ({part})"
    try:
        source = builder.as_data_source(split=part)
        # All at once: one by one the files are read at half the speed.
        examples = source.__getitems__(range(len(source)))
        images = [example["image"] for example in examples]
        labels = [example["label"] for example in examples]
    # A format without random access, broken or lost files.
    except Exception as error:
        raise UserError(
            f"{where}: cannot be read from {builder.data_dir} ({_reason(error)}); remove that "
            f"folder and prepare it again as array_record"
        ) from error
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise UserError(
            f"{where}: images differ in size (from {shapes[0]} to {shapes[-1]}); resize them and "
            f"use npz:PATH"
        )
    return checked_split(where, np.stack(images), np.array(labels))


def _prepare(name: str, builder: Any) -> None:
    """Downloads and writes array_record files.

    A missing connection is reported in seconds, not after minutes of retries.
    """
    import requests
    import tensorflow_datasets as tfds

    try:
        if name == "cifar10":
            requests.head(_CIFAR_HOME, timeout=_PROBE_S)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    # network, disk, checksums, TensorFlow missing: all end here, and the way out is the same
    except Exception as error:
        raise UserError(_how_to_prepare(name, _reason(error))) from error


def _cifar10_class(tfds: Any) -> Any:
    """tensorflow-datasets' Cifar10 with its archive read without TensorFlow.

    Features, version and the verified download are its own.
    """
    original = tfds.builder_cls("cifar10")
    code_path = tfds.core.tfds_path() / "image_classification" / "cifar.py"
    changes = {
        "__module__": __name__,
        "VERSION": original.VERSION,
        "code_path": code_path,  # leads to its checksums
        "_split_generators": _cifar10_splits,
    }
    return types.new_class(
        "Cifar10", (original,), {"skip_registration": True}, lambda body: body.update(changes)
    )


def _cifar10_splits(
    builder: Any, downloads: Any
) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """What a builder's `_split_generators` returns: the examples of each part, from the archive."""
    info = builder._cifar_info
    content = {}
    with tarfile.open(downloads.download(info.url)) as archive:
        for member in archive:
            file = archive.extractfile(member)  # None of what is no file
            if file:
                content[Path(member.name).name] = file.read()
    builder.info.features["label"].names = content[info.label_files[0]].decode().split()
    train = b"".join(content[name] for name in info.train_files)
    test = b"".join(content[name] for name in info.test_files)
    return {"train": _cifar10_examples("train", train), "test": _cifar10_examples("test", test)}


def _cifar10_examples(part: str, batches: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Key and features of every example.

    Images are PIL's, because encoding an array takes TensorFlow.
    """
    from PIL import Image

    rows = np.frombuffer(batches, np.uint8).reshape(-1, _CIFAR_ROW)
    for index, row in enumerate(rows):
        pixels = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)  # planes to [H, W, C]
        image = Image.fromarray(np.ascontiguousarray(pixels))
        yield index, {"id": f"{part}_{index:05d}", "label": int(row[0]), "image": image}


def _how_to_prepare(name: str, reason: str) -> str:
    """The line of a data set that is not there and could not be made."""
    what = f"tfds:{name}"
    how = f"with network and TensorFlow, run `tfds build {name} --file_format=array_record` once"
    if name == "cifar10":
        what = name
        how = "with network, run this once"
    return (
        f"--dataset={what} could not be prepared ({reason}); {how}, on any machine, and copy its "
        f"folder to ~/tensorflow_datasets (or set TFDS_DATA_DIR), or use --dataset=npz:PATH with "
        f"your own copy"
    )


def _reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
