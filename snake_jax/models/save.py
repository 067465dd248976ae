"""Saving a model as Hugging Face does: `config.json` and safetensors that `from_pretrained` loads.

The format (a JSON header behind its length, then the arrays) is written here tensor by tensor,
because the library writes a file from a dict of all its tensors.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import is_quantized
from snake_jax.models.families import family_of
from snake_jax.models.hub import CONFIG, INDEX, WEIGHTS
from snake_jax.models.language import LanguageModel
from snake_jax.models.linear import PyTree
from snake_jax.models.names import TensorPlace, get_tensor, places
from snake_jax.params import Params

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_PARTIAL = ".partial"
_SHARDS = "model-?????-of-?????.safetensors"

Shard = dict[str, TensorPlace]


def save_pretrained(
    folder: str | Path,
    model: LanguageModel,
    params: Params,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes the model to a folder that Hugging Face's `from_pretrained` loads.

    Every file is written beside its final name and moved there when all are complete: a kill leaves
    no half file under a final name. Shards of an earlier save are removed.

    Args:
      folder: made if it is not there.
      model: what to write to config.json.
      params: float32, bfloat16 or float16 arrays.
      max_shard_bytes: of one file of weights; a tensor larger than that has one to itself.

    Raises:
      UserError: a parameter is missing, misshapen or no float array (quantized).
    """
    # What does not fit is refused before anything is written.
    folder = Path(folder)
    wanted = places(model)
    for name, place in wanted.items():
        _check(name, place, get_tensor(params, place))

    # The weights, then what describes them; an index only where there are several files.
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(wanted, params, max_shard_bytes)
    for file, shard in shards.items():
        _write(folder / f"{file}{_PARTIAL}", shard, params)
    descriptions = {CONFIG: _config(model, params)}
    if len(shards) > 1:
        descriptions[INDEX] = _index(shards, params)
    for file, value in descriptions.items():
        _write_json(folder / f"{file}{_PARTIAL}", value)
    _publish(folder, [*shards, *descriptions])


def _check(name: str, place: TensorPlace, leaf: PyTree) -> None:
    """Raises UserError where a parameter cannot be saved as this tensor."""
    where = "/".join(place.path)
    if is_quantized(leaf):
        raise UserError(f"{where} is quantized: save full-precision weights")
    if str(leaf.dtype) not in _CODES:
        raise UserError(f"{where} is {leaf.dtype}: save as one of {', '.join(_CODES)}")
    shape = leaf.shape[::-1] if place.transposed else leaf.shape
    if shape != place.shape:
        raise UserError(
            f"{where} is {list(shape)} as {name}, not {list(place.shape)}: it is not of this model"
        )


def _num_bytes(leaf: PyTree) -> int:
    return int(np.prod(leaf.shape)) * leaf.dtype.itemsize


def _shards(
    wanted: dict[str, TensorPlace], params: Params, max_shard_bytes: int
) -> dict[str, Shard]:
    """Tensors in order, by the file they go to."""
    shards: list[Shard] = [{}]
    filled_bytes = 0
    for name, place in wanted.items():
        size = _num_bytes(get_tensor(params, place))
        if shards[-1] and filled_bytes + size > max_shard_bytes:
            shards.append({})
            filled_bytes = 0
        shards[-1][name] = place
        filled_bytes += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    named = {}
    for number, shard in enumerate(shards, start=1):
        named[f"model-{number:05}-of-{len(shards):05}.safetensors"] = shard
    return named


def _write(path: Path, shard: Shard, params: Params) -> None:
    """A file of weights: the header's length in 8 bytes, the header, the arrays."""
    # Where each array will lie, counted from the header's end.
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, place in shard.items():
        leaf = get_tensor(params, place)
        end = offset + _num_bytes(leaf)
        code = _CODES[str(leaf.dtype)]
        header[name] = {"dtype": code, "shape": list(place.shape), "data_offsets": [offset, end]}
        offset = end

    # The arrays begin aligned to eight bytes.
    text = json.dumps(header).encode()
    missing = -len(text) % 8
    text = text.ljust(len(text) + missing)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for place in shard.values():
            value = np.asarray(get_tensor(params, place))
            if place.transposed:
                value = value.T
            file.write(np.ascontiguousarray(value).view(np.uint8).data)
        _flush(file)


def _config(model: LanguageModel, params: Params) -> dict:
    """What config.json says, with the dtype of the first tensor."""
    family = family_of(model.architecture)
    first = next(iter(places(model).values()))
    stored = str(get_tensor(params, first).dtype)
    head = {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "torch_dtype": stored,
    }
    return head | family.write(model.architecture)


def _index(shards: dict[str, Shard], params: Params) -> dict:
    """Which file each tensor is in, and the bytes of all."""
    total = 0
    files = {}
    for file, shard in shards.items():
        for name, place in shard.items():
            total += _num_bytes(get_tensor(params, place))
            files[name] = file
    return {"metadata": {"total_size": total}, "weight_map": files}


def _write_json(path: Path, value: dict) -> None:
    text = json.dumps(value, indent=2) + "\n"
    with path.open("wb") as file:
        file.write(text.encode())
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(folder: Path, files: Iterable[str]) -> None:
    """Moves all to their final names and removes what an earlier save left."""
    files = list(files)
    for file in files:
        os.replace(folder / f"{file}{_PARTIAL}", folder / file)
    # Whoever loads the folder takes a single file before an index: an old one must not stay.
    for pattern in (WEIGHTS, INDEX, _SHARDS, f"{_SHARDS}{_PARTIAL}"):
        for old in folder.glob(pattern):
            if old.name not in files:
                old.unlink()
