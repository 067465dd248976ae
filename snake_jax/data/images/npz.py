"""The user's own images: `npz:PATH`, one .npz file or a folder of train_*.npz and test_*.npz.

Nothing in the files is trusted: pickles are refused, and whatever a broken file makes the reader
raise becomes one UserError.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from snake_jax.data.images.dataset import Dataset, Split, checked_split, kind_of
from snake_jax.data.images.hold_out import HoldOut, with_test_part
from snake_jax.errors import UserError

NAMES = (("x", "y"), ("images", "labels"), ("data", "targets"))
"""What images and labels are called, alone or with train or test before or after them."""

_NO_HOLD_OUT = HoldOut()


def load_npz(path: str, hold_out: HoldOut = _NO_HOLD_OUT) -> Dataset:
    """The data set at `path`; other arrays than those of `NAMES` are ignored.

    One file has train_x, train_y, test_x and test_y, also as x_train or train_images, in any case
    of letters; x and y, or images and labels, alone are a training part. A folder has train_*.npz
    and test_*.npz with x and y, or images and labels. `checked_split` says what the arrays may be.

    Args:
      path: of the file or folder; `~` is the home folder.
      hold_out: what to hold out where there is no test part.

    Raises:
      UserError: nothing is there, or it is not of this form.
    """
    # An empty path would be the current folder.
    root = Path(os.path.expanduser(path))
    if not path or not root.exists():
        raise UserError(
            f"--dataset=npz:{path}: no such file or folder; give a .npz file or a folder of "
            f"train_*.npz and test_*.npz"
        )
    if root.is_dir():
        train, test = _read_folder(root)
        missing = f"{root}: no test_*.npz in this folder"
    else:
        train, test, missing = _read_file(root)
    return with_test_part(f"npz:{path}", train, test, missing, hold_out)


def _read_file(file: Path) -> tuple[Split, Split | None, str]:
    """Training and test split of a single file, and what is missing where it has no test split."""
    present = _present(file)
    pair = _pair(file, present, "train") or _pair(file, present, "")
    if pair is None:
        raise UserError(
            f"{file}: no array named train_x in it (it has: {_listed(present)}); name them "
            f"train_x, train_y, test_x, test_y (--help lists the names that are understood)"
        )
    train = _read_split(file, pair)
    pair = _pair(file, present, "test")
    if pair is None:
        return train, None, f"{file}: no array named test_x in it (it has: {_listed(present)})"
    return train, _read_split(file, pair), ""


def _read_folder(folder: Path) -> tuple[Split, Split | None]:
    """Training and test split of a folder."""
    train_files = sorted(folder.glob("train_*.npz"), key=_natural_order)
    train = _read_files(train_files)
    if train is None:
        others = sorted(folder.glob("*.npz"))
        way_out = ""
        if others:
            way_out = f"; to read a file of it give npz:{others[0]}"
        raise UserError(
            f"{folder}: no train_*.npz in this folder; it needs train_*.npz and test_*.npz with "
            f"keys x and y{way_out}"
        )
    test_files = sorted(folder.glob("test_*.npz"), key=_natural_order)
    return train, _read_files(test_files)


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Sorts train_2 before train_10."""
    parts = re.findall(r"(\D*)(\d*)", file.stem)
    return [(int(number or 0), text) for text, number in parts]


def _read_files(files: list[Path]) -> Split | None:
    """One split, from files that are checked one by one and joined in this order."""
    if not files:
        return None
    splits = []
    for file in files:
        present = _present(file)
        pair = _pair(file, present, "")
        if pair is None:
            raise UserError(
                f"{file}: no array named x in it (it has: {_listed(present)}); name them x and y"
            )
        splits.append(_read_split(file, pair))

    # One array holds them all, so they must be alike; checked here, to name the odd file.
    wanted = kind_of(splits[0])
    for file, split in zip(files, splits, strict=True):
        kind = kind_of(split)
        if kind != wanted:
            raise UserError(
                f"{file}: images are {kind}, but in {files[0].name} {wanted}: all files must agree"
            )
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    return Split(images, labels)


def _pair(file: Path, present: list[str], part: str) -> tuple[str, str] | None:
    """The names that images and labels of a part have in a file; None where neither is there.

    Args:
      file: for messages.
      present: the names of its arrays.
      part: train or test; empty: the names alone.

    Raises:
      UserError: there are images without labels or the reverse, or two pairs.
    """
    # Of the names that a pair may have, those that are there whole, and those half of which is.
    by_lower_case = {name.lower(): name for name in present}
    whole = []
    missing = []
    for images, labels in _spellings(part):
        has_images = images in by_lower_case
        has_labels = labels in by_lower_case
        if has_images and has_labels:
            whole.append((images, labels))
        elif has_images:
            missing.append(labels)
        elif has_labels:
            missing.append(images)
    if len(whole) > 1:
        raise UserError(
            f"{file}: {', '.join(whole[0])} and {', '.join(whole[1])} are both images and labels "
            f"of one part; leave one pair out"
        )
    if not whole and missing:
        raise UserError(
            f"{file}: no array named {missing[0]} in it (it has: {_listed(present)}); every part "
            f"needs images and labels"
        )
    if not whole:
        return None
    images, labels = whole[0]
    return by_lower_case[images], by_lower_case[labels]


def _spellings(part: str) -> list[tuple[str, str]]:
    """All pairs of names that a part may have."""
    if not part:
        return list(NAMES)
    spellings = []
    for images, labels in NAMES:
        spellings.append((f"{part}_{images}", f"{part}_{labels}"))
        spellings.append((f"{images}_{part}", f"{labels}_{part}"))
    return spellings


def _listed(present: list[str]) -> str:
    return ", ".join(present) or "nothing"


def _read_split(file: Path, pair: tuple[str, str]) -> Split:
    """The checked split that these two arrays of a file are."""
    with _opened(file) as archive:
        images = archive[pair[0]]
        labels = archive[pair[1]]
    where = f"{file} ({', '.join(pair)})"
    return checked_split(where, images, labels)


def _present(file: Path) -> list[str]:
    """The names of a file's arrays."""
    with _opened(file) as archive:
        return list(archive)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """A .npz file; what goes wrong inside, too, becomes a UserError that names it."""
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it holds one array, without a name")
            with archive:
                yield archive
    # NumPy, zip and zlib raise a dozen kinds on a broken file; the user needs one line.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file}: not a readable .npz file ({reason}); write it again with numpy.savez"
        ) from error
