"""BERT and RoBERTa: what `config.json` says, and the block.

"BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (arXiv
1810.04805, section 3) and "RoBERTa: A Robustly Optimized BERT Pretraining Approach" (arXiv
1907.11692, section 3). Both are one network; RoBERTa numbers positions from `pad_token_id + 1` and
has one kind of token where BERT tells two texts of a pair apart.
"""

from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snake_jax.kernels.dequantize import take_rows
from snake_jax.models import settings
from snake_jax.models.attention import Attend
from snake_jax.models.linear import ACTIVATIONS, Linear, PyTree, dropout, table_init


@dataclass(frozen=True)
class Bert:
    """A BERT or RoBERTa as its `config.json` describes it, under the names used there."""

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0

    @property
    def position_offset(self) -> int:
        """The row of the position table that belongs to a text's first token."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def max_positions(self) -> int:
        """Tokens a text may have."""
        return self.max_position_embeddings - self.position_offset


MODEL_TYPES = ("bert", "roberta")
HF_CLASSES = {"bert": "BertModel", "roberta": "RobertaModel"}
HF_MODULES = {
    ("embed", "tokens"): "embeddings.word_embeddings",
    ("embed", "positions"): "embeddings.position_embeddings",
    ("embed", "types"): "embeddings.token_type_embeddings",
    ("embed", "norm"): "embeddings.LayerNorm",
}
HF_BLOCK = "encoder.layer.{}"
# Beside the encoder: what a folder may hold for a task of its own, and buffers.
HF_BESIDE = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.", "embeddings.position_ids")
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


def from_config(config: settings.Config) -> Bert:
    """The architecture that a `config.json` describes.

    Raises:
      UserError: a setting is missing or not supported.
    """
    # What would make it another network: relative positions, a decoder's mask or cross-attention.
    settings.only(config, "position_embedding_type", "absolute")
    settings.only(config, "is_decoder", False)
    settings.only(config, "add_cross_attention", False)

    need = {name: settings.required(config, name) for name in _REQUIRED}
    width, heads = need["hidden_size"], need["num_attention_heads"]
    settings.divisible(config, "hidden_size", width, "num_attention_heads", heads)
    kind = str(config["model_type"])
    return Bert(
        model_type=kind,
        **need,
        max_position_embeddings=settings.optional(config, "max_position_embeddings", 512),
        type_vocab_size=settings.optional(config, "type_vocab_size", 2),
        hidden_act=settings.activation(config, "hidden_act", "gelu"),
        layer_norm_eps=settings.optional(config, "layer_norm_eps", 1e-12),
        initializer_range=settings.optional(config, "initializer_range", 0.02),
        pad_token_id=settings.optional(config, "pad_token_id", 1 if kind == "roberta" else 0),
    )


def to_config(bert: Bert) -> dict[str, Any]:
    """What `config.json` says of it."""
    config = {field.name: getattr(bert, field.name) for field in fields(Bert)}
    return config | {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


class SelfAttention(nn.Module):
    """Queries, keys and values of multi-head self-attention."""

    bert: Bert

    @nn.compact
    def __call__(self, x: jax.Array, attend: Attend) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps."""
        bert = self.bert
        batch, length, width = x.shape

        def heads(name: str) -> jax.Array:
            """`[B, T, N, H]`."""
            features = Linear(width, True, bert.initializer_range, name=name)(x)
            return features.reshape(batch, length, bert.num_attention_heads, -1)

        attended, state = attend(heads("query"), heads("key"), heads("value"))
        return attended.reshape(x.shape), state


class Output(nn.Module):
    """A branch's last product, added to what the branch began with, and normalised."""

    bert: Bert
    dropout: float

    @nn.compact
    def __call__(self, branch: jax.Array, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """`[B, T, D]`.

        Args:
          branch: `[B, T, F]`, of the branch.
          x: `[B, T, D]`, what the branch began with.
          key: for dropout; None: none.
        """
        bert = self.bert
        product = Linear(bert.hidden_size, True, bert.initializer_range, name="dense")(branch)
        total = x + dropout(product, self.dropout, key)
        return norm(bert, "LayerNorm")(total).astype(x.dtype)


class Attention(nn.Module):
    """Self-attention and its output, under the names that published weights have."""

    bert: Bert
    dropout: float

    @nn.compact
    def __call__(
        self, x: jax.Array, attend: Attend, key: jax.Array | None
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps."""
        attended, state = SelfAttention(self.bert, name="self")(x, attend)
        return Output(self.bert, self.dropout, name="output")(attended, x, key), state


class Intermediate(nn.Module):
    """The first half of the MLP."""

    bert: Bert

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, F]`."""
        bert = self.bert
        hidden = Linear(bert.intermediate_size, True, bert.initializer_range, name="dense")(x)
        return ACTIVATIONS[bert.hidden_act](hidden)


class Block(nn.Module):
    """One transformer block, norms after the residual sums."""

    architecture: Bert
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, attend: Attend, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps; dropout on both residual branches with a key."""
        bert = self.architecture
        keys = (None, None) if key is None else jax.random.split(key)
        x, state = Attention(bert, self.dropout, name="attention")(x, attend, keys[0])
        hidden = Intermediate(bert, name="intermediate")(x)
        return Output(bert, self.dropout, name="output")(hidden, x, keys[1]), state


def norm(bert: Bert, name: str | None = None) -> nn.LayerNorm:
    """Computed in float32 whatever the dtype of what it is given."""
    return nn.LayerNorm(bert.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name)


def init_embed(bert: Bert, key: jax.Array) -> PyTree:
    """Fresh `{"tokens": ..., "positions": ..., "types": ..., "norm": ...}`."""
    width, std = bert.hidden_size, bert.initializer_range
    keys = jax.random.split(key, 3)
    return {
        "tokens": table_init(keys[0], bert.vocab_size, width, std),
        "positions": table_init(keys[1], bert.max_position_embeddings, width, std),
        "types": table_init(keys[2], bert.type_vocab_size, width, std),
        "norm": {"scale": jnp.ones((width,)), "bias": jnp.zeros((width,))},
    }


def embed(
    bert: Bert,
    params: PyTree,
    ids: jax.Array,
    positions: jax.Array,
    types: jax.Array,
    dtype: jnp.dtype,
) -> jax.Array:
    """The sum of three tables' rows, normalised: `[B, T, D]`.

    Args:
      bert: the architecture.
      params: of the embedding.
      ids: `[B, T]`.
      positions: `[B, T]`, of each token within its text, from 0.
      types: `[B, T]`, which text of a pair; 0 for all of a single one.
      dtype: of the result.
    """
    rows = positions + bert.position_offset
    values = take_rows(params["tokens"]["embedding"], ids, dtype)
    values = values + take_rows(params["positions"]["embedding"], rows, dtype)
    values = values + take_rows(params["types"]["embedding"], types, dtype)
    normed = norm(bert).apply({"params": params["norm"]}, values)
    return jnp.asarray(normed).astype(dtype)
