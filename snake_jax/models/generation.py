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
from snake_jax.models.prefix import Prefix, before
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
    """Parameters by layer, and adapters of those blocks that have some."""

    params: Params
    adapters: Mapping[str, PyTree]


class _Request(NamedTuple):
    """What is asked of a program: B prompts of at most P tokens, and how to go on.

    Attributes:
      ids: `[B, P]`, padded on the right.
      lengths: `[B]`, tokens of each prompt, and the vectors of the prefix before them.
      prefix: what stands before the prompts, or None.
      max_new_tokens: scalar, like those of `generate` below.
      stop_ids: `[S]`, padded with an id that no token has.
    """

    ids: jax.Array
    lengths: jax.Array
    max_new_tokens: jax.Array
    stop_ids: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    key: jax.Array
    prefix: Prefix | None = None


class _State(NamedTuple):
    """Between two new tokens.

    Attributes:
      step: scalar, how many new tokens each row has.
      output: `[B, room]`.
      stopped: `[B]` bool, which rows have met a stop id.
      caches: of every block.
    """

    step: jax.Array
    output: jax.Array
    stopped: jax.Array
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
    prefix: Prefix | None = None,
) -> list[list[int]]:
    """Continues each prompt, all in one program; one for each count of rows and bucket of lengths.

    Args:
      model: see `snake_jax.models.language`.
      params: as stored.
      prompts: token ids; lengths may differ.
      max_new_tokens: for each prompt.
      temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits /
        temperature).
      top_k: draws from so many of the likeliest only; 0: from all.
      top_p: draws from the fewest likeliest tokens that have this probability together, after top_k
        ("The Curious Case of Neural Text Degeneration", arXiv 1904.09751, section 3.1).
      seed: of the draws; a row's draws depend on it, the row's place and the step.
      stop_ids: a row ends before the first of these.
      adapters: of some blocks, `{layer name: tree}`.
      dtype: of activations and cache.
      prepare: turns a stored subtree into the one computed with, one block at a time; the same
        function compiles once.
      prefix: vectors before each prompt, in the place of embedded tokens; its rows are padded to
        few lengths by the caller, as each length compiles anew.

    Returns:
      For each prompt its new tokens, without the prompt and the stop token.

    Raises:
      UserError: an empty prompt, an id outside the vocabulary, more tokens than the model has
        positions, or sampling settings out of range.
    """
    _check_sampling(max_new_tokens, temperature, top_k, top_p)
    _check_prompts(model, prompts, max_new_tokens, prefix)
    if not prompts or max_new_tokens == 0:
        return [[] for _ in prompts]

    # Sizes are rounded up, so that there are few shapes, and few compilations.
    stops = sorted(set(stop_ids))
    ids, lengths = _padded(prompts)
    if prefix is not None:
        lengths = lengths + prefix.lengths
    request = _Request(
        ids,
        lengths,
        max_new_tokens=jnp.int32(max_new_tokens),
        stop_ids=_padded_stops(stops),
        temperature=jnp.float32(temperature),
        top_k=jnp.int32(top_k),
        top_p=jnp.float32(top_p),
        key=jax.random.key(seed),
        prefix=prefix,
    )
    static = _Static(model, prepare, jnp.dtype(dtype), _bucket(max_new_tokens))
    output = np.asarray(_program(static, _Weights(params, adapters or {}), request))
    return [_until(row[:max_new_tokens].tolist(), stops) for row in output]


def _check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raises UserError for a setting out of its range."""
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 (greedy) or above, got {temperature}")
    if top_k < 0:
        raise UserError(f"top_k must be 0 (all) or above, got {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {top_p}")


def _check_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    prefix: Prefix | None,
) -> None:
    """Raises UserError for a prompt that the model cannot go on from."""
    ahead = 0 if prefix is None else prefix.values.shape[1]
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
        if ahead + len(prompt) + max_new_tokens > model.max_positions:
            raise UserError(
                f"prompt {index} has {ahead + len(prompt)} tokens, with {max_new_tokens} new ones "
                f"more than the {model.max_positions} positions of {model.name}: shorten it or ask "
                f"for fewer"
            )


def _bucket(length: int) -> int:
    """The next power of two, so that shapes stay few."""
    power = (length - 1).bit_length()
    return max(_LEAST_BUCKET, 1 << power)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    """Ids `[B, P]` and lengths `[B]`."""
    lengths = [len(prompt) for prompt in prompts]
    ids = np.zeros((len(prompts), _bucket(max(lengths))), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(ids), jnp.array(lengths, jnp.int32)


def _padded_stops(stops: list[int]) -> jax.Array:
    """`[S]`, filled up with an id that no token has."""
    padding = _STOPS_BUCKET - len(stops) % _STOPS_BUCKET
    return jnp.array([*stops, *[_NO_TOKEN] * padding], jnp.int32)


def _until(ids: list[int], stops: list[int]) -> list[int]:
    """What comes before the first of the stop ids."""
    for index, token in enumerate(ids):
        if token in stops:
            return ids[:index]
    return ids


@functools.partial(jax.jit, static_argnums=0)
def _program(static: _Static, weights: _Weights, request: _Request) -> jax.Array:
    """New tokens `[B, room]`; those behind a row's stop, or not asked for, mean nothing."""
    # The prompts, all tokens at once. Behind them stands the first new token.
    logits, caches = _prefill(static, weights, request)
    rows = request.ids.shape[0]
    output = jnp.zeros((rows, static.room), jnp.int32)
    empty = _State(jnp.int32(0), output, jnp.zeros(rows, bool), caches)
    start = _append(request, empty, logits)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < request.max_new_tokens) & ~state.stopped.all()

    def advance(state: _State) -> _State:
        logits, caches = _decode(static, weights, request, state)
        return _append(request, state._replace(caches=caches), logits)

    # Token after token, until all rows have stopped.
    end = lax.while_loop(unfinished, advance, start)
    return end.output


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
    if request.prefix is not None:
        positions = positions + request.prefix.lengths[:, None]
    tokens = Tokens(request.ids, positions)
    hidden = static.model.embed(weights.params["embed"], tokens, static.dtype)
    if request.prefix is not None:
        hidden = before(request.prefix, hidden)
    caches = _empty_caches(static, rows, hidden.values.shape[1] + static.room)
    hidden, caches = _blocks(static, weights, request, hidden, caches, attend_and_keep)

    # Only the last token's logits are needed: [B, 1, D] instead of [B, P, D].
    last = hidden.values[jnp.arange(rows), request.lengths - 1]
    hidden = hidden._replace(values=last[:, None])
    return _logits(static, weights, hidden), caches


def _decode(
    static: _Static, weights: _Weights, request: _Request, state: _State
) -> tuple[jax.Array, tuple[Cache, ...]]:
    """Logits `[B, V]` behind the newest tokens, and the caches with them."""
    # The newest token of each row stands behind its prompt and the new ones before it.
    token = lax.dynamic_slice_in_dim(state.output, state.step - 1, 1, axis=1)
    positions = request.lengths + state.step - 1
    tokens = Tokens(token, positions[:, None])
    hidden = static.model.embed(weights.params["embed"], tokens, static.dtype)
    attend = functools.partial(attend_to_cache, positions=positions)
    hidden, caches = _blocks(static, weights, request, hidden, state.caches, attend)
    return _logits(static, weights, hidden), caches


def _empty_caches(static: _Static, rows: int, length: int) -> tuple[Cache, ...]:
    """A cache of zeros for each block, keys and values `[B, length, K, H]`."""
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
    """All blocks in order, each on its cache: what comes out, and the new caches."""
    # The condition always holds, which no compiler can know: so none prepares a block before its
    # turn, or all blocks once ahead of the loop to keep them. Memory holds one dense block. (CPUs
    # drop an optimization_barrier too early.)
    asked = request.max_new_tokens > 0
    new = []
    for place, (name, cache) in enumerate(zip(static.model.layer_names[1:-1], caches, strict=True)):
        run = functools.partial(_block, static, place, weights.adapters.get(name, {}), attend)
        hidden, cache = lax.cond(asked, run, _skip, weights.params[name], hidden, cache)
        new.append(cache)
    return hidden, tuple(new)


def _block(
    static: _Static,
    place: int,
    adapters: PyTree,
    attend: Callable[[Cache], Attend],
    stored: PyTree,
    hidden: Hidden,
    cache: Cache,
) -> tuple[Hidden, Cache]:
    """One block, whose weights are prepared here and forgotten after it."""
    weights = static.prepare(stored)
    return static.model.attend_block(weights, adapters, hidden, attend(cache), None, place)


def _skip(stored: PyTree, hidden: Hidden, cache: Cache) -> tuple[Hidden, Cache]:
    return hidden, cache


def _logits(static: _Static, weights: _Weights, hidden: Hidden) -> jax.Array:
    """`[B, V]` from hidden of one position a row, `[B, 1, D]`."""
    logits = static.model.logits(weights.params, hidden, static.prepare)
    return logits[:, 0]


def _choose(request: _Request, logits: jax.Array, step: jax.Array) -> jax.Array:
    """One token id a row, `[B]`."""

    def key_of(row: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(request.key, row)
        return jax.random.fold_in(row_key, step)

    def draw(logits: jax.Array) -> jax.Array:
        keys = jax.vmap(key_of)(jnp.arange(logits.shape[0]))
        likely = _likely(logits / request.temperature, request.top_k, request.top_p)
        drawn = jax.vmap(jax.random.categorical)(keys, likely)
        return drawn.astype(jnp.int32)

    def likeliest(logits: jax.Array) -> jax.Array:
        return logits.argmax(-1).astype(jnp.int32)

    return lax.cond(request.temperature > 0, draw, likeliest, logits)


def _likely(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits `[B, V]`, minus infinity for tokens not among the top_k or beyond top_p."""
    # From the likeliest down: `among`, the first k.
    vocab_size = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    among = jnp.arange(vocab_size) < jnp.where(top_k > 0, top_k, vocab_size)

    # A token is kept while those before it, of the k, have less than top_p together.
    probabilities = jax.nn.softmax(jnp.where(among, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Rounding may bring the sum above 1 before the last: with top_p of 1 that leaves none out.
    kept = among & ((before < top_p) | (top_p >= 1))
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
