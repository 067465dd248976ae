"""Tensors of a checkpoint as Hugging Face names them, and where they lie in our parameters."""

from typing import NamedTuple

import jax
import numpy as np

from snake_jax.models import bert
from snake_jax.models.encoder import Encoder
from snake_jax.models.language import LanguageModel
from snake_jax.models.linear import PyTree
from snake_jax.params import Params


class TensorPlace(NamedTuple):
    """Where a tensor of a checkpoint lies in the parameters.

    Attributes:
      path: of keys, `("block_00", "self_attn", "q_proj", "kernel")`.
      shape: as the checkpoint has it.
      transposed: matrices of linear layers are `[out, in]` there and `[in, out]` here; GPT-2's are
        `[in, out]` there too.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


def places(model: LanguageModel | Encoder) -> dict[str, TensorPlace]:
    """Every tensor of the model, by its name in a checkpoint, layer by layer."""
    # Shapes alone: nothing is drawn.
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = {}
    for layer in model.layer_names:
        for keys, leaf in jax.tree.leaves_with_path(shapes[layer]):
            inside_layer = [key.key for key in keys]
            path = (layer, *inside_layer)
            shape = leaf.shape
            transposed = path[-1] == "kernel" and _transposes(model)
            if transposed:
                shape = shape[::-1]
            name = _name(model, path)
            found[name] = TensorPlace(path, shape, transposed)
    return found


def _transposes(model: LanguageModel | Encoder) -> bool:
    """Whether linear layers are `[out, in]` in a checkpoint."""
    return isinstance(model, Encoder) or model.architecture.names.transposed


def _name(model: LanguageModel | Encoder, path: tuple[str, ...]) -> str:
    """What a checkpoint calls the parameter at this path."""
    layer, *modules, leaf = path
    if layer not in ("embed", "head"):
        block = model.layer_names.index(layer) - 1  # the embedding comes first
        prefix = bert.HF_BLOCK if isinstance(model, Encoder) else model.architecture.names.block
        stem = ".".join([prefix.format(block), *modules])
    elif isinstance(model, Encoder):
        (module,) = modules
        stem = bert.HF_MODULES[layer, module]
    else:
        (module,) = modules
        stem = getattr(model.architecture.names, module)
    kind = "bias" if leaf == "bias" else "weight"
    return f"{stem}.{kind}"


def token_table(model: LanguageModel) -> str:
    """The name of the embedding matrix."""
    return _name(model, ("embed", "tokens", "embedding"))


def canonical(base: str, name: str) -> str:
    """A tensor's full name, where a checkpoint of the bare model left out its prefix `base`."""
    if name.startswith((base, "lm_head.")):
        return name
    return f"{base}{name}"


def canonical_of_encoder(name: str) -> str:
    """A tensor's name in the bare encoder.

    A checkpoint of a task has it under a prefix; the oldest call norms' weights gamma and beta.
    """
    bare = name.removeprefix("bert.").removeprefix("roberta.")
    return bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def get_tensor(params: Params, place: TensorPlace) -> PyTree:
    """The parameter at this place."""
    subtree: PyTree = params
    for key in place.path:
        subtree = subtree[key]
    return subtree


def set_tensor(params: Params, place: TensorPlace, value: np.ndarray) -> None:
    """Sets the parameter at this place, making the dicts on the way."""
    subtree: PyTree = params
    for key in place.path[:-1]:
        subtree = subtree.setdefault(key, {})
    subtree[place.path[-1]] = value
