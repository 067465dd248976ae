"""Greedy and sampled generation with a cache of keys and values.

Prompts of unlike lengths share a batch: they are padded on the right. Attention is causal, so no
prompt token sees the padding behind it; new tokens take its places in the cache, row by row, and
see positions up to their own only. So each row computes what it would compute alone.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from snake_jax.errors import UserError
from snake_jax.models.attention import Attend, Cache, attend_and_keep, attend_to_cache
from snake_jax.models.language import Hidden, LanguageModel, Tokens
from snake_jax.models.linear import PyTree
from snake_jax.params import Params

_LEAST_BUCKET = 16
_STOPS_BUCKET = 8
_NO_TOKEN = -1


class _Static(NamedTuple):
    """What a program is compiled for, besides the shapes of its arguments."""

    model: LanguageModel
    prepare: Callable[[PyTree], PyTree]
    dtype: jnp.dtype
    room: int  # for new tokens, at least as many as are asked for


class _Weights(NamedTuple):
    params: Params
    adapters: Mapping[str, PyTree]


class _Request(NamedTuple):
    ids: jax.Array  # [B, P], padded on the right
    lengths: jax.Array  # [B]
    max_new_tokens: jax.Array
    stop_ids: jax.Array  # [S], padded with an id that no token has
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    key: jax.Array


class _State(NamedTuple):
    step: jax.Array  # how many new tokens each row has
    output: jax.Array  # [B, room]
    stopped: jax.Array  # [B]
    caches: tuple[Cache, ...]


def _identity(subtree: PyTree) -> PyTree:
    return subtree


def generate(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Iterable[int] = (),
    adapters: Mapping[str, PyTree] | None = None,
    dtype: jnp.dtype = jnp.float32,
    prepare: Callable[[PyTree], PyTree] = _identity,
) -> list[list[int]]:
    """Continues each prompt, all in one compiled program.

    There is one compilation for each count of rows and bucket of lengths.

    Args:
      model: see `snake_jax.models.language`.
      params: as stored. prompts: token ids; lengths may differ.
      max_new_tokens: for each prompt.
      temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits /
        temperature).
      top_k: draws from so many of the likeliest only; 0: from all.
      top_p: draws from the fewest likeliest tokens that have this probability together, after top_k
        ("The Curious Case of Neural Text Degeneration", arXiv 1904.09751, section 3.1).
      seed: of the draws; a row's draws depend on it, the row's place and the step.
      stop_ids: a row ends before the first of these.
      adapters: of some blocks, `{layer name: tree}`. dtype: of activations and cache.
      prepare: turns a stored subtree into the one computed with, one block at a time; the same
        function compiles once.

    Returns:
      For each prompt its new tokens, without the prompt and the stop token.

    Raises:
      UserError: an empty prompt, an id outside the vocabulary, more tokens than the model has
        positions, or sampling settings out of range.
    """
    _check_sampling(max_new_tokens, temperature, top_k, top_p)
    _check_prompts(model, prompts, max_new_tokens)
    if not prompts or max_new_tokens == 0:
        return [[] for _ in prompts]
    # Few shapes, so few compilations: stop ids are filled up with one that no token has.
    stops = sorted(set(stop_ids))
    padding = _STOPS_BUCKET - len(stops) % _STOPS_BUCKET
    request = _Request(
        *_padded(prompts),
        max_new_tokens=jnp.int32(max_new_tokens),
        stop_ids=jnp.array([*stops, *[_NO_TOKEN] * padding], jnp.int32),
        temperature=jnp.float32(temperature),
        top_k=jnp.int32(top_k),
        top_p=jnp.float32(top_p),
        key=jax.random.key(seed),
    )
    static = _Static(model, prepare, jnp.dtype(dtype), _bucket(max_new_tokens))
    output = np.asarray(_program(static, _Weights(params, adapters or {}), request))
    return [_until(row[:max_new_tokens].tolist(), stops) for row in output]


def _check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 (greedy) or above, got {temperature}")
    if top_k < 0:
        raise UserError(f"top_k must be 0 (all) or above, got {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {top_p}")


def _check_prompts(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(
                f"prompt {index} is empty: begin it with a token, as the beginning of text"
            )
        outside = [token for token in prompt if not 0 <= token < model.vocab_size]
        if outside:
            raise UserError(
                f"prompt {index} has id {outside[0]}, {model.name} knows 0 to "
                f"{model.vocab_size - 1}"
            )
        if len(prompt) + max_new_tokens > model.max_positions:
            raise UserError(
                f"prompt {index} has {len(prompt)} tokens, with {max_new_tokens} new ones more "
                f"than the {model.max_positions} positions of {model.name}: shorten it or ask for "
                f"fewer"
            )


def _bucket(length: int) -> int:
    """The next power of two, so that shapes stay few."""
    return max(_LEAST_BUCKET, 1 << (length - 1).bit_length())


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    """Ids `[B, P]` and lengths `[B]`."""
    lengths = [len(prompt) for prompt in prompts]
    ids = np.zeros((len(prompts), _bucket(max(lengths))), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(ids), jnp.array(lengths, jnp.int32)


def _until(ids: list[int], stops: list[int]) -> list[int]:
    """What comes before the first of the stop ids."""
    for index, token in enumerate(ids):
        if token in stops:
            return ids[:index]
    return ids


@functools.partial(jax.jit, static_argnums=0)
def _program(static: _Static, weights: _Weights, request: _Request) -> jax.Array:
    """New tokens `[B, room]`; those behind a row's stop, or not asked for, mean nothing."""
    logits, caches = _prefill(static, weights, request)
    rows = request.ids.shape[0]
    output = jnp.zeros((rows, static.room), jnp.int32)
    start = _State(jnp.int32(0), output, jnp.zeros(rows, bool), caches)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < request.max_new_tokens) & ~state.stopped.all()

    def advance(state: _State) -> _State:
        logits, caches = _decode(static, weights, request, state)
        return _append(request, state._replace(caches=caches), logits)

    return lax.while_loop(unfinished, advance, _append(request, start, logits)).output


def _append(request: _Request, state: _State, logits: jax.Array) -> _State:
    """The state with one more token a row, chosen from logits `[B, V]`."""
    token = _choose(request, logits, state.step)
    output = lax.dynamic_update_slice_in_dim(state.output, token[:, None], state.step, axis=1)
    stopped = state.stopped | jnp.isin(token, request.stop_ids)
    return _State(state.step + 1, output, stopped, state.caches)


def _prefill(
    static: _Static, weights: _Weights, request: _Request
) -> tuple[jax.Array, tuple[Cache, ...]]:
    """Logits `[B, V]` behind each prompt's last token, and the caches of the blocks."""
    rows, length = request.ids.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), request.ids.shape)
    hidden = static.model.embed(
        weights.params["embed"], Tokens(request.ids, positions), static.dtype
    )
    caches = _empty_caches(static, rows, length + static.room)
    hidden, caches = _blocks(static, weights, request, hidden, caches, attend_and_keep)
    last = hidden.values[jnp.arange(rows), request.lengths - 1]
    return _logits(static, weights, hidden._replace(values=last[:, None])), caches


def _decode(
    static: _Static, weights: _Weights, request: _Request, state: _State
) -> tuple[jax.Array, tuple[Cache, ...]]:
    """Logits `[B, V]` behind the newest tokens, and the caches with them."""
    token = lax.dynamic_slice_in_dim(state.output, state.step - 1, 1, axis=1)
    positions = request.lengths + state.step - 1
    hidden = static.model.embed(
        weights.params["embed"], Tokens(token, positions[:, None]), static.dtype
    )
    attend = functools.partial(attend_to_cache, positions=positions)
    hidden, caches = _blocks(static, weights, request, hidden, state.caches, attend)
    return _logits(static, weights, hidden), caches


def _empty_caches(static: _Static, rows: int, length: int) -> tuple[Cache, ...]:
    architecture = static.model.architecture
    shape = (rows, length, architecture.num_key_value_heads, architecture.head_dim)
    empty = jnp.zeros(shape, static.dtype)
    return (Cache(empty, empty),) * static.model.num_blocks


def _blocks(
    static: _Static,
    weights: _Weights,
    request: _Request,
    hidden: Hidden,
    caches: Sequence[Cache],
    attend: Callable[[Cache], Attend],
) -> tuple[Hidden, tuple[Cache, ...]]:
    # The condition always holds, which no compiler can know: so none prepares a block before its
    # turn, or all blocks once ahead of the loop to keep them. Memory holds one dense block. (CPUs
    # drop an optimization_barrier too early.)
    asked = request.max_new_tokens > 0
    new = []
    for name, cache in zip(static.model.layer_names[1:-1], caches, strict=True):
        run = functools.partial(_block, static, weights.adapters.get(name, {}), attend)
        hidden, cache = lax.cond(asked, run, _skip, weights.params[name], hidden, cache)
        new.append(cache)
    return hidden, tuple(new)


def _block(
    static: _Static,
    adapters: PyTree,
    attend: Callable[[Cache], Attend],
    stored: PyTree,
    hidden: Hidden,
    cache: Cache,
) -> tuple[Hidden, Cache]:
    return static.model.attend_block(static.prepare(stored), adapters, hidden, attend(cache), None)


def _skip(stored: PyTree, hidden: Hidden, cache: Cache) -> tuple[Hidden, Cache]:
    return hidden, cache


def _logits(static: _Static, weights: _Weights, hidden: Hidden) -> jax.Array:
    """`[B, V]` from hidden of one position a row."""
    return static.model.logits(weights.params, hidden, static.prepare)[:, 0]


def _choose(request: _Request, logits: jax.Array, step: jax.Array) -> jax.Array:
    """One token id a row, `[B]`."""

    def key_of(row: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(request.key, row), step)

    def draw(logits: jax.Array) -> jax.Array:
        keys = jax.vmap(key_of)(jnp.arange(logits.shape[0]))
        likely = _likely(logits / request.temperature, request.top_k, request.top_p)
        return jax.vmap(jax.random.categorical)(keys, likely).astype(jnp.int32)

    def likeliest(logits: jax.Array) -> jax.Array:
        return logits.argmax(-1).astype(jnp.int32)

    return lax.cond(request.temperature > 0, draw, likeliest, logits)


def _likely(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits `[B, V]`, minus infinity for tokens not among the top_k or beyond top_p."""
    ordered = -jnp.sort(-logits, axis=-1)
    among = jnp.arange(logits.shape[-1]) < jnp.where(top_k > 0, top_k, logits.shape[-1])
    probabilities = jax.nn.softmax(jnp.where(among, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Rounding may bring the sum above 1 before the last: with top_p of 1 that leaves none out.
    kept = among & ((before < top_p) | (top_p >= 1))
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
