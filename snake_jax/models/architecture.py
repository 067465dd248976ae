"""What a decoder is made of, as data: a table of features, and its names of tensors.

Architectures differ in few things: which norms there are and where, how positions enter, which
tokens a layer sees, and how a layer's matrices are called. `snake_jax.models.decoder` computes any
of them; `snake_jax.models.families` reads them from `config.json`.
"""

from dataclasses import dataclass
from typing import NamedTuple


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
class Architecture:
    """A decoder: L blocks of width D, N query heads and K key heads of H dimensions each.

    Attributes:
      family: one of `NAMES`, which is also the `model_type` of its config.json.
      vocab_size: V.
      hidden_size: D.
      intermediate_size: width between the matrices of the MLP.
      num_hidden_layers: L.
      num_attention_heads: N.
      num_key_value_heads: K, which divides N.
      head_dim: H.
      max_position_embeddings: tokens a text may have.
      norm: `rms` or `layer`.
      norm_epsilon: added to the variance.
      norm_offset: added to the stored scale of a norm (Gemma: 1).
      norm_affine: whether norms have parameters.
      norm_in_branch: whether a block's norms come in its branches; else after the residual sums,
        and then none follows the last block (OPT 350m).
      no_final_norm: whether none follows the last block in any case.
      query_key_norm: of queries and keys before they are turned: `head` (each head by itself),
        `all` (all heads together) or nothing.
      qkv_bias, output_bias, mlp_bias: which linear layers have biases.
      gated: whether the MLP is `down(act(gate(x)) * up(x))`; else `down(act(up(x)))`.
      hidden_act: its activation.
      rope_theta: base of the rotary frequencies; None: positions have a learnt table.
      rope_scaling: of those frequencies.
      rotary_share: of a head's dimensions, the first of which are turned.
      local_rope_theta: base in layers with a window, where it is another; these are not scaled.
      position_offset: rows at the beginning of the table that belong to no position.
      sliding_window: tokens that a token sees, itself included, in layers with a window; None: all.
      windowed: which layers have a window, one for each layer; empty: all.
      score_divisor: attention scores are divided by its root; None: by that of H.
      score_cap: scores are `cap * tanh(score / cap)`; None: as they are.
      logit_cap: logits likewise.
      scaled_embedding: whether a token's row is multiplied by the root of D.
      embedding_width: E of the token table, with a projection at each end where it is not D.
      tie_word_embeddings: whether the output matrix is the embedding's.
      init_std: of fresh weights.
      bos_token_id, eos_token_id, pad_token_id: special tokens; several may end a text.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: str = "rms"
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0
    norm_affine: bool = True
    norm_in_branch: bool = True
    no_final_norm: bool = False
    query_key_norm: str = ""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    hidden_act: str = "silu"
    rope_theta: float | None = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_share: float = 1.0
    local_rope_theta: float | None = None
    position_offset: int = 0
    sliding_window: int | None = None
    windowed: tuple[bool, ...] = ()
    score_divisor: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    scaled_embedding: bool = False
    embedding_width: int | None = None
    tie_word_embeddings: bool = False
    init_std: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def table_width(self) -> int:
        """E, of the embedding and output matrices `[V, E]`."""
        if self.embedding_width is None:
            return self.hidden_size
        return self.embedding_width

    @property
    def projects(self) -> bool:
        """Whether E is not D."""
        return self.table_width != self.hidden_size

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last block."""
        return self.norm_in_branch and not self.no_final_norm

    @property
    def alternates(self) -> bool:
        """Whether layers with a window and layers without take turns."""
        return self.sliding_window is not None and len(set(self.windowed)) == 2

    @property
    def names(self) -> "Names":
        """What its layers and tensors are called."""
        return NAMES[self.family]


class Names(NamedTuple):
    """What Hugging Face calls the modules of a family; "" where it has no such module.

    Inside a block they are the keys of the parameters too.

    Attributes:
      base: what a checkpoint of the bare model leaves out in front of names.
      block: of block {}.
      tokens, positions, project_in: of the embedding.
      norm, project_out, lm_head: of the head.
      attention: the module around query, key, value and output.
      query_key_value: their matrix, where the three are one.
      mlp: the module around gate, up and down.
      gate_up: their matrix, where the two are one.
      before_attention, after_attention, before_mlp, after_mlp: norms.
      transposed: whether linear layers are `[out, in]` in a checkpoint; GPT-2's are `[in, out]`.
    """

    base: str = "model."
    block: str = "model.layers.{}"
    tokens: str = "model.embed_tokens"
    positions: str = ""
    project_in: str = ""
    norm: str = "model.norm"
    project_out: str = ""
    lm_head: str = "lm_head"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    query_key_value: str = ""
    output: str = "o_proj"
    query_norm: str = "q_norm"
    key_norm: str = "k_norm"
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    gate_up: str = ""
    down: str = "down_proj"
    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str = ""
    transposed: bool = True


_LLAMA = Names()
_GEMMA = Names(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_OLMO2 = Names(
    before_attention="",
    after_attention="post_attention_layernorm",
    before_mlp="",
    after_mlp="post_feedforward_layernorm",
)
_OPT = Names(
    block="model.decoder.layers.{}",
    tokens="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    norm="model.decoder.final_layer_norm",
    project_out="model.decoder.project_out",
    output="out_proj",
    mlp="",
    up="fc1",
    down="fc2",
    before_attention="self_attn_layer_norm",
    before_mlp="final_layer_norm",
)
_GPT2 = Names(
    base="transformer.",
    block="transformer.h.{}",
    tokens="transformer.wte",
    positions="transformer.wpe",
    norm="transformer.ln_f",
    attention="attn",
    query_key_value="c_attn",
    output="c_proj",
    up="c_fc",
    down="c_proj",
    before_attention="ln_1",
    before_mlp="ln_2",
    transposed=False,
)
NAMES: dict[str, Names] = {
    "llama": _LLAMA,
    "opt": _OPT,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Names(query_key_value="qkv_proj", gate_up="gate_up_proj"),
    "gpt2": _GPT2,
    "olmo2": _OLMO2,
}
