"""A small Llama and its steps: all layers, one block, or adapters of all blocks, by AdamW."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import compiling
from snake_jax.algorithms.visits import Passed
from snake_jax.costs.flops import passed_flops
from snake_jax.costs.layers import row_costs
from snake_jax.models import lora
from snake_jax.models.language import LanguageModel
from snake_jax.models.presets import from_preset
from snake_jax.models.save import save_pretrained
from snake_jax.params import Params, PyTree, select
from snake_jax.training import stack
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.text_step import (
    ENDS,
    FrozenModel,
    LanguageStep,
    TextBatch,
    block_roles,
    own_items,
    train_step,
)

LEARNING_RATE = 1e-3


class Sizes(NamedTuple):
    """Of the network, of a batch, of the adapters."""

    hidden: int
    blocks: int
    heads: int
    intermediate: int
    vocab: int
    batch: int
    length: int
    rank: int


SIZES = Sizes(512, 4, 8, 1376, 2048, 4, 128, 8)
QUICK = Sizes(16, 2, 2, 24, 64, 2, 8, 2)


@functools.cache
def model_of(sizes: Sizes) -> LanguageModel:
    """The network."""
    return from_preset(
        "tiny-llama",
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        head_dim=sizes.hidden // sizes.heads,
        intermediate_size=sizes.intermediate,
        vocab_size=sizes.vocab,
        max_position_embeddings=sizes.length,
        tie_word_embeddings=False,
    )


@functools.cache
def params_of(sizes: Sizes) -> Params:
    """The weights that every side starts from."""
    return jax.jit(model_of(sizes).init)(jax.random.key(0))


def save(sizes: Sizes, folder: Path) -> None:
    """Writes them as `transformers` reads them."""
    save_pretrained(folder, model_of(sizes), jax.device_get(params_of(sizes)))


def ids(sizes: Sizes, rows: int = 0) -> np.ndarray:
    """Random tokens `[B, T]`, or of more rows, int32."""
    rng = np.random.default_rng(0)
    return rng.integers(3, sizes.vocab, (rows or sizes.batch, sizes.length), dtype=np.int32)


def shifted(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The token that follows each, and the weight of its loss: the last has no follower."""
    targets = np.roll(tokens, -1, axis=-1)
    weight = np.ones(tokens.shape, np.float32)
    weight[..., -1] = 0
    return targets, weight


def language_step(sizes: Sizes, adapted: bool = False) -> LanguageStep:
    """What the step is, besides its arrays.

    All that the backward pass reads is kept, as PyTorch keeps it.
    """
    rule = update_rule("adamw", momentum=0.0, weight_decay=0.0)
    return LanguageStep(model_of(sizes), rule, clip_norm=0.0, adapted=adapted, recompute="none")


class Trains(NamedTuple):
    """Which blocks train: the first, how many; and both ends or none."""

    first: int
    blocks: int
    ends: tuple[str, ...] = ()


def trained(sizes: Sizes, way: str) -> tuple[str, ...]:
    """The names of what `full`, `block I` or `LoRA` trains, in the model's order."""
    chosen = trains(sizes, way)
    items = own_items(model_of(sizes), way == "LoRA")
    blocks = items[chosen.first : chosen.first + chosen.blocks]
    if chosen.ends:
        embed, head = chosen.ends
        return (embed, *blocks, head)
    return tuple(blocks)


def trains(sizes: Sizes, way: str) -> Trains:
    """What `full`, `block I` or `LoRA` trains."""
    if way.startswith("block"):
        number = int(way.removeprefix("block "))
        return Trains(number, 1)
    ends = ENDS if way == "full" else ()
    return Trains(0, sizes.blocks, ends)


def flops(sizes: Sizes, way: str) -> int:
    """FLOPs of a step as ours computes it.

    Logits are never kept, so the output matrix is run once more.
    """
    step = language_step(sizes, adapted=way == "LoRA")
    adapters = lora.Lora(sizes.rank) if step.adapted else None
    costs = row_costs(step.model, adapters, step.recompute, sizes.length)
    return passed_flops(costs, trained(sizes, way), Passed(sizes.length, sizes.batch))


class Step:
    """A compiled training step that owns its donated state; a call is a step on the same batch."""

    def __init__(self, sizes: Sizes, way: str) -> None:
        """Compiles.

        Args:
          sizes: of everything.
          way: see `trains`.
        """
        step = language_step(sizes, adapted=way == "LoRA")
        chosen = trains(sizes, way)
        params = params_of(sizes)
        base, own = _parts(sizes, step.adapted)

        # What trains, by its roles; copies, since every call gives its state away.
        stop = chosen.first + chosen.blocks
        blocks = own[chosen.first : stop]
        trainable = dict(zip(block_roles(len(blocks)), blocks, strict=True))
        trainable |= select(params, chosen.ends)
        trainable = jax.tree.map(jnp.copy, trainable)
        states = init_states(step.rule, trainable, tuple(trainable))
        self.state: tuple[Any, ...] = (trainable, states)

        # What does not, in stacks; one without blocks has their shapes all the same.
        rest = own[: chosen.first] + own[stop:]
        frozen_blocks = stack.FrozenBlocks(
            stack.stack_trees(base) if base else {},
            stack.stack_trees(rest) if rest else jax.tree.map(_no_blocks, own[0]),
            jnp.int32(chosen.first),
        )
        frozen_ends = {name: params[name] for name in ENDS if name not in chosen.ends}
        self.fixed: tuple[Any, ...] = (
            FrozenModel(frozen_blocks, frozen_ends),
            {},  # nothing to correct by
            rows(ids(sizes)),
            jax.random.key(0),
            jnp.float32(LEARNING_RATE),
        )
        function = compiling.jit(
            compiling.TEXT, train_step(step, tuple(trainable)), donate_argnums=(0, 1)
        )
        self.program = function.lower(*self.state, *self.fixed).compile()

    def __call__(self) -> Any:
        """Trains on."""
        *state, stats = self.program(*self.state, *self.fixed)
        self.state = tuple(state)
        return stats


def rows(tokens: np.ndarray) -> TextBatch:
    """Tokens `[B, T]` as one part of a batch."""
    targets, weight = shifted(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    parts = [jnp.asarray(part)[None] for part in (tokens, targets, weight, positions)]
    return TextBatch(*parts)


def _no_blocks(array: jax.Array) -> jax.Array:
    """A stack of none: `[0, ...]`."""
    return jnp.zeros((0, *array.shape), array.dtype)


def _parts(sizes: Sizes, adapted: bool) -> tuple[list[PyTree], list[PyTree]]:
    """The blocks' bases and own parts.

    With adapters the weights and these, without nothing and the weights.
    """
    params = params_of(sizes)
    blocks = [params[name] for name in own_items(model_of(sizes), False)]
    if not adapted:
        return [], blocks
    settings = lora.Lora(sizes.rank)
    keys = jax.random.split(jax.random.key(1), len(blocks))
    adapters = []
    for key, block in zip(keys, blocks, strict=True):
        adapters.append(lora.init(key, block, settings))
    return blocks, adapters
