"""Encoders of text as an ordered sequence of layers: embedding, blocks.

A token sees all tokens of its text, those after it too: what SCCT calls the small language model
(`snake_jax.scct`), and what BERT and RoBERTa are.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.config import pick
from snake_jax.errors import UserError
from snake_jax.models import bert
from snake_jax.models.attention import attend_both_ways
from snake_jax.models.bert import Bert
from snake_jax.models.language import Hidden, layer_names
from snake_jax.models.linear import PyTree
from snake_jax.params import Params


class Texts(NamedTuple):
    """Input of an encoder.

    Attributes:
      ids: `[B, T]` int32, padded at the end.
      lengths: `[B]` int32, tokens of each text that are no padding.
      types: `[B, T]` int32, which text of a pair a token is of; None: 0 for all.
    """

    ids: jax.Array
    lengths: jax.Array
    types: jax.Array | None = None


class Encoder(NamedTuple):
    """An ordered sequence of layers, as pure functions of parameters.

    Hashable and picklable, and equal where name, architecture and dropout are.

    Attributes:
      name: for people.
      architecture: what `config.json` says.
      dropout: rate on the residual branches wherever a block is given a key.
    """

    name: str
    architecture: Bert
    dropout: float

    @property
    def num_blocks(self) -> int:
        """How many blocks follow the embedding."""
        return self.architecture.num_hidden_layers

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The order: `embed`, `block_00`, ..."""
        # Named as those of a language model, which has a head beside.
        *without_head, _ = layer_names(self.num_blocks)
        return tuple(without_head)

    @property
    def width(self) -> int:
        """D, of the hidden states."""
        return self.architecture.hidden_size

    @property
    def max_positions(self) -> int:
        """Tokens a text may have."""
        return self.architecture.max_positions

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters `{"embed": ..., "block_00": ..., ...}` in float32.

        A layer's values depend on the key and its place in the order alone.
        """
        params: Params = {}
        for index, name in enumerate(self.layer_names):
            layer_key = jax.random.fold_in(key, index)
            if name == "embed":
                params[name] = bert.init_embed(self.architecture, layer_key)
            else:
                params[name] = _init_block(self.architecture, layer_key)
        return params

    def embed(self, params: PyTree, texts: Texts, dtype: jnp.dtype = jnp.float32) -> Hidden:
        """The embedding: values `[B, T, D]`; padding is segment 0, text segment 1.

        Raises:
          UserError: a row is longer than the model has positions.
        """
        batch, length = texts.ids.shape
        if length > self.max_positions:
            raise UserError(
                f"{length} tokens in a row, {self.name} has {self.max_positions} positions: cut "
                f"them"
            )
        row = jnp.arange(length, dtype=jnp.int32)
        positions = jnp.broadcast_to(row, (batch, length))
        is_text = positions < texts.lengths[:, None]
        # RoBERTa's padding has a row of the table to itself, the one before its first position.
        rows = jnp.where(is_text, positions, -1) if self._pads_positions else positions
        types = jnp.zeros_like(texts.ids) if texts.types is None else texts.types
        values = bert.embed(self.architecture, params, texts.ids, rows, types, dtype)
        return Hidden(values, positions, is_text.astype(jnp.int32))

    def block(self, weights: PyTree, hidden: Hidden, key: jax.Array | None = None) -> Hidden:
        """One block: values `[B, T, D]`.

        Args:
          weights: its subtree.
          hidden: its input.
          key: for dropout; None: none.
        """
        block = bert.Block(self.architecture, self.dropout)
        attend = attend_both_ways(hidden.segments)
        values, _ = block.apply({"params": weights}, hidden.values, attend, key)
        return hidden._replace(values=values)

    def apply(
        self,
        params: Params,
        x: Texts | Hidden,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        prepare: Callable[[PyTree], PyTree] = lambda subtree: subtree,
        key: jax.Array | None = None,
    ) -> Hidden:
        """Runs layers `start` to `stop` (exclusive; None: to the end) of the order.

        Args:
          params: at least the subtrees of these layers.
          x: Texts, or Hidden where `start` is above 0.
          start: first layer.
          stop: last layer but one.
          dtype: of the activations.
          prepare: turns a stored subtree into the one computed with (dequantization, casts).
          key: dropout; a layer draws from it by its place in the order, so any slicing draws the
            same.

        Returns:
          Values `[B, T, D]`.
        """
        names = self.layer_names
        for index in range(len(names))[start:stop]:
            name = names[index]
            if isinstance(x, Texts):
                x = self.embed(params[name], x, dtype)
                continue
            layer_key = None if key is None else jax.random.fold_in(key, index)
            x = self.block(prepare(params[name]), x, layer_key)
        assert isinstance(x, Hidden), "at least the embedding was run"
        return x

    @property
    def _pads_positions(self) -> bool:
        return self.architecture.model_type == "roberta"


@functools.partial(jax.jit, static_argnums=0)
def _init_block(architecture: Bert, key: jax.Array) -> PyTree:
    """Fresh weights of a block; blocks are alike, so that one compilation makes all."""
    x = jnp.zeros((1, 1, architecture.hidden_size))
    return bert.Block(architecture).lazy_init(key, x, attend_both_ways(None))["params"]


def _bert(hidden: int, blocks: int) -> Bert:
    """What published BERTs have in common: heads of 64, an MLP four times as wide."""
    return Bert(
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )


def _roberta(hidden: int, blocks: int) -> Bert:
    """What published RoBERTas have in common."""
    return Bert(
        model_type="roberta",
        vocab_size=50265,
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )


PRESETS: dict[str, Bert] = {
    "bert-tiny": _bert(128, 2),
    "bert-mini": _bert(256, 4),
    "bert-small": _bert(512, 4),
    "bert-medium": _bert(512, 8),
    "bert-base": _bert(768, 12),
    "bert-large": _bert(1024, 24),
    "roberta-base": _roberta(768, 12),
    "roberta-large": _roberta(1024, 24),
}


def encoder(name: str, *, dropout: float = 0.0) -> Encoder:
    """The encoder of a preset; its `init` gives random weights.

    Args:
      name: one of `PRESETS`.
      dropout: rate on the residual branches.

    Raises:
      UserError: no such preset.
    """
    return Encoder(name, PRESETS[pick("encoder", name, PRESETS)], dropout)
