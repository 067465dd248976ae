"""Llama 1 to 3.x: what `config.json` says, and the block.

"LLaMA: Open and Efficient Foundation Language Models" (arXiv 2302.13971, section 2.2);
grouped-query attention as of Llama 2 (arXiv 2307.09288, section 2.2), rope scaling as of Llama 3.1.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import take_rows
from snake_jax.models import settings
from snake_jax.models.attention import Attend, rotate
from snake_jax.models.linear import ACTIVATIONS, Linear, PyTree, dropout, table_init
from snake_jax.models.serial import adapted


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pretraining.

    Attributes:
      kind: `linear` or `llama3`.
      factor: by which low frequencies (linear: all) are divided.
      low_freq_factor, high_freq_factor: llama3 blends between as many turns within the original
        length.
      original_max_position_embeddings: that length.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class Llama:
    """A Llama as its `config.json` describes it, under the names used there."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    @property
    def table_width(self) -> int:
        """E, of the embedding and output matrices `[V, E]`."""
        return self.hidden_size


MODEL_TYPE = "llama"
HF_CLASS = "LlamaForCausalLM"
# Where Hugging Face keeps the modules outside the blocks, and the blocks.
HF_MODULES = {
    ("embed", "tokens"): "model.embed_tokens",
    ("head", "norm"): "model.norm",
    ("head", "lm_head"): "lm_head",
}
HF_BLOCK = "model.layers.{}"


def from_config(config: settings.Config) -> Llama:
    """The architecture that a `config.json` describes.

    Raises:
      UserError: a setting is missing or not supported.
    """
    settings.only(config, "attention_dropout", 0)
    hidden_size = settings.required(config, "hidden_size")
    heads = settings.required(config, "num_attention_heads")
    intermediate_size = settings.required(config, "intermediate_size")

    # Attention heads: K key heads divide N query heads, and rotary positions turn pairs of a head's
    # dimensions.
    kv_heads = settings.optional(config, "num_key_value_heads", heads)
    settings.divisible(config, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
    if config.get("head_dim") is None:
        settings.divisible(config, "hidden_size", hidden_size, "num_attention_heads", heads)
    head_dim = settings.optional(config, "head_dim", hidden_size // heads)
    settings.divisible(config, "head_dim", head_dim, "a pair", 2)

    max_positions = settings.optional(config, "max_position_embeddings", 2048)
    theta, scaling = _rope(config, max_positions)
    return Llama(
        vocab_size=settings.required(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=settings.required(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rms_norm_eps=settings.optional(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        hidden_act=settings.activation(config, "hidden_act", "silu"),
        attention_bias=settings.optional(config, "attention_bias", False),
        mlp_bias=settings.optional(config, "mlp_bias", False),
        tie_word_embeddings=settings.optional(config, "tie_word_embeddings", False),
        initializer_range=settings.optional(config, "initializer_range", 0.02),
        bos_token_id=config.get("bos_token_id", 1),
        eos_token_id=settings.token_ids(config, "eos_token_id", 2),
        pad_token_id=config.get("pad_token_id"),
    )


def _rope(config: settings.Config, max_positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies.

    Transformers 5 keeps both in `rope_parameters`; before they were `rope_theta` and
    `rope_scaling`.
    """
    before = settings.optional(config, "rope_scaling", {})
    rope = settings.optional(config, "rope_parameters", None) or before
    theta_before = settings.optional(config, "rope_theta", 10000.0)
    theta = float(settings.optional(rope, "rope_theta", theta_before))

    # Rotating part of a head's dimensions only is another model.
    partial = settings.optional(rope, "partial_rotary_factor", config.get("partial_rotary_factor"))
    settings.only({"partial_rotary_factor": partial}, "partial_rotary_factor", 1)
    kind_before = settings.optional(rope, "type", "default")
    kind = settings.optional(rope, "rope_type", kind_before)
    settings.only({"rope_scaling type": kind}, "rope_scaling type", "default", "linear", "llama3")
    if kind == "default":
        return theta, None

    names = ["factor"]
    if kind == "llama3":
        names += ["low_freq_factor", "high_freq_factor"]
    lacking = [name for name in names if rope.get(name) is None]
    if lacking:
        raise UserError(f"config.json: rope scaling {kind} lacks {', '.join(lacking)}: complete it")
    factors = {name: float(rope[name]) for name in names}
    original = settings.optional(rope, "original_max_position_embeddings", max_positions)
    return theta, RopeScaling(kind, **factors, original_max_position_embeddings=original)


def to_config(llama: Llama) -> dict[str, Any]:
    """What `config.json` says of it, in the form that transformers 4 and 5 both read."""
    config = {field.name: getattr(llama, field.name) for field in fields(Llama)}
    # At the end, and as JSON has them.
    eos = config.pop("eos_token_id")
    scaling = config.pop("rope_scaling")
    if isinstance(eos, tuple):
        eos = list(eos)
    if scaling is not None:
        scaling = _scaling_config(scaling)
    return config | {"eos_token_id": eos, "rope_scaling": scaling}


def _scaling_config(scaling: RopeScaling) -> dict[str, Any]:
    """`rope_scaling` of `config.json`: what its kind has."""
    config: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        config |= {name: getattr(scaling, name) for name in names}
    return config


def rope_frequencies(llama: Llama) -> np.ndarray:
    """Radians a position turns each pair of dimensions by: `[H / 2]` float32.

    Pair i turns by theta^(-2 i / H). Llama 3.1's scaling leaves frequencies that turn more than
    `high_freq_factor` times within the original length, divides those that turn less than
    `low_freq_factor` times, and blends between (the reference implementation of
    meta-llama/llama-models, `apply_scaling`).
    """
    # In float32 throughout, as the reference computes them.
    even = np.arange(0, llama.head_dim, 2, dtype=np.float32)
    exponents = even / np.float32(llama.head_dim)
    powers = np.float32(llama.rope_theta) ** exponents
    frequencies = (1 / powers).astype(np.float32)
    scaling = llama.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)

    # How many whole turns a pair makes within the original length, and from that how much of its
    # frequency is left as it is: 0 at low_freq_factor turns and below, 1 at high_freq_factor.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    blend = (turns - scaling.low_freq_factor) / width
    kept = np.clip(blend, 0, 1)
    scaled = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    return scaled.astype(np.float32)


class Attention(nn.Module):
    """Self-attention with rotary positions and K key heads for N query heads."""

    llama: Llama

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Attend
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps."""
        llama = self.llama
        frequencies = rope_frequencies(llama)
        batch, length, _ = x.shape

        def linear(name: str, features: int) -> Linear:
            return Linear(features, llama.attention_bias, llama.initializer_range, name=name)

        def heads(name: str, count: int) -> jax.Array:
            features = linear(name, count * llama.head_dim)(x)
            return features.reshape(batch, length, count, llama.head_dim)

        # Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`. Positions turn queries and keys,
        # so that their products depend on how far apart two tokens are.
        query = rotate(heads("q_proj", llama.num_attention_heads), positions, frequencies)
        key = rotate(heads("k_proj", llama.num_key_value_heads), positions, frequencies)
        value = heads("v_proj", llama.num_key_value_heads)
        attended, state = attend(query, key, value)

        # `[B, T, N * H]`, and back to `[B, T, D]`.
        merged = attended.reshape(batch, length, -1)
        return linear("o_proj", llama.hidden_size)(merged), state


class Mlp(nn.Module):
    """The gated MLP: `down(act(gate(x)) * up(x))`."""

    llama: Llama

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, D]`."""
        llama = self.llama

        def linear(name: str, features: int) -> Linear:
            return Linear(features, llama.mlp_bias, llama.initializer_range, name=name)

        activation = ACTIVATIONS[llama.hidden_act]
        gate = activation(linear("gate_proj", llama.intermediate_size)(x))
        up = linear("up_proj", llama.intermediate_size)(x)
        return linear("down_proj", llama.hidden_size)(gate * up)


class Block(nn.Module):
    """One transformer block, norms before attention and MLP."""

    architecture: Llama
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Attend, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps; dropout on both residual branches with a key."""
        llama = self.architecture
        keys = (None, None) if key is None else jax.random.split(key)

        # x + attention(norm(x)), then x + mlp(norm(x)).
        normed = self._norm("input_layernorm", x)
        attended, state = Attention(llama, name="self_attn")(normed, positions, attend)
        x = x + adapted(self, "attention", dropout(attended, self.dropout, keys[0]))

        normed = self._norm("post_attention_layernorm", x)
        hidden = Mlp(llama, name="mlp")(normed)
        return x + adapted(self, "mlp", dropout(hidden, self.dropout, keys[1])), state

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return _norm(self.architecture, name)(x).astype(x.dtype)


def _norm(llama: Llama, name: str | None = None) -> nn.RMSNorm:
    """Computed in float32 whatever the dtype of what it is given."""
    return nn.RMSNorm(llama.rms_norm_eps, dtype=jnp.float32, name=name)


def init_embed(llama: Llama, key: jax.Array) -> PyTree:
    """Fresh `{"tokens": ...}`."""
    return {"tokens": table_init(key, llama.vocab_size, llama.hidden_size, llama.initializer_range)}


def init_head(llama: Llama, key: jax.Array) -> PyTree:
    """Fresh `{"norm": ..., "lm_head": ...}`, the latter where not tied."""
    head: PyTree = {"norm": {"scale": jnp.ones((llama.hidden_size,))}}
    if not llama.tie_word_embeddings:
        head["lm_head"] = table_init(
            key, llama.vocab_size, llama.hidden_size, llama.initializer_range
        )
    return head


def embed(
    llama: Llama, params: PyTree, ids: jax.Array, positions: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """`[B, T]` ids to `[B, T, D]`; positions enter in the blocks."""
    return take_rows(params["tokens"]["embedding"], ids, dtype)


def finish(llama: Llama, params: PyTree, values: jax.Array) -> jax.Array:
    """`[B, T, D]` to what the output matrix multiplies, `[B, T, E]`."""
    normed = cast(jax.Array, _norm(llama).apply({"params": params["norm"]}, values))
    return normed.astype(values.dtype)
