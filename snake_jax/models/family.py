"""What a family of decoders is, and how its architectures are read from `config.json` and written.

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
