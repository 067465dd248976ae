"""Families of decoders: what `config.json` calls their features, and what each has of its own.

A family is a table of configuration keys with the fields of `Architecture` that they set, the
fields that all its models share, and the keys of which only some values are known here: another
value makes another function, and is refused by its name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from snake_jax.errors import UserError
from snake_jax.models import settings
from snake_jax.models.architecture import NAMES, Architecture, Names, RopeScaling

_REQUIRED = object()
_FULL, _SLIDING = "full_attention", "sliding_attention"


class Key(NamedTuple):
    """A key of config.json that is a field of `Architecture`.

    Attributes:
      name: in config.json.
      field: in `Architecture`.
      default: where it is left out or null, as transformers has it.
      null: whether null is a value of its own.
    """

    name: str
    field: str
    default: Any = _REQUIRED
    null: bool = False


class Windows(NamedTuple):
    """Which layers of a family see a window only, where config.json does not list them.

    Attributes:
      which: `all`; those `above` a layer; or those `between` layers that see all.
      tokens: the window where config.json has none.
      period: the first layer `above`; or the distance of layers that see all.
    """

    which: str
    tokens: int | None
    period: int = 1


class Family(NamedTuple):
    """What architectures of one `model_type` have in common.

    Attributes:
      model_type: as config.json has it.
      hf_class: the class of transformers that loads it.
      keys: of config.json, each a field.
      bias_keys: keys that say which linear layers have biases, with the fields that they set.
      activation: the key of the activation, and its default.
      ids: special tokens where config.json does not name them: begin, end, padding.
      only: keys of which these values alone are known.
      has: fields that are alike in all models of the family.
      theta: base of the rotary frequencies where config.json has none; None: learnt positions.
      windows: which layers have one; None: none, whatever config.json says.
    """

    model_type: str
    hf_class: str
    keys: tuple[Key, ...]
    bias_keys: Mapping[str, tuple[str, ...]]
    activation: Key
    ids: tuple[int | None, int | None, int | None]
    only: Mapping[str, tuple[Any, ...]]
    has: Mapping[str, Any] = {}
    theta: float | None = 10000.0
    windows: Windows | None = None

    @property
    def names(self) -> Names:
        """What its tensors are called."""
        return NAMES[self.model_type]

    def read(self, config: settings.Config) -> Architecture:
        """The architecture that a `config.json` describes.

        Raises:
          UserError: a setting is missing or not supported.
        """
        for name, supported in self.only.items():
            settings.only(config, name, *supported)
        found = _plain(self, config)
        found |= _heads(self, config, found)
        if self.theta is not None:
            found |= _rope(self, config, found["max_position_embeddings"])
        if self.windows is not None:
            found |= _windows(self, config, found["num_hidden_layers"])
        return Architecture(family=self.model_type, **{**self.has, **found})

    def write(self, architecture: Architecture) -> dict[str, Any]:
        """What `config.json` says of it, in the form that transformers 4 and 5 both read."""
        config = {key.name: getattr(architecture, key.field) for key in self.keys}
        for name, biased in self.bias_keys.items():
            config[name] = getattr(architecture, biased[0])
        config[self.activation.name] = architecture.hidden_act
        if self.theta is not None:
            config |= _rope_config(self, architecture)
        if self.windows is not None:
            config |= _windows_config(self, architecture)
        for name, supported in self.only.items():
            if supported:
                config.setdefault(name, supported[0])

        eos = architecture.eos_token_id
        config["bos_token_id"] = architecture.bos_token_id
        config["eos_token_id"] = list(eos) if isinstance(eos, tuple) else eos
        config["pad_token_id"] = architecture.pad_token_id
        return config


def _plain(family: Family, config: settings.Config) -> dict[str, Any]:
    """Fields that are a key's value each."""
    found: dict[str, Any] = {}
    for key in family.keys:
        if key.default is _REQUIRED:
            found[key.field] = settings.required(config, key.name)
        elif key.null:
            found[key.field] = config.get(key.name, key.default)
        else:
            found[key.field] = settings.optional(config, key.name, key.default)
    for name, biased in family.bias_keys.items():
        has_bias = settings.optional(config, name, family.has.get(biased[0], False))
        found |= dict.fromkeys(biased, has_bias)
    found["hidden_act"] = settings.activation(
        config, family.activation.name, family.activation.default
    )

    # An id that is null is none; one that is left out is the family's.
    begin, end, padding = family.ids
    found["bos_token_id"] = config.get("bos_token_id", begin)
    found["eos_token_id"] = settings.token_ids(config, "eos_token_id", end)
    found["pad_token_id"] = config.get("pad_token_id", padding)
    return found


def _heads(family: Family, config: settings.Config, found: dict[str, Any]) -> dict[str, Any]:
    """Heads that fit: K key heads divide N query heads; H is what is said, or D / N."""
    named = {key.field: key.name for key in family.keys}
    heads, width = found["num_attention_heads"], found["hidden_size"]
    of_heads, of_width = named["num_attention_heads"], named["hidden_size"]
    key_heads = found.get("num_key_value_heads") or heads
    settings.divisible(config, of_heads, heads, "num_key_value_heads", key_heads)
    head_dim = found.get("head_dim")
    if head_dim is None:
        settings.divisible(config, of_width, width, of_heads, heads)
        head_dim = width // heads
    if family.theta is not None:
        settings.divisible(config, "head_dim", head_dim, "a pair", 2)
    sizes = {"num_key_value_heads": key_heads, "head_dim": head_dim}
    if found.get("intermediate_size") is None:
        sizes["intermediate_size"] = 4 * width
    return sizes


def _rope(family: Family, config: settings.Config, max_positions: int) -> dict[str, Any]:
    """Bases, scaling and share of the rotary frequencies.

    Transformers 5 keeps them in `rope_parameters`, by kind of layer where kinds differ; before they
    were `rope_theta`, `rope_local_base_freq` and `rope_scaling`.
    """
    before = settings.optional(config, "rope_scaling", {})
    rope = settings.optional(config, "rope_parameters", None) or before
    found: dict[str, Any] = {}
    if family.has.get("local_rope_theta") is not None:
        by_kind = {_FULL: rope, _SLIDING: {}}
        if _FULL in rope or _SLIDING in rope:
            by_kind |= rope
        local_before = config.get("rope_local_base_freq")
        local = settings.optional(by_kind, _SLIDING, {})
        settings.only(
            {"rope type of windows": local.get("rope_type")}, "rope type of windows", "default"
        )
        theta = settings.optional(local, "rope_theta", local_before)
        found["local_rope_theta"] = float(theta or family.has["local_rope_theta"])
        rope = settings.optional(by_kind, _FULL, {})
    theta_before = settings.optional(config, "rope_theta", family.theta)
    found["rope_theta"] = float(settings.optional(rope, "rope_theta", theta_before))

    # Rotating part of a head's dimensions only is another model, but where a family has that.
    partial = settings.optional(rope, "partial_rotary_factor", config.get("partial_rotary_factor"))
    if "rotary_share" in family.has:
        found["rotary_share"] = float(partial or 1.0)
    else:
        settings.only({"partial_rotary_factor": partial}, "partial_rotary_factor", 1)
    found["rope_scaling"] = _scaling(rope, max_positions)
    return found


def _scaling(rope: settings.Config, max_positions: int) -> RopeScaling | None:
    """How the frequencies are stretched."""
    kind_before = settings.optional(rope, "type", "default")
    kind = settings.optional(rope, "rope_type", kind_before)
    settings.only({"rope_scaling type": kind}, "rope_scaling type", "default", "linear", "llama3")
    if kind == "default":
        return None
    names = ["factor"]
    if kind == "llama3":
        names += ["low_freq_factor", "high_freq_factor"]
    lacking = [name for name in names if rope.get(name) is None]
    if lacking:
        raise UserError(f"config.json: rope scaling {kind} lacks {', '.join(lacking)}: complete it")
    factors = {name: float(rope[name]) for name in names}
    original = settings.optional(rope, "original_max_position_embeddings", max_positions)
    return RopeScaling(kind, **factors, original_max_position_embeddings=original)


def _rope_config(family: Family, architecture: Architecture) -> dict[str, Any]:
    """The rotary keys of config.json: a scaling with what its kind has."""
    config: dict[str, Any] = {"rope_theta": architecture.rope_theta, "rope_scaling": None}
    scaling = architecture.rope_scaling
    if scaling is not None:
        config["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            config["rope_scaling"] |= {name: getattr(scaling, name) for name in names}
    if architecture.local_rope_theta is not None:
        config["rope_local_base_freq"] = architecture.local_rope_theta
    if "rotary_share" in family.has:
        config["partial_rotary_factor"] = architecture.rotary_share
    return config


def _windows(family: Family, config: settings.Config, layers: int) -> dict[str, Any]:
    """The window, and which layers have it.

    Raises:
      UserError: `layer_types` is of another length, or has a kind that is not known.
    """
    rule = family.windows
    assert rule is not None
    if rule.which == "all":
        # Here null means that no layer has one.
        settings.only(config, "layer_types")
        return {"sliding_window": config.get("sliding_window", rule.tokens)}
    window = settings.optional(config, "sliding_window", rule.tokens)
    if rule.which == "above" and not config.get("use_sliding_window"):
        window = None

    # As each layer's kind says, else by the family's pattern.
    kinds = config.get("layer_types")
    if kinds is not None:
        for kind in kinds:
            settings.only({"layer_types": kind}, "layer_types", _FULL, _SLIDING)
        pattern = tuple(kind == _SLIDING for kind in kinds)
    elif rule.which == "above":
        first = settings.optional(config, "max_window_layers", rule.period)
        pattern = tuple(layer >= first for layer in range(layers))
    else:
        every = settings.optional(config, "sliding_window_pattern", rule.period)
        pattern = tuple((layer + 1) % every != 0 for layer in range(layers))
    if len(pattern) != layers:
        raise UserError(
            f"config.json: layer_types has {len(pattern)} entries for {layers} layers: give one "
            f"for each"
        )
    if window is None or not any(pattern):
        return {"sliding_window": None, "windowed": ()}
    return {"sliding_window": window, "windowed": pattern}


def _windows_config(family: Family, architecture: Architecture) -> dict[str, Any]:
    """The keys of windows in config.json, each layer's kind where kinds may differ."""
    config: dict[str, Any] = {"sliding_window": architecture.sliding_window}
    rule = family.windows
    if rule is None or rule.which == "all":
        return config
    if rule.which == "above":
        config["use_sliding_window"] = architecture.sliding_window is not None
    windowed = architecture.windowed or (False,) * architecture.num_hidden_layers
    config["layer_types"] = [_SLIDING if has_window else _FULL for has_window in windowed]
    return config


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
