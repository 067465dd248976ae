"""What flags of a run on text ask for together, and a model or another flag cannot take."""

import dataclasses
from collections.abc import Sequence

import jax

from snake_jax.algorithms.chain import ON_SERVER, Chain
from snake_jax.config import TextConfig
from snake_jax.engines.build import check as check_emulation
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.language import LanguageModel
from snake_jax.training import sharding
from snake_jax.training.text_step import own_items

_PAPERS_RANK = 128


def with_rank(config: TextConfig, model: LanguageModel) -> TextConfig:
    """With a rank of adapters where the flag leaves it to the model (-1).

    That is the papers' 128, or half the width of the narrowest adapted layer where that is less: an
    adapter `[in, r]`, `[r, out]` then has at most as many numbers as a square matrix beside it.

    Raises:
      UserError: the pattern names no layer.
    """
    if config.lora_rank >= 0:
        return config
    block = jax.eval_shape(model.init, jax.random.key(0))[own_items(model, False)[0]]
    widths = []
    for path in lora.targets(block, config.lora_pattern):
        layer = block
        for name in path:
            layer = layer[name]
        widths.append(min(layer["kernel"].shape))
    return dataclasses.replace(config, lora_rank=max(1, min(_PAPERS_RANK, min(widths) // 2)))


def check_model(config: TextConfig, model: LanguageModel) -> None:
    """Refuses rows, meshes and kernels that the model or each other cannot take.

    Raises:
      UserError: there is one.
    """
    if config.max_length > model.max_positions:
        raise UserError(
            f"--max_length={config.max_length}: {model.name} has {model.max_positions} positions"
        )
    # A mesh divides rows and heads, so both must be divisible.
    architecture = model.architecture
    sharding.check_mesh(
        config.mesh,
        config.batch_size,
        architecture.num_attention_heads,
        architecture.num_key_value_heads,
    )
    if config.mesh and config.cache_prefix == "device":
        raise UserError(
            "--cache_prefix=device is for one device; with --mesh say --cache_prefix=host"
        )
    check_products(config)
    check_emulation(config.executor, bool(config.mesh), bool(config.rank), config.cache_prefix)


def check_cut(
    config: TextConfig, model: LanguageModel, chain: Chain, trainable: Sequence[str]
) -> None:
    """Refuses cuts that a mesh, or an output matrix that is the embedding's, cannot take.

    Raises:
      UserError: there is one.
    """
    if len(chain) == 1:
        return
    if config.mesh:
        raise UserError(
            f"--mesh={config.mesh}: a cut model lies over node and server already; leave it out"
        )
    # The server always has the newest table, since each step sends it; others would be told twice.
    reader = chain[-1].role
    elsewhere = reader not in (chain[0].role, ON_SERVER)
    if model.tied and "embed" in trainable and elsewhere:
        raise UserError(
            f"--algorithm={config.algorithm}: {model.name} has one matrix for embedding and head, "
            "which would train on two places; say --lora_rank, or --tail=1 where there is one"
        )


def check_products(config: TextConfig) -> None:
    """Refuses kernels for what is not stored in codes on one device.

    Raises:
      UserError: the configuration asks for that.
    """
    if config.frozen_matmul == "dequantize":
        return
    if config.mesh:
        raise UserError(
            "--frozen_matmul=fused is for one device; with --mesh say --frozen_matmul=dequantize"
        )
    if config.frozen_dtype not in ("int8", "nf4"):
        raise UserError(
            f"--frozen_matmul=fused: --frozen_dtype={config.frozen_dtype} has no codes; say int8 "
            f"or nf4"
        )
