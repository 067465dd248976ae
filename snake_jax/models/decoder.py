"""One decoder for every `Architecture`: the block, the embedding and the head.

"LLaMA: Open and Efficient Foundation Language Models" (arXiv 2302.13971, section 2.2) and "OPT:
Open Pre-trained Transformer Language Models" (arXiv 2205.01068, section 2.1) are the two ends of
what there is; grouped-query attention as of Llama 2 (arXiv 2307.09288, section 2.2), windows as of
Mistral 7B (arXiv 2310.06825, section 2), soft caps and norms around the branches as of Gemma 2
(arXiv 2408.00118, section 2), norms of queries and keys as of OLMo 2 (arXiv 2501.00656, section
3.3).

**Layers that alternate.** What depends on a block's place (its window, its rotary frequencies) is
looked up by the place, which may be an array: one program serves all blocks.
"""

import math
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.kernels.dequantize import dense, take_rows
from snake_jax.models.architecture import Architecture, RopeScaling
from snake_jax.models.attention import Attend, Scores, rotate
from snake_jax.models.linear import ACTIVATIONS, Linear, PyTree, dropout, table_init
from snake_jax.models.serial import adapted

# A window that no text is as long as: the layers between those that have one.
_NO_WINDOW = np.iinfo(np.int32).max

# A block's number: an array where one program serves all blocks.
Place = jax.Array | int


class _Kind(NamedTuple):
    """What of a block depends on its place.

    Attributes:
      frequencies: `[R / 2]` of the R dimensions of a head that are turned; None: none are.
      window: tokens that a token sees, itself included; None: all.
    """

    frequencies: jax.Array | np.ndarray | None
    window: jax.Array | int | None


def rope_frequencies(
    architecture: Architecture, theta: float, scaling: RopeScaling | None
) -> np.ndarray:
    """Radians a position turns each pair of dimensions by: `[R / 2]` float32.

    Pair i of the R dimensions that are turned turns by theta^(-2 i / R). Llama 3.1's scaling leaves
    frequencies that turn more than `high_freq_factor` times within the original length, divides
    those that turn less than `low_freq_factor` times, and blends between (the reference
    implementation of meta-llama/llama-models, `apply_scaling`).
    """
    # In float32 throughout, as the reference computes them.
    turned = int(architecture.head_dim * architecture.rotary_share)
    even = np.arange(0, turned, 2, dtype=np.float32)
    exponents = even / np.float32(turned)
    powers = np.float32(theta) ** exponents
    frequencies = (1 / powers).astype(np.float32)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)

    # How many whole turns a pair makes within the original length, and from that how much of its
    # frequency is left as it is: 0 at low_freq_factor turns and below, 1 at high_freq_factor.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    blend = (turns - scaling.low_freq_factor) / width
    kept = np.clip(blend, 0, 1)
    scaled = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    return scaled.astype(np.float32)


def _kind(architecture: Architecture, place: Place | None) -> _Kind:
    """What the block at this place has of its own.

    Raises:
      ValueError: layers alternate, and the place is not told.
    """
    theta, own_window = architecture.rope_theta, architecture.sliding_window
    frequencies = local = None
    if theta is not None:
        frequencies = rope_frequencies(architecture, theta, architecture.rope_scaling)
        local = frequencies
    if architecture.local_rope_theta is not None:
        local = rope_frequencies(architecture, architecture.local_rope_theta, None)
    if own_window is None:
        return _Kind(frequencies, None)
    if not architecture.alternates:
        return _Kind(local, own_window)
    if place is None:
        raise ValueError(f"blocks of {architecture.family} alternate: say which block it is")

    # Tables of all layers, from which the place, known when the program runs, takes its row.
    has_window = np.asarray(architecture.windowed)
    windows = np.where(has_window, own_window, _NO_WINDOW).astype(np.int32)
    window = jnp.asarray(windows)[place]
    if frequencies is None or local is None or architecture.local_rope_theta is None:
        return _Kind(frequencies, window)
    by_layer = np.where(has_window[:, None], local, frequencies)
    return _Kind(jnp.asarray(by_layer)[place], window)


class Norm(nn.Module):
    """RMS norm whose stored scale is off by a constant: `x / rms(x) * (offset + scale)`.

    Computed in float32 whatever the dtype of what it is given.
    """

    epsilon: float
    offset: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` float32."""
        stored = self.param("scale", nn.initializers.constant(1 - self.offset), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return normed * (self.offset + stored.astype(jnp.float32))


def _norm(architecture: Architecture, name: str | None = None) -> nn.Module:
    """Computed in float32 whatever the dtype of what it is given."""
    epsilon = architecture.norm_epsilon
    if architecture.norm == "layer":
        affine = architecture.norm_affine
        return nn.LayerNorm(
            epsilon,
            use_scale=affine,
            use_bias=affine,
            dtype=jnp.float32,
            use_fast_variance=False,
            name=name,
        )
    if architecture.norm_offset:
        return Norm(epsilon, architecture.norm_offset, name=name)
    return nn.RMSNorm(epsilon, dtype=jnp.float32, name=name)


class Attention(nn.Module):
    """Self-attention of N query heads on K key heads."""

    architecture: Architecture

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Attend, kind: _Kind
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps."""
        architecture = self.architecture
        batch, length, _ = x.shape

        # Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`. Positions turn queries and keys,
        # so that their products depend on how far apart two tokens are.
        def turned(features: jax.Array) -> jax.Array:
            if kind.frequencies is None:
                return features
            return rotate(features, positions, kind.frequencies)

        names = architecture.names
        if names.query_key_value:
            query, key, value = self._split(x)
            query, key = turned(query), turned(key)
        else:
            query_heads, key_heads = (
                architecture.num_attention_heads,
                architecture.num_key_value_heads,
            )
            query = turned(self._heads(x, names.query, query_heads, names.query_norm))
            key = turned(self._heads(x, names.key, key_heads, names.key_norm))
            value = self._heads(x, names.value, key_heads)

        # Attention divides scores by the root of H: another divisor's quotient goes to the query.
        divisor = architecture.score_divisor
        if divisor is not None and divisor != architecture.head_dim:
            query = query * jnp.asarray(math.sqrt(architecture.head_dim / divisor), query.dtype)
        if kind.window is None and architecture.score_cap is None:
            attended, state = attend(query, key, value)
        else:
            attended, state = attend(query, key, value, Scores(kind.window, architecture.score_cap))

        # `[B, T, N * H]`, and back to `[B, T, D]`.
        merged = attended.reshape(batch, length, -1)
        features, bias = architecture.hidden_size, architecture.output_bias
        output = Linear(features, bias, architecture.init_std, name=names.output)
        return output(merged), state

    def _heads(self, x: jax.Array, name: str, count: int, norm: str = "") -> jax.Array:
        """A linear layer's output by head, `[B, T, count, H]`, normed by the norm of that name."""
        architecture = self.architecture
        features = self._linear(x, name, count * architecture.head_dim)
        if norm and architecture.query_key_norm == "all":
            features = _norm(architecture, norm)(features).astype(x.dtype)
        by_head = self._by_head(features)
        if norm and architecture.query_key_norm == "head":
            by_head = _norm(architecture, norm)(by_head).astype(x.dtype)
        return by_head

    def _split(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values by head, of one matrix."""
        architecture = self.architecture
        of_query = architecture.num_attention_heads * architecture.head_dim
        of_key = architecture.num_key_value_heads * architecture.head_dim
        together = self._linear(x, architecture.names.query_key_value, of_query + 2 * of_key)
        query, key, value = jnp.split(together, (of_query, of_query + of_key), axis=-1)
        return self._by_head(query), self._by_head(key), self._by_head(value)

    def _linear(self, x: jax.Array, name: str, features: int) -> jax.Array:
        """`[B, T, features]`."""
        architecture = self.architecture
        return Linear(features, architecture.qkv_bias, architecture.init_std, name=name)(x)

    def _by_head(self, features: jax.Array) -> jax.Array:
        """`[B, T, heads, H]`."""
        batch, length, _ = features.shape
        return features.reshape(batch, length, -1, self.architecture.head_dim)


class Mlp(nn.Module):
    """The MLP as a module of its own."""

    architecture: Architecture

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, D]`."""
        return _mlp(self.architecture, x)


def _mlp(architecture: Architecture, x: jax.Array) -> jax.Array:
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))`; its layers belong to who calls."""
    names, inner = architecture.names, architecture.intermediate_size
    activation = ACTIVATIONS[architecture.hidden_act]

    def linear(name: str, features: int) -> Linear:
        return Linear(features, architecture.mlp_bias, architecture.init_std, name=name)

    if names.gate_up:
        gate, up = jnp.split(linear(names.gate_up, 2 * inner)(x), 2, axis=-1)
        hidden = activation(gate) * up
    elif architecture.gated:
        gate = activation(linear(names.gate, inner)(x))
        hidden = gate * linear(names.up, inner)(x)
    else:
        hidden = activation(linear(names.up, inner)(x))
    return linear(names.down, architecture.hidden_size)(hidden)


class Block(nn.Module):
    """One transformer block: two branches, attention and MLP, each added to what it reads."""

    architecture: Architecture
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        attend: Attend,
        key: jax.Array | None = None,
        place: Place | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """`[B, T, D]`, and what `attend` keeps; dropout on both branches with a key.

        Args:
          x: `[B, T, D]`.
          positions: `[B, T]`.
          attend: see `snake_jax.models.attention.Attend`.
          key: for dropout.
          place: the block's number; asked for where blocks alternate.
        """
        architecture, names = self.architecture, self.architecture.names
        kind = _kind(architecture, place)
        keys = (None, None) if key is None else jax.random.split(key)

        # x + norm(attention(norm(x))), with the norms that there are; or norm(x + attention(x)).
        normed = self._norm(names.before_attention, x)
        attention = Attention(architecture, name=names.attention)
        attended, state = attention(normed, positions, attend, kind)
        attended = self._norm(names.after_attention, attended)
        x = x + adapted(self, "attention", dropout(attended, self.dropout, keys[0]))
        x = self._norm_of_sum(names.before_attention, x)

        # The same with the MLP.
        normed = self._norm(names.before_mlp, x)
        if names.mlp:
            hidden = Mlp(architecture, name=names.mlp)(normed)
        else:
            hidden = _mlp(architecture, normed)
        hidden = self._norm(names.after_mlp, hidden)
        x = x + adapted(self, "mlp", dropout(hidden, self.dropout, keys[1]))
        return self._norm_of_sum(names.before_mlp, x), state

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        """The norm of this name in a branch; x itself where there is none."""
        if not name or not self.architecture.norm_in_branch:
            return x
        return _norm(self.architecture, name)(x).astype(x.dtype)

    def _norm_of_sum(self, name: str, x: jax.Array) -> jax.Array:
        """The norm of this name after the residual sum; x itself where it stands in the branch."""
        if self.architecture.norm_in_branch:
            return x
        return _norm(self.architecture, name)(x).astype(x.dtype)


def init_embed(architecture: Architecture, key: jax.Array) -> PyTree:
    """Fresh `{"tokens": ..., "positions": ..., "project_in": ...}`: what of these there is."""
    rows, width = architecture.vocab_size, architecture.table_width
    std = architecture.init_std
    if architecture.rope_theta is not None:
        return {"tokens": table_init(key, rows, width, std)}
    keys = jax.random.split(key, 3)
    positions = architecture.max_position_embeddings + architecture.position_offset
    params: PyTree = {
        "tokens": table_init(keys[0], rows, width, std),
        "positions": table_init(keys[1], positions, architecture.hidden_size, std),
    }
    if architecture.projects:
        shape = (width, architecture.hidden_size)
        params["project_in"] = {"kernel": std * jax.random.normal(keys[2], shape)}
    return params


def init_head(architecture: Architecture, key: jax.Array) -> PyTree:
    """Fresh `{"norm": ..., "project_out": ..., "lm_head": ...}`: what of these there is."""
    width = architecture.hidden_size
    head: PyTree = {}
    if architecture.has_final_norm and architecture.norm_affine:
        head["norm"] = {"scale": jnp.full((width,), 1 - architecture.norm_offset, jnp.float32)}
        if architecture.norm == "layer":
            head["norm"]["bias"] = jnp.zeros((width,))

    # A table alone takes the key itself; beside learnt positions there may be a projection too.
    table_key = key
    if architecture.rope_theta is None:
        projection_key, table_key = jax.random.split(key)
        if architecture.projects:
            shape = (width, architecture.table_width)
            kernel = architecture.init_std * jax.random.normal(projection_key, shape)
            head["project_out"] = {"kernel": kernel}
    if not architecture.tie_word_embeddings:
        head["lm_head"] = table_init(
            table_key, architecture.vocab_size, architecture.table_width, architecture.init_std
        )
    return head


def embed(
    architecture: Architecture,
    params: PyTree,
    ids: jax.Array,
    positions: jax.Array,
    dtype: jnp.dtype,
) -> jax.Array:
    """`[B, T]` ids and positions to `[B, T, D]`; rotary positions enter in the blocks."""
    # A token's row, E wide, as wide as the blocks; learnt positions have a row that wide.
    values = take_rows(params["tokens"]["embedding"], ids, dtype)
    if architecture.scaled_embedding:
        values = values * jnp.asarray(math.sqrt(architecture.hidden_size), dtype)
    if architecture.projects:
        kernel = dense(params["project_in"]["kernel"], dtype)
        values = values @ kernel
    if architecture.rope_theta is None:
        rows = positions + architecture.position_offset
        values = values + take_rows(params["positions"]["embedding"], rows, dtype)
    return values


def finish(architecture: Architecture, params: PyTree, values: jax.Array) -> jax.Array:
    """`[B, T, D]` to what the output matrix multiplies, `[B, T, E]`."""
    if architecture.has_final_norm:
        # A norm without scale and bias has no parameters.
        weights = {"params": params.get("norm", {})}
        normed = cast(jax.Array, _norm(architecture).apply(weights, values))
        values = normed.astype(values.dtype)
    if architecture.projects:
        kernel = params["project_out"]["kernel"].astype(values.dtype)
        values = values @ kernel
    return values
