"""Low-rank adapters of a block's linear layers, and their exchange with PEFT.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1: a linear layer
with kernel `[in, out]` computes `x @ kernel + scale * (x @ a) @ b`, a `[in, r]` and b `[r, out]`.
Adapters of a block are a tree nested as the block is, with `{"a", "b"}` at each adapted layer.
Blocks may have adapters of unlike ranks.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import dense, is_quantized
from snake_jax.models.architecture import NAMES, Architecture
from snake_jax.params import PyTree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PLAIN = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "inference_mode": True,
    "lora_dropout": 0.0,
}
_FANCY = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
)

Names = tuple[str, ...]  # a path of keys: ("self_attn", "q_proj")


class Lora(NamedTuple):
    """Which adapters a model has.

    Attributes:
      rank: their inner width r.
      scale: factor of their product; alpha / r elsewhere.
      pattern: the layers that have one: `all`, or names or regular expressions, comma-separated.
    """

    rank: int
    scale: float = 1.0
    pattern: str = "all"


def targets(block: PyTree, pattern: str) -> list[Names]:
    """Paths of the linear layers that the pattern names, in the block's order.

    Args:
      block: parameters of a block, or their shapes; a linear layer has a `kernel` of two axes.
      pattern: `all`, or of names, dotted paths and regular expressions for these, comma-separated.

    Raises:
      UserError: a part of the pattern names no linear layer.
    """
    linears = [path for path, _ in _kernels(block)]
    if pattern == "all":
        return linears
    named: set[Names] = set()
    for word in pattern.split(","):
        word = word.strip()
        found = {path for path in linears if _names(word, path)}
        if not found:
            known = ", ".join(path[-1] for path in linears)
            raise UserError(
                f"--lora_pattern={pattern}: no linear layer {word or 'without a name'}; say all, "
                f"or of {known}"
            )
        named |= found
    return [path for path in linears if path in named]


def init(key: jax.Array, block: PyTree, lora: Lora) -> PyTree:
    """Fresh adapters of a block, float32: their product is zero, so the block computes as before.

    a is uniform within 1 / sqrt(in), as PEFT draws it, and b zero.

    Args:
      key: a layer's values depend on it and on the layer's place among the linear layers of the
        block.
      block: its parameters or their shapes.
      lora: which.

    Raises:
      UserError: a layer is narrower than the rank.
    """
    # Numbered among all linear layers: a layer draws the same whichever others have adapters.
    chosen = targets(block, lora.pattern)
    _check_rank(lora.rank, {path: shape for path, shape in _kernels(block) if path in chosen})
    adapters: dict[str, PyTree] = {}
    for index, (path, (fan_in, fan_out)) in enumerate(_kernels(block)):
        if path not in chosen:
            continue
        layer_key = jax.random.fold_in(key, index)
        bound = 1 / math.sqrt(fan_in)
        a = jax.random.uniform(layer_key, (fan_in, lora.rank), minval=-bound, maxval=bound)
        b = jnp.zeros((lora.rank, fan_out))
        _set_at(adapters, path, {"a": a, "b": b})
    return adapters


def scaled(adapters: PyTree, scale: float) -> PyTree:
    """Adapters whose b has the scale in it, as blocks take them."""

    def scale_b(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        if path[-1].key == "b":
            return x * scale
        return x

    return jax.tree.map_with_path(scale_b, adapters)


def merge(block: PyTree, adapters: PyTree, scale: float) -> PyTree:
    """The block with its adapters in its kernels: `kernel + scale * a @ b`, `[in, out]` float32.

    All else is left as it is.
    """
    pairs = dict(_pairs(adapters))

    def merged(keys: tuple, leaf: Any) -> Any:
        *path, name = (key.key for key in keys)
        pair = pairs.get(tuple(path))
        if name != "kernel" or pair is None:
            return leaf
        # Once and for all, so as exactly as float32 can.
        product = jnp.matmul(
            pair["a"], pair["b"], precision="highest", preferred_element_type=jnp.float32
        )
        kernel = dense(jax.tree.map(jnp.asarray, leaf), jnp.float32)
        return kernel + scale * product

    return jax.tree.map_with_path(merged, block, is_leaf=is_quantized)


def save_peft(
    folder: Path,
    architecture: Architecture,
    adapters: Mapping[int, PyTree],
    lora: Lora,
    base_model_name: str,
) -> None:
    """Writes adapters as `peft` saves them: `PeftModel.from_pretrained(base, folder)` loads them.

    Args:
      folder: made where it is missing.
      architecture: of the model.
      adapters: of blocks, by their number from 0; ranks may differ.
      lora: their scale, and the rank that most have.
      base_model_name: folder or hub name of the model they belong to.
    """
    of_block = architecture.names
    modules: dict[str, PyTree] = {}
    paths: set[Names] = set()
    for block, tree in sorted(adapters.items()):
        for path, pair in _pairs(tree):
            module = ".".join([of_block.block.format(block), *path])
            modules[module] = pair
            paths.add(path)

    # Short names stand for a layer of every block; they serve where each block has the same layers.
    # GPT-2 calls two layers of a block alike: theirs begin with the module around them.
    if len(paths) * architecture.num_hidden_layers != len(modules):
        names = sorted(modules)
    elif of_block.output == of_block.down:
        names = sorted(".".join(path) for path in paths)
    else:
        names = sorted({path[-1] for path in paths})

    # PEFT keeps alpha, which is scale * rank: a rank of its own needs an alpha of its own.
    ranks = {name: pair["a"].shape[1] for name, pair in modules.items()}
    unlike = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    config = {
        **_PLAIN,
        "base_model_name_or_path": base_model_name,
        "r": lora.rank,
        "lora_alpha": _alpha(lora, lora.rank),
        "target_modules": names,
        # Whether the layers beside which they lie are `[in, out]`, as GPT-2's are.
        "fan_in_fan_out": not of_block.transposed,
        "rank_pattern": unlike,
        "alpha_pattern": {name: _alpha(lora, rank) for name, rank in unlike.items()},
    }

    # PyTorch's linear layers are `[out, in]`.
    tensors: dict[str, np.ndarray] = {}
    for name, pair in modules.items():
        for letter, part in (("A", "a"), ("B", "b")):
            transposed = np.asarray(pair[part], np.float32).T
            tensors[_tensor_name(name, letter)] = np.ascontiguousarray(transposed)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def load_peft(folder: Path) -> tuple[dict[int, PyTree], Lora]:
    """Adapters that `peft` saved, by block number, and their common rank and scale.

    They are float32 arrays on the host. A layer whose alpha / r differs has the difference in its
    b; one of another rank keeps it.

    Raises:
      UserError: a file is missing or damaged, or the adapter is of a kind that is not supported.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    lora = Lora(config["r"], _scale(config, config["r"], config["lora_alpha"]))
    adapters: dict[int, PyTree] = {}
    modules = {_module(folder, tensor) for tensor in tensors}
    for name in sorted(modules):
        a, b = _matrices(folder, tensors, name)
        block, path = _block_and_path(folder, name)

        # What the config says of this layer, which may differ from what it says of most.
        rank = _of_pattern(config.get("rank_pattern"), name, lora.rank)
        if rank != len(a):
            raise UserError(
                f"{folder}: {name} has rank {len(a)}, {CONFIG} says {rank}: save the adapter anew"
            )
        alpha = _of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
        beside_common = np.float32(_scale(config, rank, alpha) / lora.scale)

        of_block = adapters.setdefault(block, {})
        _set_at(of_block, path, {"a": a.T, "b": b.T * beside_common})

    # Names of adapted layers, each once, in order.
    layers: list[str] = []
    for tree in adapters.values():
        for path, _ in _pairs(tree):
            if path[-1] not in layers:
                layers.append(path[-1])
    return adapters, lora._replace(pattern=",".join(layers))


def _tensor_name(module: str, letter: str) -> str:
    """As PEFT names the matrix A or B of a module's adapter."""
    return f"base_model.model.{module}.lora_{letter}.weight"


def _matrices(
    folder: Path, tensors: Mapping[str, np.ndarray], module: str
) -> tuple[np.ndarray, np.ndarray]:
    """A module's A `[r, in]` and B `[out, r]` as PEFT lays them out.

    Raises:
      UserError: one is missing, or they do not fit together.
    """
    a = tensors.get(_tensor_name(module, "A"))
    b = tensors.get(_tensor_name(module, "B"))
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise UserError(
            f"{folder / WEIGHTS}: {module} has no matching lora_A and lora_B: save the adapter anew"
        )
    return a, b


def _kernels(block: PyTree) -> Iterator[tuple[Names, tuple[int, int]]]:
    """Path and shape `[in, out]` of every linear layer of a block."""
    for keys, leaf in jax.tree.leaves_with_path(block, is_leaf=is_quantized):
        path = tuple(key.key for key in keys)
        if path[-1] == "kernel" and len(leaf.shape) == 2:
            yield path[:-1], leaf.shape


def _pairs(adapters: PyTree, path: Names = ()) -> Iterator[tuple[Names, PyTree]]:
    """Every adapted layer's path and {"a", "b"}."""
    if set(adapters) == {"a", "b"}:
        yield path, adapters
        return
    for name, subtree in adapters.items():
        yield from _pairs(subtree, (*path, name))


def _set_at(tree: dict[str, Any], path: Names, value: PyTree) -> None:
    """Sets what lies at the path, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _names(word: str, path: Names) -> bool:
    """Whether a part of a pattern means this layer: by its last name, or by all of them."""
    try:
        by_name = re.fullmatch(word, path[-1])
        return bool(by_name or re.fullmatch(word, ".".join(path)))
    except re.error as error:
        raise UserError(
            f"--lora_pattern: {word} is no regular expression ({error}): give names"
        ) from error


def _check_rank(rank: int, shapes: Mapping[Names, tuple[int, int]]) -> None:
    """Refuses a rank that the narrowest of these layers `[in, out]` does not have."""
    if rank < 1:
        raise UserError(f"--lora_rank={rank}: adapters need a rank of at least 1")
    widths = {path: min(shape) for path, shape in shapes.items()}
    path = min(widths, key=widths.__getitem__)
    width, (fan_in, fan_out) = widths[path], shapes[path]
    if rank > width:
        raise UserError(
            f"--lora_rank={rank} is above the width of {'.'.join(path)} [{fan_in}, {fan_out}]: "
            f"take at most {width}, or --lora_rank=0 to train whole blocks"
        )


def _alpha(lora: Lora, rank: int) -> int | float:
    """What PEFT divides by the rank to get the scale; whole where it can be."""
    alpha = lora.scale * rank
    if alpha == int(alpha):
        return int(alpha)
    return alpha


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / CONFIG} is not readable: give the folder of a PEFT adapter"
        ) from error

    # What else PEFT knows would be read wrongly as plain LoRA.
    unsupported = [name for name in ("peft_type", "bias") if config.get(name) != _PLAIN[name]]
    unsupported += [name for name in _FANCY if config.get(name)]
    if unsupported:
        name = unsupported[0]
        raise UserError(
            f"{folder / CONFIG}: {name}={config.get(name)} is not supported, only plain LoRA is"
        )
    for name in ("r", "lora_alpha"):
        if not config.get(name):
            raise UserError(f"{folder / CONFIG} lacks {name}: save the adapter anew")
    return config


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS} is not readable: save the adapter as safetensors"
        ) from error
    return {name: np.asarray(tensor, np.float32) for name, tensor in stored.items()}


def _module(folder: Path, tensor: str) -> str:
    """The module that a tensor of the file adapts."""
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", tensor)
    if not match:
        raise UserError(
            f"{folder / WEIGHTS}: {tensor} is no adapter of a linear layer, and nothing else is "
            f"supported"
        )
    return match[1]


def _block_and_path(folder: Path, module: str) -> tuple[int, Names]:
    """A module's block number, and its path in the block."""
    blocks = list(dict.fromkeys(names.block for names in NAMES.values()))
    for block in blocks:
        prefix = re.escape(block).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(prefix + r"\.(.+)", module):
            return int(match[1]), tuple(match[2].split("."))
    known = " or ".join(block.format("N") for block in blocks)
    raise UserError(
        f"{folder / WEIGHTS}: {module} is in no block: only layers of {known} have adapters"
    )


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The first entry whose key, a regular expression, ends the module's name, as PEFT reads it."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _scale(config: Mapping[str, Any], rank: int, alpha: float) -> float:
    """alpha / r; rsLoRA (arXiv 2312.03732) divides by the root of the rank."""
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank)
    return alpha / rank
