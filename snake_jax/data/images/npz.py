"""The user's own images: `npz:PATH`, a file with train_x, train_y, test_x, test_y or a folder of
train_*.npz and test_*.npz.

Nothing in the files is trusted: pickles are refused, and whatever a broken file makes the reader
raise becomes one UserError.
"""

import re
from pathlib import Path

import numpy as np

from snake_jax.data.images.dataset import Dataset, Split, checked_split, make_dataset
from snake_jax.errors import UserError


def load_npz(path: str) -> Dataset:
    """At `path`: images `[N, H, W, C]` uint8 or float32 in [0, 1], labels `[N]` integers; other
    keys are ignored.
    """
    root = Path(path).expanduser()
    if not path or not root.exists():
        raise UserError(
            f"--dataset=npz:{path}: no such file or folder; give a .npz file or a folder of "
            f"train_*.npz and test_*.npz"
        )
    train, test = (
        _read_folder(root, part) if root.is_dir() else _read_part(root, part)
        for part in ("train", "test")
    )
    return make_dataset(f"npz:{path}", train, test)


def _read_part(file: Path, part: str) -> Split:
    """One split of a single file, from its keys `{part}_x` and `{part}_y`."""
    return checked_split(
        f"{file} ({part}_x, {part}_y)", *_read_arrays(file, f"{part}_x", f"{part}_y")
    )


def _read_folder(folder: Path, part: str) -> Split:
    """All `{part}_*.npz` of a folder, checked one by one and concatenated in the order of their
    numbers.
    """
    files = sorted(folder.glob(f"{part}_*.npz"), key=_natural_order)
    if not files:
        raise UserError(
            f"{folder}: no {part}_*.npz in this folder; it needs train_*.npz and test_*.npz with "
            f"keys x and y"
        )
    splits = [checked_split(str(file), *_read_arrays(file, "x", "y")) for file in files]
    kinds = [(split.images.dtype, split.images.shape[1:]) for split in splits]
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{file}: images are {kind[0]} {list(kind[1])}, but in {files[0].name} "
                f"{kinds[0][0]} "
                f"{list(kinds[0][1])}: all files must agree"
            )
    return Split(*(np.concatenate(arrays) for arrays in zip(*splits, strict=True)))


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Sorts train_2 before train_10."""
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d*)", file.stem)]


def _read_arrays(file: Path, *keys: str) -> list[np.ndarray]:
    """The named arrays of a .npz file."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            present = list(archive)
            arrays = [archive[key] for key in keys if key in present]
    except (
        Exception
    ) as error:  # numpy, zip and zlib raise a dozen kinds on a broken file; the user needs one line
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file}: not a readable .npz file ({reason}); write it again with numpy.savez"
        ) from error
    missing = [key for key in keys if key not in present]
    if missing:
        raise UserError(
            f"{file}: no array named {', '.join(missing)} in it (it has: "
            f"{', '.join(present) or 'nothing'})"
        )
    return arrays
