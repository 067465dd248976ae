"""Families of decoders: what `config.json` calls their features, and what each has of its own."""

from snake_jax.models import settings
from snake_jax.models.architecture import Architecture
from snake_jax.models.family import Family, Key, Windows

_SIZES = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "hidden_size"),
    Key("intermediate_size", "intermediate_size"),
    Key("num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads"),
)
_BOTH_BIASES = {"attention_bias": ("qkv_bias", "output_bias")}
_ONLY = {"attention_dropout": (0.0,)}
_ONE_WAY = _ONLY | {"use_bidirectional_attention": (False,)}
_GEMMA_HAS = {"norm_offset": 1.0, "scaled_embedding": True, "score_divisor": 256.0}
_GELU = Key("hidden_activation", "hidden_act", "gelu_pytorch_tanh")
_SILU = Key("hidden_act", "hidden_act", "silu")


def _keys(
    key_heads: int | None, head_dim: int | None, positions: int, epsilon: float, tied: bool
) -> tuple[Key, ...]:
    """The keys of all that descends from Llama, with the defaults of one family."""
    return (
        *_SIZES,
        Key("num_key_value_heads", "num_key_value_heads", key_heads, null=True),
        Key("head_dim", "head_dim", head_dim),
        Key("max_position_embeddings", "max_position_embeddings", positions),
        Key("rms_norm_eps", "norm_epsilon", epsilon),
        Key("tie_word_embeddings", "tie_word_embeddings", tied),
        Key("initializer_range", "init_std", 0.02),
    )


_LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    keys=_keys(None, None, 2048, 1e-6, False),
    bias_keys=_BOTH_BIASES | {"mlp_bias": ("mlp_bias",)},
    activation=_SILU,
    ids=(1, 2, None),
    only=_ONLY,
)
_OPT = Family(
    "opt",
    "OPTForCausalLM",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("hidden_size", "hidden_size"),
        Key("num_hidden_layers", "num_hidden_layers"),
        Key("ffn_dim", "intermediate_size"),
        Key("num_attention_heads", "num_attention_heads"),
        Key("word_embed_proj_dim", "embedding_width", None),
        Key("max_position_embeddings", "max_position_embeddings", 2048),
        Key("do_layer_norm_before", "norm_in_branch", True),
        Key("_remove_final_layer_norm", "no_final_norm", False),
        Key("layer_norm_elementwise_affine", "norm_affine", True),
        Key("tie_word_embeddings", "tie_word_embeddings", True),
        Key("init_std", "init_std", 0.02),
    ),
    bias_keys={"enable_bias": ("qkv_bias", "output_bias", "mlp_bias")},
    activation=Key("activation_function", "hidden_act", "relu"),
    ids=(2, 2, 1),
    only=_ONLY | {"layerdrop": (0.0,)},
    # The first two rows of the table of positions belong to none.
    has={
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "gated": False,
        "rope_theta": None,
        "position_offset": 2,
        "qkv_bias": True,
    },
    theta=None,
)
_QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    keys=_keys(32, None, 32768, 1e-6, False),
    bias_keys={},
    activation=_SILU,
    ids=(None, None, None),
    only=_ONLY | {"use_mrope": (False,)},
    has={"qkv_bias": True},
    windows=Windows("above", 4096, 28),
)
_QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    keys=_keys(32, 128, 32768, 1e-6, False),
    bias_keys=_BOTH_BIASES,
    activation=_SILU,
    ids=(None, None, None),
    only=_ONLY,
    has={"query_key_norm": "head"},
    windows=Windows("above", 4096, 28),
)
_MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    keys=_keys(8, None, 4096 * 32, 1e-6, False),
    bias_keys={},
    activation=_SILU,
    ids=(1, 2, None),
    only=_ONLY,
    windows=Windows("all", 4096),
)
_GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    keys=(
        *_keys(4, 256, 8192, 1e-6, True),
        Key("query_pre_attn_scalar", "score_divisor", 256),
        Key("attn_logit_softcapping", "score_cap", 50.0, null=True),
        Key("final_logit_softcapping", "logit_cap", 30.0, null=True),
    ),
    bias_keys=_BOTH_BIASES,
    activation=_GELU,
    ids=(2, 1, 0),
    only=_ONE_WAY,
    has=_GEMMA_HAS,
    windows=Windows("between", 4096, 2),
)
_GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    keys=(
        *_keys(4, 256, 131072, 1e-6, True),
        Key("query_pre_attn_scalar", "score_divisor", 256),
        Key("final_logit_softcapping", "logit_cap", None, null=True),
    ),
    bias_keys=_BOTH_BIASES,
    activation=_GELU,
    ids=(2, 1, 0),
    # transformers reads a cap of scores and has no use for it: a model with one is another.
    only=_ONE_WAY | {"attn_logit_softcapping": ()},
    has=_GEMMA_HAS | {"query_key_norm": "head", "local_rope_theta": 10000.0},
    theta=1e6,
    windows=Windows("between", 4096, 6),
)
_PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    keys=_keys(None, None, 4096, 1e-5, False),
    bias_keys={},
    activation=_SILU,
    ids=(1, 32000, 32000),
    only=_ONLY,
    has={"rotary_share": 1.0},
    windows=Windows("all", None),
)
_GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("n_embd", "hidden_size"),
        Key("n_inner", "intermediate_size", None),
        Key("n_layer", "num_hidden_layers"),
        Key("n_head", "num_attention_heads"),
        Key("n_positions", "max_position_embeddings", 1024),
        Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Key("tie_word_embeddings", "tie_word_embeddings", True),
        Key("initializer_range", "init_std", 0.02),
    ),
    bias_keys={},
    activation=Key("activation_function", "hidden_act", "gelu_new"),
    ids=(50256, 50256, None),
    only={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    has={
        "norm": "layer",
        "gated": False,
        "rope_theta": None,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    theta=None,
)
_OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    keys=_keys(None, None, 2048, 1e-5, False),
    bias_keys=_BOTH_BIASES,
    activation=_SILU,
    ids=(None, 50279, 1),
    only=_ONLY,
    has={"query_key_norm": "all"},
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _LLAMA,
        _OPT,
        _QWEN2,
        _QWEN3,
        _MISTRAL,
        _GEMMA2,
        _GEMMA3,
        _PHI3,
        _GPT2,
        _OLMO2,
    )
}


def family_of(architecture: Architecture) -> Family:
    """The family that it is of."""
    return FAMILIES[architecture.family]


def read(config: settings.Config) -> Architecture:
    """The architecture that a `config.json` of a known `model_type` describes.

    Raises:
      UserError: a setting is missing or not supported.
    """
    return FAMILIES[config["model_type"]].read(config)
