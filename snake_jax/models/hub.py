"""Pretrained models as Hugging Face keeps them in a folder: `config.json` and safetensors, one file
or several.

Tensors are read and written one by one: host memory holds the model and one tensor more, never the
model twice.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # numpy learns bfloat16 from it, and safetensors asks numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.models.language import ARCHITECTURES, Architecture, LanguageModel, build
from snake_jax.models.names import TensorPlace, canonical, places, put, token_table
from snake_jax.params import Params

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
KEEP = "keep"

_FLOATS = {"F32", "F16", "BF16", "F64"}
_LM_HEAD = "lm_head.weight"
# Buffers that older versions of transformers saved with the weights, and that are computed.
_COMPUTED = ("rotary_emb.inv_freq", "decoder.version")
_SHOWN = 4
_ROWS = 4096


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
      file: where it lies.
      name: as it is called there.
      shape: as it lies there.
      dtype: as safetensors names it.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def load_pretrained(
    folder: str | Path, *, dtype: str = "float32", dropout: float = 0.0
) -> tuple[LanguageModel, Params]:
    """A model and its weights from a folder in the form of Hugging Face.

    Args:
      folder: holds config.json and model.safetensors or its index and shards.
      dtype: of the parameters: float32, bfloat16, float16 or keep, as stored.
      dropout: rate on the residual branches in training; what config.json says of dropout is not
        used.

    Returns:
      The model, and its parameters as numpy arrays.

    Raises:
      UserError: no such files, an unknown architecture or setting, or tensors that do not fit. All
        but damage inside the tensor data is found before any of that is read.
    """
    pick("dtype", dtype, (*DTYPES, KEEP))
    folder = Path(folder)
    model = build(read_architecture(folder), dropout=dropout, name=folder.resolve().name)
    wanted, stored = places(model), _stored(folder)
    _check(folder, model, wanted, stored)
    params: Params = {name: {} for name in model.layer_names}
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        here = {
            name: tensor
            for name, tensor in stored.items()
            if tensor.file == file and name in wanted
        }
        _read(file, here, wanted, dtype, params)
    return model, params


def check_pretrained(folder: str | Path, model: LanguageModel) -> None:
    """Checks names, shapes and dtypes of a folder's tensors, from the files' headers alone.

    Raises:
      UserError: there are no weights, or they do not fit the model.
    """
    _check(Path(folder), model, places(model), _stored(Path(folder)))


def read_architecture(folder: Path) -> Architecture:
    """What `config.json` in this folder describes.

    Raises:
      UserError: there is none, it is broken, or the architecture or one of its settings is not
        known.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: no {CONFIG}; give a folder in the form of Hugging Face's save_pretrained"
        )
    config = _json(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{folder / CONFIG}: model_type={kind} is unknown; there are {', '.join(ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        raise UserError(
            f"{folder / CONFIG}: quantization_config is not supported: give the dense weights"
        )
    return ARCHITECTURES[kind].from_config(config)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object")
    return value


def _stored(folder: Path) -> dict[str, Stored]:
    """What the folder's files hold, by canonical name; reads their headers only."""
    found: dict[str, Stored] = {}
    for file in _files(folder):
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dict
                part = tensors.get_slice(name)
                found[canonical(name)] = Stored(
                    file, name, tuple(part.get_shape()), part.get_dtype()
                )
    return {name: tensor for name, tensor in found.items() if not name.endswith(_COMPUTED)}


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder}: no weights: neither {WEIGHTS} nor {INDEX}; convert others to safetensors"
        )
    shards = _json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{folder / INDEX} has no weight_map: save the model anew")
    files = [folder / name for name in sorted(set(shards.values()))]
    _none(
        folder,
        "lacks files that its index names",
        [file.name for file in files if not file.is_file()],
    )
    return files


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UserError(f"{file} is broken, copy it anew: {error}") from error


def _none(folder: Path, complaint: str, items: Iterable[str]) -> None:
    """Refuses the folder if there are any such items, naming the first few."""
    items = list(items)
    if items:
        more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
        raise UserError(f"{folder} {complaint}: {', '.join(items[:_SHOWN])}{more}")


def _check(
    folder: Path, model: LanguageModel, wanted: dict[str, TensorPlace], stored: dict[str, Stored]
) -> None:
    """Names, shapes and dtypes of the stored tensors against the model's."""
    # Tied checkpoints may hold the matrix under both names.
    extra = {_LM_HEAD: stored[_LM_HEAD]} if model.tied and _LM_HEAD in stored else {}
    _none(folder, "lacks tensors", [name for name in wanted if name not in stored])
    unexpected = [
        tensor.name for name, tensor in stored.items() if name not in wanted and name not in extra
    ]
    _none(folder, f"has tensors that {CONFIG} has no place for", unexpected)
    pairs = [(stored[name], wanted[name].shape) for name in wanted]
    wrong = [
        f"{one.name} is {list(one.shape)}, not {list(shape)}"
        for one, shape in pairs
        if one.shape != shape
    ]
    _none(folder, f"does not fit its {CONFIG}", wrong)
    packed = [f"{one.name} is {one.dtype}" for one, _ in pairs if one.dtype not in _FLOATS]
    _none(folder, "has tensors that are no floats", packed)
    for head in extra.values():
        _check_tied(folder, head, stored[token_table(model)])


def _check_tied(folder: Path, head: Stored, table: Stored) -> None:
    """Refuses an output matrix unlike the embedding that it is tied to; a part of the rows at a
    time.
    """
    alike = head.shape == table.shape
    with _open(head.file) as one, _open(table.file) as other:
        a, b = one.get_slice(head.name), other.get_slice(table.name)
        edges = [*range(0, table.shape[0], _ROWS), table.shape[0]]
        alike = alike and all(np.array_equal(a[i:j], b[i:j]) for i, j in itertools.pairwise(edges))
    if not alike:
        raise UserError(
            f"{folder}: {head.name} is not {table.name}: set tie_word_embeddings to false in "
            f"{CONFIG}"
        )


def _read(
    file: Path, here: dict[str, Stored], wanted: dict[str, TensorPlace], dtype: str, params: Params
) -> None:
    with _open(file) as tensors:
        for name, tensor in here.items():
            value = tensors.get_tensor(tensor.name)
            put(params, wanted[name], _converted(value, wanted[name], dtype))


def _converted(value: np.ndarray, place: TensorPlace, dtype: str) -> np.ndarray:
    value = value.T if place.transposed else value
    return np.ascontiguousarray(value, None if dtype == KEEP else DTYPES[dtype])
