"""Low-rank adapters of a block's linear layers, and their exchange with PEFT.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1: a linear layer
with kernel `[in, out]` computes `x @ kernel + scale * (x @ a) @ b`, a `[in, r]` and b `[r, out]`.
Adapters of a block are a tree nested as the block is, with `{"a", "b"}` at each adapted layer.
Those of unlike ranks live together as in arXiv 2401.06432 (HetLoRA): zeros up to the largest rank
change nothing and get no gradient.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import dense, is_quantized
from snake_jax.models.language import ARCHITECTURES, Architecture, module_of
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
    "fan_in_fan_out",
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
    words = [word.strip() for word in pattern.split(",")]
    for word in words:
        if not any(_names(word, path) for path in linears):
            known = ", ".join(path[-1] for path in linears)
            raise UserError(
                f"--lora_pattern={pattern}: no linear layer {word or 'without a name'}; say all, "
                f"or of {known}"
            )
    return [path for path in linears if any(_names(word, path) for word in words)]


def init(key: jax.Array, block: PyTree, lora: Lora) -> PyTree:
    """Fresh adapters of a block, float32: a uniform within 1 / sqrt(in), as PEFT draws it, and b
    zero.

    Args:
      key: a layer's values depend on it and on the layer's place among the linear layers of the
        block.
      block: its parameters or their shapes.
      lora: which.

    Raises:
      UserError: a layer is narrower than the rank.
    """
    chosen = set(targets(block, lora.pattern))
    adapters: dict[str, PyTree] = {}
    for index, (path, (fan_in, fan_out)) in enumerate(_kernels(block)):
        if path in chosen:
            _check_rank(lora.rank, path, fan_in, fan_out)
            bound = 1 / math.sqrt(fan_in)
            a = jax.random.uniform(
                jax.random.fold_in(key, index), (fan_in, lora.rank), minval=-bound, maxval=bound
            )
            _put(adapters, path, {"a": a, "b": jnp.zeros((lora.rank, fan_out))})
    return adapters


def scaled(adapters: PyTree, scale: float) -> PyTree:
    """Adapters whose b has the scale in it, as blocks take them."""
    return _map(lambda name, x: x * scale if name == "b" else x, adapters)


def merge(block: PyTree, adapters: PyTree, scale: float) -> PyTree:
    """The block with its adapters in its kernels: kernel + scale * a @ b in float32; the rest as it
    is.
    """

    pairs = dict(_pairs(adapters))

    def merged(keys: tuple, leaf: Any) -> Any:
        *path, name = (key.key for key in keys)
        pair = pairs.get(tuple(path)) if name == "kernel" else None
        if pair is None:
            return leaf
        product = jnp.matmul(
            pair["a"], pair["b"], precision="highest", preferred_element_type=jnp.float32
        )
        return dense(jax.tree.map(jnp.asarray, leaf), jnp.float32) + scale * product

    return jax.tree.map_with_path(merged, block, is_leaf=is_quantized)


def to_rank(adapters: PyTree, rank: int) -> PyTree:
    """Adapters of this rank: filled up with zeros, which compute the same, or cut down to their
    first columns.
    """

    def resized(name: str, x: Any) -> Any:
        axis = 1 if name == "a" else 0
        missing = [(0, max(0, rank - x.shape[axis]) if i == axis else 0) for i in range(2)]
        return jnp.pad(x, missing)[(slice(None),) * axis + (slice(rank),)]

    return _map(resized, adapters)


def column_mask(adapters: PyTree, rank: int) -> PyTree:
    """1 for what a node of this rank trains, the first columns, and 0 beyond: `[1, r]` for a and
    `[r, 1]` for b.

    `adapters` may be of any rank, or shapes; `rank` is the node's.
    """

    def mask(name: str, x: Any) -> jax.Array:
        first = (jnp.arange(x.shape[1 if name == "a" else 0]) < rank).astype(jnp.float32)
        return first[None] if name == "a" else first[:, None]

    return _map(mask, adapters)


def save_peft(
    folder: Path,
    architecture: Architecture,
    adapters: Mapping[int, PyTree],
    lora: Lora,
    base_model_name: str,
) -> None:
    """Writes adapters as `peft` saves them; `peft.PeftModel.from_pretrained(base, folder)` loads
    them.

    Args:
      folder: made where it is missing.
      architecture: of the model.
      adapters: of blocks, by their number from 0; ranks may differ.
      lora: their scale, and the rank that most have.
      base_model_name: folder or hub name of the model they belong to.
    """
    prefix = module_of(architecture).HF_BLOCK
    modules = {
        ".".join([prefix.format(block), *path]): (path, pair)
        for block, tree in sorted(adapters.items())
        for path, pair in _pairs(tree)
    }
    ranks = {name: pair["a"].shape[1] for name, (_, pair) in modules.items()}
    unlike = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    # Short names stand for a layer of every block.
    everywhere = len(
        {path for path, _ in modules.values()}
    ) * architecture.num_hidden_layers == len(modules)
    names = sorted({path[-1] for path, _ in modules.values()}) if everywhere else sorted(modules)
    config = {
        **_PLAIN,
        "base_model_name_or_path": base_model_name,
        "r": lora.rank,
        "lora_alpha": _alpha(lora, lora.rank),
        "target_modules": names,
        "rank_pattern": unlike,
        "alpha_pattern": {name: _alpha(lora, rank) for name, rank in unlike.items()},
    }
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": np.ascontiguousarray(
            np.asarray(pair[part], np.float32).T
        )
        for name, (_, pair) in modules.items()
        for letter, part in (("A", "a"), ("B", "b"))
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def load_peft(folder: Path) -> tuple[dict[int, PyTree], Lora]:
    """Adapters that `peft` saved, float32 on the host, by block number, and their common rank and
    scale.

    A layer whose alpha / r differs has the difference in its b; one of a smaller rank keeps it (see
    `to_rank`).

    Raises:
      UserError: a file is missing or damaged, or the adapter is of a kind that is not supported.
    """
    config, tensors = _read_config(folder), _read_tensors(folder)
    lora = Lora(config["r"], _scale(config, config["r"], config["lora_alpha"]))
    adapters: dict[int, PyTree] = {}
    for name in sorted({_module(folder, key) for key in tensors}):
        a, b = (tensors.get(f"base_model.model.{name}.lora_{letter}.weight") for letter in "AB")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise UserError(
                f"{folder / WEIGHTS}: {name} has no matching lora_A and lora_B: save the adapter "
                f"anew"
            )
        block, path = _place(folder, name)
        rank = _of_pattern(config.get("rank_pattern"), name, lora.rank)
        if rank != len(a):
            raise UserError(
                f"{folder}: {name} has rank {len(a)}, {CONFIG} says {rank}: save the adapter anew"
            )
        own = _scale(
            config, rank, _of_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
        )
        _put(
            adapters.setdefault(block, {}),
            path,
            {"a": a.T, "b": b.T * np.float32(own / lora.scale)},
        )
    found = {path[-1]: None for tree in adapters.values() for path, _ in _pairs(tree)}
    return adapters, lora._replace(pattern=",".join(found))


def _kernels(block: PyTree) -> Iterator[tuple[Names, tuple[int, int]]]:
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


def _map(function: Callable[[str, Any], Any], adapters: PyTree) -> PyTree:
    """`function` of "a" or "b" and its array, everywhere."""
    return jax.tree.map_with_path(lambda path, x: function(path[-1].key, x), adapters)


def _put(tree: dict[str, Any], path: Names, value: PyTree) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _names(word: str, path: Names) -> bool:
    try:
        return any(re.fullmatch(word, name) for name in (path[-1], ".".join(path)))
    except re.error as error:
        raise UserError(
            f"--lora_pattern: {word} is no regular expression ({error}): give names"
        ) from error


def _check_rank(rank: int, path: Names, fan_in: int, fan_out: int) -> None:
    if rank < 1:
        raise UserError(f"--lora_rank={rank}: adapters need a rank of at least 1")
    if rank > min(fan_in, fan_out):
        width, name = min(fan_in, fan_out), ".".join(path)
        raise UserError(
            f"--lora_rank={rank} is above the width of {name} [{fan_in}, {fan_out}]: take at most "
            f"{width}"
        )


def _alpha(lora: Lora, rank: int) -> int | float:
    alpha = lora.scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / CONFIG} is not readable: give the folder of a PEFT adapter"
        ) from error
    wrong = [n for n in ("peft_type", "bias") if config.get(n) != _PLAIN[n]] + [
        n for n in _FANCY if config.get(n)
    ]
    if wrong:
        raise UserError(
            f"{folder / CONFIG}: {wrong[0]}={config.get(wrong[0])} is not supported, only plain "
            f"LoRA is"
        )
    if missing := [name for name in ("r", "lora_alpha") if not config.get(name)]:
        raise UserError(f"{folder / CONFIG} lacks {missing[0]}: save the adapter anew")
    return config


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    try:
        return {name: np.asarray(x, np.float32) for name, x in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS} is not readable: save the adapter as safetensors"
        ) from error


def _module(folder: Path, tensor: str) -> str:
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", tensor)
    if not match:
        raise UserError(
            f"{folder / WEIGHTS}: {tensor} is no adapter of a linear layer, and nothing else is "
            f"supported"
        )
    return match[1]


def _place(folder: Path, module: str) -> tuple[int, Names]:
    """Block number and path in the block."""
    for family in ARCHITECTURES.values():
        if match := re.fullmatch(
            re.escape(family.HF_BLOCK).replace(r"\{\}", r"(\d+)") + r"\.(.+)", module
        ):
            return int(match[1]), tuple(match[2].split("."))
    known = " or ".join(family.HF_BLOCK.format("N") for family in ARCHITECTURES.values())
    raise UserError(
        f"{folder / WEIGHTS}: {module} is in no block: only layers of {known} have adapters"
    )


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The first entry whose key, a regular expression, ends the module's name, as PEFT reads it."""
    return next(
        (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
        default,
    )


def _scale(config: Mapping[str, Any], rank: int, alpha: float) -> float:
    """rsLoRA (arXiv 2312.03732) divides by the root of the rank."""
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
