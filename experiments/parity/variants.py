"""Small random models of every architecture in PyTorch: what ours are compared with.

Weights, biases and norms are all random, so that none can be left out unseen.
"""

from typing import Any

import numpy as np

VOCAB, ROWS, LENGTH = 40, 2, 24

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "max_position_embeddings": 48,
}
_LLAMA = _COMMON | {
    "model_type": "llama",
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
}
_OPT = _COMMON | {
    "model_type": "opt",
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 16,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Texts are 24 tokens long: longer than every window here.
_WIDE = _LLAMA | {"num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 3}
_GEMMA = _WIDE | {
    "query_pre_attn_scalar": 5,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": True,
    "final_logit_softcapping": 6.0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 7,
}
_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 48,
    "n_inner": 24,
    "bos_token_id": 39,
    "eos_token_id": 39,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama_mha": _LLAMA,
    "llama_gqa_tied": _LLAMA
    | {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "llama_bias": _LLAMA
    | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "num_key_value_heads": 1},
    "llama_rope_llama3": _LLAMA | {"head_dim": 12, "rope_parameters": _LLAMA3_ROPE},
    "llama_rope_linear": _LLAMA
    | {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        "tie_word_embeddings": True,
    },
    "opt_pre_norm": _OPT,
    "opt_untied": _OPT | {"tie_word_embeddings": False, "activation_function": "gelu_new"},
    "opt_post_norm_projected": _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8},
    "opt_no_final_norm": _OPT | {"_remove_final_layer_norm": True, "activation_function": "gelu"},
    "opt_bare": _OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False},
    "qwen2": _WIDE
    | {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": _WIDE | {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True},
    "mistral": _WIDE | {"model_type": "mistral", "sliding_window": 6},
    "gemma2": _GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 2.0},
    "gemma3": _GEMMA
    | {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": _LINEAR_ROPE,
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "phi3": _WIDE
    | {
        "model_type": "phi3",
        "sliding_window": 9,
        "pad_token_id": 0,
        "eos_token_id": [3, 4],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "gpt2": _GPT2,
    "olmo2": _WIDE
    | {"model_type": "olmo2", "attention_bias": True, "pad_token_id": 0, "eos_token_id": 3},
}
# One variant of each family that came after the first two.
NEWER = ("qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt2", "olmo2")


def torch_model(variant: str, seed: int) -> Any:
    """The variant in transformers, every parameter random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**VARIANTS[variant])
    # The definition itself: faster attention leaves out caps of scores.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    # Scales of norms lie around 1; Gemma stores how far they are off it.
    scale_of_norm = 0.0 if "gemma" in variant else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            middle = scale_of_norm if is_scale else 0.0
            parameter.copy_(middle + 0.3 * torch.randn_like(parameter))
    return model


def torch_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits `[B, T, V]` of ids `[B, T]`."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))).logits.float().numpy()


def random_ids(seed: int) -> np.ndarray:
    """`[B, T]` int32."""
    return np.random.default_rng(seed).integers(VOCAB, size=(ROWS, LENGTH), dtype=np.int32)
