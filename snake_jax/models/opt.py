"""OPT of all published sizes: what `config.json` says, and the block.

"OPT: Open Pre-trained Transformer Language Models" (arXiv 2205.01068, section 2.1). 350m alone
normalises after attention and MLP, and its token table is narrower than its blocks, with a
projection at each end.
"""

from dataclasses import dataclass, fields
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from snake_jax.kernels.dequantize import dense, take_rows
from snake_jax.models import settings
from snake_jax.models.attention import Attend
from snake_jax.models.linear import ACTIVATIONS, Linear, PyTree, dropout, table_init
from snake_jax.models.serial import adapted

POSITION_OFFSET = 2  # the position table's first rows belong to no position
_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Opt:
    """An OPT as its `config.json` describes it, under the names used there."""

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    num_attention_heads: int = 12
    word_embed_proj_dim: int | None = None
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = False
    activation_function: str = "relu"
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True
    init_std: float = 0.02
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = 1

    @property
    def table_width(self) -> int:
        """E, of the embedding and output matrices `[V, E]`."""
        if self.word_embed_proj_dim is None:
            return self.hidden_size
        return self.word_embed_proj_dim

    @property
    def num_key_value_heads(self) -> int:
        """As many as query heads."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """H."""
        return self.hidden_size // self.num_attention_heads

    @property
    def projects(self) -> bool:
        """Whether E is not D."""
        return self.table_width != self.hidden_size

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last block."""
        return self.do_layer_norm_before and not self.remove_final_layer_norm


MODEL_TYPE = "opt"
HF_CLASS = "OPTForCausalLM"
HF_MODULES = {
    ("embed", "tokens"): "model.decoder.embed_tokens",
    ("embed", "positions"): "model.decoder.embed_positions",
    ("embed", "project_in"): "model.decoder.project_in",
    ("head", "norm"): "model.decoder.final_layer_norm",
    ("head", "project_out"): "model.decoder.project_out",
    ("head", "lm_head"): "lm_head",
}
HF_BLOCK = "model.decoder.layers.{}"
_OPTIONAL = (
    "word_embed_proj_dim",
    "max_position_embeddings",
    "do_layer_norm_before",
    "enable_bias",
    "layer_norm_elementwise_affine",
    "tie_word_embeddings",
    "init_std",
)
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "ffn_dim", "num_attention_heads")


def from_config(config: settings.Config) -> Opt:
    """The architecture that a `config.json` describes.

    Raises:
      UserError: a setting is missing or not supported.
    """
    settings.only(config, "attention_dropout", 0)
    settings.only(config, "layerdrop", 0)
    need = {name: settings.required(config, name) for name in _REQUIRED}
    width = need["hidden_size"]
    heads = need["num_attention_heads"]
    settings.divisible(config, "hidden_size", width, "num_attention_heads", heads)

    # What is left out or null has its default.
    given = {name: config[name] for name in _OPTIONAL if config.get(name) is not None}
    return Opt(
        **need,
        **given,
        remove_final_layer_norm=settings.optional(config, "_remove_final_layer_norm", False),
        activation_function=settings.activation(config, "activation_function", "relu"),
        bos_token_id=config.get("bos_token_id", 2),
        eos_token_id=settings.token_ids(config, "eos_token_id", 2),
        pad_token_id=config.get("pad_token_id", 1),
    )


def to_config(opt: Opt) -> dict[str, Any]:
    """What `config.json` says of it."""
    config = {field.name: getattr(opt, field.name) for field in fields(Opt)}
    if isinstance(opt.eos_token_id, tuple):
        config["eos_token_id"] = list(opt.eos_token_id)
    config["word_embed_proj_dim"] = opt.table_width
    config["_remove_final_layer_norm"] = config.pop("remove_final_layer_norm")
    config["attention_dropout"] = 0.0
    config["layerdrop"] = 0.0
    return config


class Attention(nn.Module):
    """Multi-head self-attention; positions were added to the embedding."""

    opt: Opt

    @nn.compact
    def __call__(self, x: jax.Array, attend: Attend) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps."""
        opt = self.opt
        batch, length, _ = x.shape

        def linear(name: str, x: jax.Array) -> jax.Array:
            return Linear(opt.hidden_size, opt.enable_bias, opt.init_std, name=name)(x)

        def heads(name: str) -> jax.Array:
            """`[B, T, N, H]`."""
            return linear(name, x).reshape(batch, length, opt.num_attention_heads, -1)

        # N heads of H = D / N dimensions, and back to `[B, T, D]`.
        attended, state = attend(heads("q_proj"), heads("k_proj"), heads("v_proj"))
        merged = attended.reshape(x.shape)
        return linear("out_proj", merged), state


class Block(nn.Module):
    """One transformer block.

    The norms come before attention and MLP, or (350m) after the residual sums.
    """

    architecture: Opt
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Attend, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps; dropout on both residual branches with a key."""
        opt = self.architecture
        keys = (None, None) if key is None else jax.random.split(key)

        # x + attention(norm(x)), or norm(x + attention(x)); the same with the MLP.
        normed = self._before("self_attn_layer_norm", x)
        attended, state = Attention(opt, name="self_attn")(normed, attend)
        x = x + adapted(self, "attention", dropout(attended, self.dropout, keys[0]))
        x = self._after("self_attn_layer_norm", x)

        normed = self._before("final_layer_norm", x)
        hidden = self._mlp(normed)
        x = x + adapted(self, "mlp", dropout(hidden, self.dropout, keys[1]))
        return self._after("final_layer_norm", x), state

    def _mlp(self, x: jax.Array) -> jax.Array:
        """`fc2(act(fc1(x)))`: `[B, T, D]` to `[B, T, D]`."""
        opt = self.architecture
        hidden = Linear(opt.ffn_dim, opt.enable_bias, opt.init_std, name="fc1")(x)
        hidden = ACTIVATIONS[opt.activation_function](hidden)
        return Linear(opt.hidden_size, opt.enable_bias, opt.init_std, name="fc2")(hidden)

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        """The norm of this name, where it comes before its branch."""
        if not self.architecture.do_layer_norm_before:
            return x
        return _norm(self.architecture, name)(x).astype(x.dtype)

    def _after(self, name: str, x: jax.Array) -> jax.Array:
        """The norm of this name, where it comes after the residual sum."""
        if self.architecture.do_layer_norm_before:
            return x
        return _norm(self.architecture, name)(x).astype(x.dtype)


def _norm(opt: Opt, name: str | None = None) -> nn.LayerNorm:
    """Computed in float32 whatever the dtype of what it is given."""
    affine = opt.layer_norm_elementwise_affine
    return nn.LayerNorm(
        _NORM_EPSILON,
        use_scale=affine,
        use_bias=affine,
        dtype=jnp.float32,
        use_fast_variance=False,
        name=name,
    )


def init_embed(opt: Opt, key: jax.Array) -> PyTree:
    """Fresh `{"tokens": ..., "positions": ..., "project_in": ...}`, the last where E is not D."""
    keys = jax.random.split(key, 3)
    rows = opt.max_position_embeddings + POSITION_OFFSET
    params: PyTree = {
        "tokens": table_init(keys[0], opt.vocab_size, opt.table_width, opt.init_std),
        "positions": table_init(keys[1], rows, opt.hidden_size, opt.init_std),
    }
    if opt.projects:
        shape = (opt.table_width, opt.hidden_size)
        params["project_in"] = {"kernel": opt.init_std * jax.random.normal(keys[2], shape)}
    return params


def init_head(opt: Opt, key: jax.Array) -> PyTree:
    """Fresh `{"norm": ..., "project_out": ..., "lm_head": ...}`: what of these there is."""
    keys = jax.random.split(key)
    head: PyTree = {}
    if opt.has_final_norm and opt.layer_norm_elementwise_affine:
        head["norm"] = {
            "scale": jnp.ones((opt.hidden_size,)),
            "bias": jnp.zeros((opt.hidden_size,)),
        }
    if opt.projects:
        shape = (opt.hidden_size, opt.table_width)
        head["project_out"] = {"kernel": opt.init_std * jax.random.normal(keys[0], shape)}
    if not opt.tie_word_embeddings:
        head["lm_head"] = table_init(keys[1], opt.vocab_size, opt.table_width, opt.init_std)
    return head


def embed(
    opt: Opt, params: PyTree, ids: jax.Array, positions: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """`[B, T]` ids and positions to `[B, T, D]`."""
    # A token's row, E wide, as wide as the blocks; positions have a row that wide.
    values = take_rows(params["tokens"]["embedding"], ids, dtype)
    if opt.projects:
        kernel = dense(params["project_in"]["kernel"], dtype)
        values = values @ kernel
    rows = positions + POSITION_OFFSET
    of_positions = take_rows(params["positions"]["embedding"], rows, dtype)
    return values + of_positions


def finish(opt: Opt, params: PyTree, values: jax.Array) -> jax.Array:
    """`[B, T, D]` to what the output matrix multiplies, `[B, T, E]`."""
    if opt.has_final_norm:
        # A norm without scale and bias has no parameters.
        weights = {"params": params.get("norm", {})}
        normed = cast(jax.Array, _norm(opt).apply(weights, values))
        values = normed.astype(values.dtype)
    if opt.projects:
        kernel = params["project_out"]["kernel"].astype(values.dtype)
        values = values @ kernel
    return values
