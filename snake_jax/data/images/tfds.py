"""Images through tensorflow-datasets' `as_data_source`: prepared array_record files, read without
TensorFlow.

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

from snake_jax.data.images.dataset import Dataset, Split, checked_split, make_dataset
from snake_jax.errors import UserError

_CIFAR_ROW = (
    1 + 3 * 32 * 32
)  # bytes of an example in CIFAR-10's binary version: label, then the planes red, green, blue
_CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CATALOG = (
    "names of tensorflow.org/datasets/catalog or, as array_record, in ~/tensorflow_datasets or "
    "TFDS_DATA_DIR"
)
_PROBE_S = 15


def load_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """The splits `train` and `test` of an image classification data set with the features `image`
    and `label`.

    `name` is tensorflow-datasets' own (NAME, NAME/CONFIG or NAME:VERSION); `data_dir` its folder
    (by default TFDS_DATA_DIR or ~/tensorflow_datasets). Prepares the data set there first where
    that has not been done (this needs network).
    """
    builder = _builder(name, data_dir)
    if not builder.is_prepared():
        _prepare(name, builder)
    missing = {"image", "label"} - set(builder.info.features) or {"train", "test"} - set(
        builder.info.splits
    )
    if missing:
        raise UserError(
            f"--dataset=tfds:{name} has no {' and no '.join(sorted(missing))}; use an image "
            f"classification data set"
        )
    return make_dataset(name, _read(builder, "train"), _read(builder, "test"))


def _read(builder: Any, part: str) -> Split:
    where = f"{builder.info.full_name} ({part})"
    try:
        source = builder.as_data_source(split=part)
        # all at once: one by one the files are read at half the speed
        examples = [
            (example["image"], example["label"])
            for example in source.__getitems__(range(len(source)))
        ]
    except Exception as error:  # a format without random access, broken or lost files
        raise UserError(
            f"{where}: cannot be read from {builder.data_dir} ({_reason(error)}); remove that "
            f"folder and prepare it "
            f"again as array_record"
        ) from error
    shapes = sorted({image.shape for image, _ in examples})
    if len(shapes) > 1:
        raise UserError(
            f"{where}: images differ in size (from {shapes[0]} to {shapes[-1]}); resize them and "
            f"use npz:PATH"
        )
    images, labels = zip(*examples, strict=True)
    return checked_split(where, np.stack(images), np.array(labels))


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        if name == "cifar10":
            return _cifar10_class(tfds)(data_dir=data_dir, file_format="array_record")
        return tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    except (
        Exception
    ) as error:  # unknown name, config or version; a folder prepared in another format
        raise UserError(
            f"--dataset=tfds:{name} cannot be opened ({_reason(error)}); allowed: {_CATALOG}"
        ) from error


def _prepare(name: str, builder: Any) -> None:
    """Downloads and writes array_record files; a missing connection is reported in seconds, not
    minutes of retries.
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
    """tensorflow-datasets' Cifar10 (features, version, verified download) with its archive read
    without TensorFlow.
    """
    original = tfds.builder_cls("cifar10")
    changes = {
        "__module__": __name__,
        "VERSION": original.VERSION,
        "code_path": tfds.core.tfds_path()
        / "image_classification"
        / "cifar.py",  # leads to its checksums
        "_split_generators": _cifar10_splits,
    }
    return types.new_class(
        "Cifar10", (original,), {"skip_registration": True}, lambda body: body.update(changes)
    )


def _cifar10_splits(
    builder: Any, downloads: Any
) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """What a builder's `_split_generators` returns: the examples of train and of test, from the
    archive as it is.
    """
    info = builder._cifar_info
    with tarfile.open(downloads.download(info.url)) as archive:
        files = {
            Path(member.name).name: archive.extractfile(member)
            for member in archive
            if member.isfile()
        }
        content = {name: file.read() for name, file in files.items() if file}
    builder.info.features["label"].names = content[info.label_files[0]].decode().split()
    parts = {"train": info.train_files, "test": info.test_files}
    return {
        part: _cifar10_examples(part, b"".join(content[name] for name in names))
        for part, names in parts.items()
    }


def _cifar10_examples(part: str, batches: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Key and features of every example; images as PIL's, because encoding an array takes
    TensorFlow.
    """
    from PIL import Image

    for index, row in enumerate(np.frombuffer(batches, np.uint8).reshape(-1, _CIFAR_ROW)):
        image = Image.fromarray(np.ascontiguousarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0)))
        yield index, {"id": f"{part}_{index:05d}", "label": int(row[0]), "image": image}


def _how_to_prepare(name: str, reason: str) -> str:
    if name == "cifar10":
        what, how = name, "with network, run this once"
    else:
        what, how = (
            f"tfds:{name}",
            f"with network and TensorFlow, run `tfds build {name} --file_format=array_record` once",
        )
    return (
        f"--dataset={what} could not be prepared ({reason}); {how}, on any machine, and copy its "
        f"folder to "
        f"~/tensorflow_datasets (or set TFDS_DATA_DIR), or use --dataset=npz:PATH with your own "
        f"copy"
    )


def _reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
