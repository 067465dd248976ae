"""Published sizes, and tiny ones for tests, with random weights."""

from dataclasses import fields, replace
from typing import Any

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.models.language import Architecture, LanguageModel, build
from snake_jax.models.llama import Llama, RopeScaling
from snake_jax.models.opt import Opt


def _llama3(hidden: int, blocks: int, heads: int, intermediate: int, **settings: Any) -> Llama:
    """What Llama 3 models have in common."""
    return Llama(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        bos_token_id=128000,
        eos_token_id=128001,
        **settings,
    )


def _llama32(hidden: int, blocks: int, heads: int) -> Llama:
    """What the small Llama 3.2 models have in common."""
    return _llama3(
        hidden,
        blocks,
        heads,
        8192,
        max_position_embeddings=131072,
        rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        tie_word_embeddings=True,
    )


def _opt(hidden: int, blocks: int, heads: int, **settings: Any) -> Opt:
    """What OPT models have in common."""
    return Opt(
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        **settings,
    )


# A byte tokenizer's 256 bytes and 3 special tokens, up to a multiple of 8.
_BYTE_VOCAB = 264
_TINY_LLAMA = Llama(
    vocab_size=_BYTE_VOCAB,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)

PRESETS: dict[str, Architecture] = {
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "llama-3-8b": _llama3(4096, 32, 32, 14336, max_position_embeddings=8192),
    "llama-3.2-1b": _llama32(2048, 16, 32),
    "llama-3.2-3b": _llama32(3072, 28, 24),
    "tiny-llama": _TINY_LLAMA,
    "tiny-opt": _opt(64, 4, 4, vocab_size=_BYTE_VOCAB, max_position_embeddings=512),
}


def from_preset(name: str, *, dropout: float = 0.0, **overrides: Any) -> LanguageModel:
    """The model of a preset; its `init` gives random weights.

    Args:
      name: one of `PRESETS`.
      dropout: rate on the residual branches.
      **overrides: fields of the architecture to change: `vocab_size=512`, `num_hidden_layers=2`.

    Raises:
      UserError: no such preset, or no such field.
    """
    architecture = PRESETS[pick("model", name, PRESETS)]
    known = [field.name for field in fields(architecture)]
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise UserError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    return build(replace(architecture, **overrides), dropout=dropout, name=name)
