"""Published sizes, and tiny ones for tests, with random weights."""

from typing import Any

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.models.architecture import Architecture
from snake_jax.models.families import family_of, read
from snake_jax.models.language import LanguageModel, build


def _sizes(model_type: str, vocab: int, hidden: int, inner: int, blocks: int) -> dict[str, Any]:
    """The sizes that all but OPT and GPT-2 call alike."""
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
    }


def _heads(query: int, key: int, width: int) -> dict[str, Any]:
    """N query heads and K key heads of H dimensions."""
    return {"num_attention_heads": query, "num_key_value_heads": key, "head_dim": width}


def _llama3(hidden: int, blocks: int, heads: int, inner: int, **settings: Any) -> Architecture:
    """What Llama 3 models have in common."""
    config = _sizes("llama", 128256, hidden, inner, blocks) | _heads(heads, 8, hidden // heads)
    config |= {
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
    return read(config | settings)


def _llama32(hidden: int, blocks: int, heads: int) -> Architecture:
    """What the small Llama 3.2 models have in common."""
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _llama3(
        hidden,
        blocks,
        heads,
        8192,
        max_position_embeddings=131072,
        rope_scaling=scaling,
        tie_word_embeddings=True,
    )


def _opt(hidden: int, blocks: int, heads: int, **settings: Any) -> Architecture:
    """What OPT models have in common."""
    config = {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
    }
    return read(config | settings)


def _qwen3(hidden: int, inner: int, blocks: int, heads: int) -> Architecture:
    """What the small Qwen3 models, tuned on conversations, have in common."""
    config = _sizes("qwen3", 151936, hidden, inner, blocks) | _heads(heads, 8, 128)
    config |= {
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    return read(config)


# Layers with a window of 512 tokens, and each sixth without. Its vocabulary is the 262,144 pieces
# of its tokenizer; that of the larger ones, which see images too, is padded past them.
_GEMMA_3_1B = (
    _sizes("gemma3_text", 262144, 1152, 6912, 26)
    | _heads(4, 1, 256)
    | {
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "eos_token_id": [1, 106],
    }
)
# The version 0.1, whose layers have a window each.
_MISTRAL_7B = (
    _sizes("mistral", 32000, 4096, 14336, 32)
    | _heads(32, 8, 128)
    | {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": 4096}
)
_PHI_3_MINI = (
    _sizes("phi3", 32064, 3072, 8192, 32)
    | _heads(32, 32, 96)
    | {"max_position_embeddings": 4096, "sliding_window": 2047}
)
_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
_SMOLLM2_135M = (
    _sizes("llama", 49152, 576, 1536, 30)
    | _heads(9, 3, 64)
    | {
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
)

# A byte tokenizer's 256 bytes and 3 special tokens, up to a multiple of 8.
_BYTE_VOCAB = 264
_TINY = {"max_position_embeddings": 512, "tie_word_embeddings": True}
_TINY_LLAMA = _sizes("llama", _BYTE_VOCAB, 64, 192, 4) | _heads(4, 2, 16) | _TINY
_TINY_QWEN3 = _sizes("qwen3", _BYTE_VOCAB, 64, 192, 4) | _heads(4, 2, 16) | _TINY
# Half of the layers see 16 tokens only.
_TINY_GEMMA3 = (
    _sizes("gemma3_text", _BYTE_VOCAB, 64, 192, 4)
    | _heads(4, 1, 16)
    | _TINY
    | {"query_pre_attn_scalar": 16, "sliding_window": 16, "sliding_window_pattern": 2}
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
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32),
    "gemma-3-1b": read(_GEMMA_3_1B),
    "mistral-7b": read(_MISTRAL_7B),
    "phi-3-mini": read(_PHI_3_MINI),
    "gpt2": read(_GPT2),
    "smollm2-135m": read(_SMOLLM2_135M),
    "tiny-llama": read(_TINY_LLAMA),
    "tiny-opt": _opt(64, 4, 4, vocab_size=_BYTE_VOCAB, max_position_embeddings=512),
    "tiny-qwen3": read(_TINY_QWEN3),
    "tiny-gemma3": read(_TINY_GEMMA3),
}


def from_preset(name: str, *, dropout: float = 0.0, **overrides: Any) -> LanguageModel:
    """The model of a preset; its `init` gives random weights.

    Args:
      name: one of `PRESETS`.
      dropout: rate on the residual branches.
      **overrides: keys of its config.json to change: `vocab_size=512`, `num_hidden_layers=2`.

    Raises:
      UserError: no such preset, or no such key.
    """
    architecture = PRESETS[pick("model", name, PRESETS)]
    family = family_of(architecture)
    config = family.write(architecture)
    unknown = [key for key in overrides if key not in config]
    if unknown:
        raise UserError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(config)}")

    # Of another number of layers, the first so many: their kinds may be listed.
    layers = overrides.get("num_hidden_layers")
    if layers is not None and "layer_types" in config and "layer_types" not in overrides:
        config["layer_types"] = config["layer_types"][:layers]
    config |= {"model_type": family.model_type} | overrides
    return build(read(config), dropout=dropout, name=name)
