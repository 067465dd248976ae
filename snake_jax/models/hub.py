"""Pretrained models as Hugging Face keeps them in a folder: `config.json` and weights.

Weights are one file or several, as safetensors or, of older models, as PyTorch's pickles. Tensors
are read one by one: host memory holds the model and one tensor more, never the model twice.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # numpy learns bfloat16 from it, and safetensors asks numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.models import bert, families, pickles
from snake_jax.models.architecture import Architecture
from snake_jax.models.encoder import Encoder
from snake_jax.models.families import FAMILIES
from snake_jax.models.language import LanguageModel, build
from snake_jax.models.names import (
    TensorPlace,
    canonical,
    canonical_of_encoder,
    places,
    set_tensor,
    token_table,
)
from snake_jax.params import Params

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
KEEP = "keep"

_FLOATS = {"F32", "F16", "BF16", "F64"}
_LM_HEAD = "lm_head.weight"
# Buffers that older versions of transformers saved with the weights, and that are computed.
_COMPUTED = ("rotary_emb.inv_freq", "decoder.version", ".attn.bias", ".attn.masked_bias")
_SHOWN = 4
_ROWS = 4096


class StoredTensor(NamedTuple):
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
      folder: holds config.json and model.safetensors, or pytorch_model.bin where PyTorch is
        installed, or the index and shards of one of them.
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
    architecture = read_architecture(folder)
    model = build(architecture, dropout=dropout, name=folder.resolve().name)

    # All but damage in the data itself is found here, before a tensor is read.
    wanted = places(model)
    stored = _stored(folder, _canonical(model))
    _check(folder, model, wanted, stored)
    return model, _params(model.layer_names, wanted, stored, dtype)


def load_encoder(
    folder: str | Path, *, dtype: str = "float32", dropout: float = 0.0
) -> tuple[Encoder, Params]:
    """A BERT or RoBERTa and its weights from a folder in the form of Hugging Face.

    Args:
      folder: as of `load_pretrained`. What it holds for a task beside the encoder (a pooler, an
        output layer) is not read.
      dtype: of the parameters: float32, bfloat16, float16 or keep, as stored.
      dropout: rate on the residual branches in training.

    Returns:
      The encoder, and its parameters as numpy arrays.

    Raises:
      UserError: no such files, no encoder, an unknown setting, or tensors that do not fit.
    """
    pick("dtype", dtype, (*DTYPES, KEEP))
    folder = Path(folder)
    config = _config(folder)
    kind = config.get("model_type")
    if kind not in bert.MODEL_TYPES:
        raise UserError(
            f"{folder / CONFIG}: model_type={kind} is no encoder; there are "
            f"{', '.join(bert.MODEL_TYPES)}"
        )
    model = Encoder(folder.resolve().name, bert.from_config(config), dropout)
    wanted = places(model)
    stored = {}
    for name, tensor in _stored(folder, canonical_of_encoder).items():
        if not name.startswith(bert.HF_BESIDE):
            stored[name] = tensor
    _check_tensors(folder, wanted, stored)
    return model, _params(model.layer_names, wanted, stored, dtype)


def _params(
    layer_names: Sequence[str],
    wanted: dict[str, TensorPlace],
    stored: dict[str, StoredTensor],
    dtype: str,
) -> Params:
    """The parameters, read from file after file."""
    # File by file, so that each is opened once.
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        in_file = by_file.setdefault(tensor.file, {})
        if name in wanted:
            in_file[name] = tensor
    params: Params = {name: {} for name in layer_names}
    for file, in_file in by_file.items():
        _read(file, in_file, wanted, dtype, params)
    return params


def check_pretrained(folder: str | Path, model: LanguageModel) -> None:
    """Checks names, shapes and dtypes of a folder's tensors without reading those.

    Raises:
      UserError: there are no weights, or they do not fit the model.
    """
    _check(Path(folder), model, places(model), _stored(Path(folder), _canonical(model)))


def read_generation_ends(folder: str | Path) -> tuple[int, ...]:
    """The tokens at which generation_config.json says to stop; none where it says nothing.

    Models for chats end a turn with another token than a document, and some name both only there.

    Raises:
      UserError: the file is no JSON object, or what it names are no tokens.
    """
    file = Path(folder) / "generation_config.json"
    if not file.exists():
        return ()
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); take it from its source again") from error
    found = content.get("eos_token_id") if isinstance(content, dict) else "none"
    if found is None:
        return ()
    ends = found if isinstance(found, list) else [found]
    if not all(isinstance(end, int) for end in ends):
        raise UserError(f"{file}: eos_token_id={found} is no token, and no list of some")
    return tuple(ends)


def read_architecture(folder: Path) -> Architecture:
    """What `config.json` in this folder describes.

    Raises:
      UserError: there is none, it is broken, or the architecture or one of its settings is not
        known.
    """
    config = _config(folder)
    kind = config.get("model_type")
    if kind in bert.MODEL_TYPES:
        raise UserError(
            f"{folder / CONFIG}: model_type={kind} is an encoder, which foretells no next token; "
            f"there are {', '.join(FAMILIES)}"
        )
    if kind not in FAMILIES:
        raise UserError(
            f"{folder / CONFIG}: model_type={kind} is unknown; there are {', '.join(FAMILIES)}"
        )
    return families.read(config)


def _config(folder: Path) -> dict[str, Any]:
    """What `config.json` says; of dense weights."""
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: no {CONFIG}; give a folder in the form of Hugging Face's save_pretrained"
        )
    config = _json(folder / CONFIG)
    if config.get("quantization_config"):
        raise UserError(
            f"{folder / CONFIG}: quantization_config is not supported: give the dense weights"
        )
    return config


def _json(path: Path) -> dict[str, Any]:
    """A file's JSON object; raises UserError where it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # with a byte order mark or not
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object")
    return value


def _canonical(model: LanguageModel) -> Callable[[str], str]:
    """From a tensor's name in a file to its full name."""
    return functools.partial(canonical, model.architecture.names.base)


def _stored(folder: Path, canonical: Callable[[str], str]) -> dict[str, StoredTensor]:
    """What the folder's files hold, by canonical name; reads no tensor."""
    found: dict[str, StoredTensor] = {}
    for file in _files(folder):
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dict
                part = tensors.get_slice(name)
                shape = tuple(part.get_shape())
                found[canonical(name)] = StoredTensor(file, name, shape, part.get_dtype())
    return {name: tensor for name, tensor in found.items() if not name.endswith(_COMPUTED)}


def _files(folder: Path) -> list[Path]:
    """The files of the folder's weights; where it has them in both forms, the safetensors."""
    for whole, index in ((WEIGHTS, INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder, index)
    raise UserError(
        f"{folder}: no weights: neither {WEIGHTS} nor {INDEX} nor {PICKLE}; convert others with "
        f"{pickles.conversion(folder)}"
    )


def _shards(folder: Path, index: str) -> list[Path]:
    """The files that an index names; raises UserError where one is missing."""
    shards = _json(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{folder / index} has no weight_map: save the model anew")
    files = [folder / name for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    _none(folder, "lacks files that its index names", missing)
    return files


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """The file's tensors, with the methods of `safetensors.safe_open`."""
    if file.suffix == ".bin":
        with pickles.opened(file) as tensors:
            yield tensors
        return
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
    folder: Path,
    model: LanguageModel,
    wanted: dict[str, TensorPlace],
    stored: dict[str, StoredTensor],
) -> None:
    """Names, shapes and dtypes of the stored tensors against the model's."""
    missing = [name for name in wanted if name not in stored]
    _none(folder, "lacks tensors", missing)

    # Tied checkpoints may hold the matrix under both names.
    doubled = model.tied and _LM_HEAD in stored
    unexpected = []
    for name, tensor in stored.items():
        is_double = doubled and name == _LM_HEAD
        if name not in wanted and not is_double:
            unexpected.append(tensor.name)
    _none(folder, f"has tensors that {CONFIG} has no place for", unexpected)
    _check_fit(folder, wanted, stored)
    if doubled:
        _check_tied(folder, stored[_LM_HEAD], stored[token_table(model)])


def _check_tensors(
    folder: Path, wanted: dict[str, TensorPlace], stored: dict[str, StoredTensor]
) -> None:
    """Names, shapes and dtypes of the stored tensors against an encoder's."""
    _none(folder, "lacks tensors", [name for name in wanted if name not in stored])
    unexpected = [tensor.name for name, tensor in stored.items() if name not in wanted]
    _none(folder, f"has tensors that {CONFIG} has no place for", unexpected)
    _check_fit(folder, wanted, stored)


def _check_fit(
    folder: Path, wanted: dict[str, TensorPlace], stored: dict[str, StoredTensor]
) -> None:
    """Shapes and dtypes of the stored tensors against those wanted."""
    misshapen = []
    packed = []
    for name, place in wanted.items():
        tensor = stored[name]
        if tensor.shape != place.shape:
            misshapen.append(f"{tensor.name} is {list(tensor.shape)}, not {list(place.shape)}")
        if tensor.dtype not in _FLOATS:
            packed.append(f"{tensor.name} is {tensor.dtype}")
    _none(folder, f"does not fit its {CONFIG}", misshapen)
    _none(folder, "has tensors that are no floats", packed)


def _check_tied(folder: Path, head: StoredTensor, table: StoredTensor) -> None:
    """Refuses an output matrix unlike the embedding that it is tied to."""
    alike = head.shape == table.shape
    with _open(head.file) as one, _open(table.file) as other:
        head_rows = one.get_slice(head.name)
        table_rows = other.get_slice(table.name)
        # A part of the rows at a time: host memory has no room for both.
        for start in range(0, table.shape[0], _ROWS):
            if not alike:
                break
            stop = min(start + _ROWS, table.shape[0])
            alike = np.array_equal(head_rows[start:stop], table_rows[start:stop])
    if not alike:
        raise UserError(
            f"{folder}: {head.name} is not {table.name}: set tie_word_embeddings to false in "
            f"{CONFIG}"
        )


def _read(
    file: Path,
    in_file: dict[str, StoredTensor],
    wanted: dict[str, TensorPlace],
    dtype: str,
    params: Params,
) -> None:
    """Sets the parameters of the tensors in one file."""
    with _open(file) as tensors:
        for name, tensor in in_file.items():
            value = tensors.get_tensor(tensor.name)
            converted = _converted(value, wanted[name], dtype)
            set_tensor(params, wanted[name], converted)


def _converted(value: np.ndarray, place: TensorPlace, dtype: str) -> np.ndarray:
    """A tensor as it lies in our parameters, in this dtype."""
    if place.transposed:
        value = value.T
    if dtype == KEEP:
        return np.ascontiguousarray(value)
    return np.ascontiguousarray(value, DTYPES[dtype])
