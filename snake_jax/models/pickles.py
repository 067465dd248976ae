"""Weights in PyTorch's own files (`pytorch_model.bin`), which older models have alone.

Such a file is a pickle, which could run code when it is read. PyTorch's reader for weights allows
nothing but tensors, and maps the file into memory, so a tensor is read when it is asked for.
"""

import importlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from snake_jax.errors import UserError

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class _Slice(NamedTuple):
    """A tensor that is not read yet."""

    tensor: Any

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        name = str(self.tensor.dtype).removeprefix("torch.")
        return _CODES.get(name, name)

    def __getitem__(self, rows: slice) -> np.ndarray:  # type: ignore[override]
        return _array(self.tensor[rows])


class PickledTensors(NamedTuple):
    """The tensors of a file, with the methods of `safetensors.safe_open`."""

    tensors: dict[str, Any]

    def keys(self) -> list[str]:
        """Their names."""
        return list(self.tensors)

    def get_slice(self, name: str) -> _Slice:
        """A tensor of which only shape and type are known."""
        return _Slice(self.tensors[name])

    def get_tensor(self, name: str) -> np.ndarray:
        """A tensor's values."""
        return _array(self.tensors[name])


def conversion(folder: Path) -> str:
    """The command that writes a folder's weights as safetensors."""
    return (
        'pip install torch && python -c "from transformers import AutoModelForCausalLM as A; '
        f"A.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
    )


@contextmanager
def opened(file: Path) -> Iterator[PickledTensors]:
    """The file's tensors.

    Raises:
      UserError: PyTorch is not there, or the file is broken or holds more than tensors.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise UserError(
            f"{file} is a file of PyTorch, which is not installed: pip install torch; or convert "
            f"it where it is, with {conversion(file.parent)}"
        ) from None
    try:
        content = _load(torch, file)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file} holds more than tensors, which could be code: it is not read; get the model "
            f"as safetensors, or copy the file anew if it is broken"
        ) from None
    except Exception as error:  # of a file that is something else the reader raises anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{file} is broken, copy it anew: {reason}") from None
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise UserError(f"{file} holds no tensors by name: save the model's state_dict anew")
    yield PickledTensors(content)


def _load(torch: Any, file: Path) -> Any:
    # Files of before PyTorch 1.6 are no zip archives, and cannot be mapped.
    with file.open("rb") as start:
        is_archive = start.read(2) == b"PK"
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)


def _array(tensor: Any) -> np.ndarray:
    """numpy has no bfloat16 of its own: its bits go through integers."""
    tensor = tensor.detach().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
