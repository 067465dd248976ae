"""Language models as an ordered sequence of layers: embedding, blocks, head.

What `snake_jax.models.layered.LayeredModel` is to images, with two differences: positions and
segments pass between layers beside the values, and the output matrix may be the embedding's.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.errors import UserError
from snake_jax.kernels.dequantize import dense
from snake_jax.models import decoder
from snake_jax.models.architecture import Architecture
from snake_jax.models.attention import Attend, attend_causally
from snake_jax.models.decoder import Place
from snake_jax.models.linear import PyTree
from snake_jax.models.serial import SERIAL
from snake_jax.params import Params


class Tokens(NamedTuple):
    """Input of a language model.

    Attributes:
      ids: `[B, T]` int32.
      positions: `[B, T]` int32, within its segment, from 0.
      segments: `[B, T]` int32; attention stays inside a segment, 0 is padding; None: each row is
        one text.
    """

    ids: jax.Array
    positions: jax.Array
    segments: jax.Array | None = None


class Hidden(NamedTuple):
    """What passes between blocks.

    Attributes:
      values: `[B, T, D]`, in the dtype computed with.
      positions: as in `Tokens`.
      segments: as in `Tokens`.
    """

    values: jax.Array
    positions: jax.Array
    segments: jax.Array | None = None


class LanguageModel(NamedTuple):
    """An ordered sequence of layers, as pure functions of parameters.

    Hashable and picklable, and equal where name, architecture and dropout are.

    Attributes:
      name: for people.
      architecture: what `config.json` says.
      dropout: rate on the residual branches wherever a block is given a key.
    """

    name: str
    architecture: Architecture
    dropout: float

    @property
    def num_blocks(self) -> int:
        """How many blocks lie between embedding and head."""
        return self.architecture.num_hidden_layers

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The order."""
        return layer_names(self.num_blocks)

    def output_sizes(self) -> tuple[int, ...]:
        """Numbers in each layer's output for one token; the head's are its logits."""
        width = self.architecture.hidden_size
        inner = [width for _ in self.layer_names[:-1]]
        return (*inner, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.architecture.vocab_size

    @property
    def max_positions(self) -> int:
        """Tokens a text may have."""
        return self.architecture.max_position_embeddings

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding's."""
        return self.architecture.tie_word_embeddings

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ends = self.architecture.eos_token_id
        if ends is None:
            return ()
        return ends if isinstance(ends, tuple) else (ends,)

    @property
    def stochastic(self) -> bool:
        """Whether training draws random numbers (dropout)."""
        return self.dropout > 0

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters `{"embed": ..., "block_00": ..., ..., "head": ...}` in float32.

        A layer's values depend on the key and its place in the order alone.
        """
        keys = [jax.random.fold_in(key, index) for index in range(len(self.layer_names))]
        first, *names, last = self.layer_names
        params: Params = {}
        for name, block_key in zip(names, keys[1:-1], strict=True):
            params[name] = _init_block(self.architecture, block_key)
        embed = decoder.init_embed(self.architecture, keys[0])
        head = decoder.init_head(self.architecture, keys[-1])
        return {first: embed, **params, last: head}

    def embed(self, params: PyTree, tokens: Tokens, dtype: jnp.dtype) -> Hidden:
        """The embedding.

        Args:
          params: its subtree as stored: tables may be quantized or in another dtype.
          tokens: ids `[B, T]` with their positions and segments.
          dtype: of the activations.

        Returns:
          Values `[B, T, D]`, with the same positions and segments.
        """
        values = decoder.embed(self.architecture, params, tokens.ids, tokens.positions, dtype)
        return Hidden(values, tokens.positions, tokens.segments)

    def attend_block(
        self,
        weights: PyTree,
        adapters: PyTree,
        hidden: Hidden,
        attend: Attend,
        key: jax.Array | None,
        place: Place | None = None,
    ) -> tuple[Hidden, PyTree]:
        """One block with any attention: its output, and what `attend` keeps.

        Args:
          weights: its dense subtree.
          adapters: `{}`, or a tree with `{"a": [in, r], "b": [r, out]}` at adapted linear layers,
            and under `serial` those of `snake_jax.models.serial`.
          hidden: its input.
          attend: see `snake_jax.models.attention.Attend`.
          key: for dropout; None: none.
          place: the block's number, which may be an array; asked for where blocks alternate.

        Raises:
          ValueError: blocks alternate, and the place is not told.
        """
        block = decoder.Block(self.architecture, self.dropout)
        serial = adapters.get(SERIAL, {})
        variables = {"params": weights, "lora": adapters, SERIAL: serial}
        values, state = block.apply(variables, hidden.values, hidden.positions, attend, key, place)
        return hidden._replace(values=values), state

    def block(
        self,
        weights: PyTree,
        adapters: PyTree,
        hidden: Hidden,
        key: jax.Array | None = None,
        place: Place | None = None,
    ) -> Hidden:
        """One block with causal attention; arguments as of `attend_block`."""
        attend = attend_causally(hidden.segments)
        output, _ = self.attend_block(weights, adapters, hidden, attend, key, place)
        return output

    def finish(self, params: PyTree, hidden: Hidden) -> jax.Array:
        """Final norm and projection, `[B, T, E]`: what the output matrix multiplies.

        Args:
          params: the head's dense subtree.
          hidden: the output of the last block.
        """
        return decoder.finish(self.architecture, params, hidden.values)

    def table(self, params: Params) -> PyTree:
        """The output matrix `[V, E]` as stored."""
        if self.tied:
            return params["embed"]["tokens"]["embedding"]
        return params["head"]["lm_head"]["embedding"]

    def apply(
        self,
        params: Params,
        tokens: jax.Array | Tokens | Hidden,
        start: int = 0,
        stop: int | None = None,
        *,
        adapters: Mapping[str, PyTree] | None = None,
        dtype: jnp.dtype = jnp.float32,
        prepare: Callable[[PyTree], PyTree] = lambda subtree: subtree,
        key: jax.Array | None = None,
    ) -> Any:
        """Runs layers `start` to `stop` (exclusive; None: to the end) of the order.

        Args:
          params: at least the subtrees of these layers; the embedding's too where the head is tied
            to it.
          tokens: `[B, T]` ids, each row one text from position 0, or Tokens; Hidden where `start`
            is above 0.
          start: first layer.
          stop: last layer but one.
          adapters: of some blocks, `{layer name: tree}`.
          dtype: of the activations.
          prepare: turns a stored subtree into the one computed with, layer by layer
            (dequantization, casts).
          key: dropout; a layer draws from it by its place in the order, so any slicing draws the
            same.

        Returns:
          Logits `[B, T, V]` float32 where the head was run, Hidden elsewhere.
        """
        # The embedding and the head prepare what they need themselves: their tables are large.
        x: Any = tokens
        names = self.layer_names
        adapters = adapters or {}
        for index in range(len(names))[start:stop]:
            name = names[index]
            if name == "embed":
                x = self.embed(params[name], self.tokens(x), dtype)
            elif name == "head":
                x = self.logits(params, x, prepare)
            else:
                layer_key = None
                if key is not None:
                    layer_key = jax.random.fold_in(key, index)
                weights = prepare(params[name])
                # The embedding comes first: the block's number is one less.
                x = self.block(weights, adapters.get(name, {}), x, layer_key, index - 1)
        return x

    def tokens(self, tokens: jax.Array | Tokens) -> Tokens:
        """Ids `[B, T]` as rows of one text each.

        Raises:
          UserError: a row is longer than the model has positions.
        """
        if isinstance(tokens, Tokens):
            return tokens
        ids = jnp.asarray(tokens)
        if ids.shape[1] > self.max_positions:
            raise UserError(
                f"{ids.shape[1]} tokens in a row, {self.name} has {self.max_positions} positions: "
                f"cut them"
            )
        positions = jnp.arange(ids.shape[1], dtype=jnp.int32)
        return Tokens(ids, jnp.broadcast_to(positions, ids.shape))

    def logits(
        self,
        params: Params,
        hidden: Hidden,
        prepare: Callable[[PyTree], PyTree] = lambda subtree: subtree,
    ) -> jax.Array:
        """The head, with the whole output matrix at once: `[B, T, V]` float32."""
        # The output matrix is prepared apart: where tied it lies in the embedding's subtree, where
        # not it would be prepared twice.
        head = {name: subtree for name, subtree in params["head"].items() if name != "lm_head"}
        values = self.finish(prepare(head), hidden)
        stored_table = prepare(self.table(params))
        table = dense(stored_table, values.dtype)
        logits = jnp.einsum("bte,ve->btv", values, table, preferred_element_type=jnp.float32)
        cap = self.architecture.logit_cap
        if cap is None:
            return logits
        return cap * jnp.tanh(logits / cap)


def layer_names(num_blocks: int) -> tuple[str, ...]:
    """`embed`, `block_00`, ..., `head`."""
    # As many digits in each, so that they sort in their order.
    digits = max(2, len(str(num_blocks - 1)))
    blocks = [f"block_{index:0{digits}}" for index in range(num_blocks)]
    return ("embed", *blocks, "head")


def stop_ids(
    model: LanguageModel, tokenizer_end: int, of_generation: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """The tokens at which generation stops: the model's, where the tokenizer's is one of them.

    Else the model's are of another vocabulary.

    Args:
      model: with the ends of its config.json.
      tokenizer_end: of the tokenizer in use.
      of_generation: the ends of its generation_config.json (`hub.read_generation_ends`).
    """
    ends = tuple(dict.fromkeys((*model.end_ids, *of_generation)))
    if tokenizer_end in ends:
        return ends
    return (tokenizer_end,)


def build(architecture: Architecture, *, dropout: float = 0.0, name: str = "") -> LanguageModel:
    """The model of this architecture; the same arguments give an equal one, and compile once.

    Args:
      architecture: see `snake_jax.models.architecture`.
      dropout: rate on the residual branches.
      name: for people; by default the family.

    Raises:
      UserError: the rate is not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be in [0, 1), got {dropout}")
    if not name:
        name = architecture.family
    return LanguageModel(name, architecture, dropout)


@functools.partial(jax.jit, static_argnums=0)
def _init_block(architecture: Architecture, key: jax.Array) -> PyTree:
    """Fresh weights of a block; blocks are alike, so that one compilation makes all."""
    block = decoder.Block(architecture)
    x = jnp.zeros((1, 1, architecture.hidden_size))
    positions = jnp.zeros((1, 1), jnp.int32)
    return block.lazy_init(key, x, positions, attend_causally(None), None, 0)["params"]
