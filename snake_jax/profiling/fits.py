"""The largest step that a device's compiler takes, found with few compilations.

More is asked for in this order: the length and the rank that were asked for, the most precise
storage of what does not train, then as many rows as fit. Where one row does not fit in any storage
the rank is halved, then the length. A step that needs more memory never fits where a smaller one
does not, so every search is a bisection.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snake_jax.costs.compiled import Compiled, Refused, compile_placed, placed

PRECISION = ("float32", "bfloat16", "int8", "nf4")  # from the most memory to the least
_RESOLUTION = 16  # batches are searched to one part in so many
_STRIDE = 8  # a guess goes at most so many times beyond what is known to fit
_LEAST_BYTES = 2**30  # of the first array that is asked for
_PROBES = 10  # bisections of a device's capacity: to one part in 2**10


class Candidate(NamedTuple):
    """A step to try.

    Attributes:
      batch: rows, or images.
      length: tokens in a row; 0: images.
      frozen_dtype: storage of what does not train.
      rank: of adapters; 0: there are none.
    """

    batch: int
    length: int
    frozen_dtype: str
    rank: int


class Tried(NamedTuple):
    """A try.

    Attributes:
      candidate: that was tried.
      peak_bytes: the compiler's; None where it refused.
      wall_s: seconds on the clock.
    """

    candidate: Candidate
    peak_bytes: int | None
    wall_s: float


class FitSearch(NamedTuple):
    """What to search in.

    Attributes:
      lengths: to be tried, from the longest.
      dtypes: from the most precise.
      ranks: from the largest.
      compiled: the compiler's answer.
      least_bytes: what a candidate holds by formula, without activations.
      capacity_bytes: of the device. It saves compilations; and what a compiler does not refuse may
        not pass it either.
      note: is told of each try.
    """

    lengths: Sequence[int]
    dtypes: Sequence[str]
    ranks: Sequence[int]
    compiled: Callable[[Candidate], Compiled | Refused]
    least_bytes: Callable[[Candidate], int]
    capacity_bytes: int
    note: Callable[[Tried], None]


def largest(search: FitSearch) -> Tried | None:
    """The largest candidate that fits; None where none does."""
    start = _single(search)
    return None if start is None else _most_rows(search, start)


def halvings(most: int, least: int) -> tuple[int, ...]:
    """`most`, half of it, and so on while that is whole and at least `least`."""
    found = [most]
    while found[-1] % 2 == 0 and found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return tuple(found)


def capacity(device: Any) -> int:
    """Bytes that a device's compiler gives out, to about a thousandth.

    Found with programs that copy one array.

    Args:
      device: of this machine, or a described one.
    """

    def next_number(x: jax.Array) -> jax.Array:
        return x + 1

    def fits(count: int) -> bool:
        line = jax.ShapeDtypeStruct((count,), jnp.int8)
        built = compile_placed(next_number, placed(device, (line,)))
        return isinstance(built, Compiled)

    # Doubled until it is refused, then halved in between.
    low, high = 0, _LEAST_BYTES
    while fits(high):
        low, high = high, 2 * high
    for _ in range(_PROBES):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return 2 * high  # the array and its copy


def _single(search: FitSearch) -> Tried | None:
    """The first, in order of preference, of which one row fits."""

    attempt = functools.partial(_try, search)
    most = Candidate(1, search.lengths[0], search.dtypes[0], search.ranks[0])
    by_storage = [most._replace(frozen_dtype=dtype) for dtype in search.dtypes]
    found = _first(by_storage, attempt)
    if found is not None:
        return found

    # In the least storage the rank gives way, then the length; what was tried is not tried again.
    least = by_storage[-1]
    by_rank = [least._replace(rank=rank) for rank in search.ranks[1:]]
    found = _first(by_rank, attempt)
    if found is not None:
        return found
    least = [least, *by_rank][-1]
    by_length = [least._replace(length=length) for length in search.lengths[1:]]
    return _first(by_length, attempt)


def _first(candidates: Sequence[Candidate], attempt: Callable[[Candidate], Tried]) -> Tried | None:
    """The first that fits of candidates that need less and less; the first of all is tried first.

    Args:
      candidates: in order.
      attempt: tries one.
    """
    # Often what was asked for fits: it is tried first, and the bisection is of the rest.
    low, high = 0, len(candidates)
    found: Tried | None = None
    while low < high:
        is_first = found is None and low == 0
        middle = low if is_first else (low + high) // 2
        tried = attempt(candidates[middle])
        if tried.peak_bytes is None:
            low = middle + 1
        else:
            high, found = middle, tried
    return found


def _most_rows(search: FitSearch, start: Tried) -> Tried:
    """As many rows as fit, to one part in `_RESOLUTION`; memory grows about evenly with them."""
    fitting = [start]
    refused: int | None = None
    while True:
        batch = _next_batch(fitting, refused, search.capacity_bytes)
        if batch is None:
            return fitting[-1]
        tried = _try(search, start.candidate._replace(batch=batch))
        if tried.peak_bytes is None:
            refused = batch
        else:
            fitting.append(tried)


def _next_batch(fitting: Sequence[Tried], refused: int | None, capacity_bytes: int) -> int | None:
    """Where the line through the last two that fit comes to what there is.

    Args:
      fitting: tries that fit, in order.
      refused: the smallest batch that does not; None: none yet.
      capacity_bytes: what there is.

    Returns:
      None where no try would tell more.
    """
    last = fitting[-1]
    low = last.candidate.batch
    step = max(1, low // _RESOLUTION)
    if refused is not None and refused - low <= step:
        return None

    # One that fits gives no line: a stride. A line may be wrong: no more than a stride either.
    guess = _STRIDE * low
    if len(fitting) > 1:
        before = fitting[-2]
        grown = (last.peak_bytes or 0) - (before.peak_bytes or 0)
        row_bytes = max(1, grown // (low - before.candidate.batch))
        left_bytes = capacity_bytes - (last.peak_bytes or 0)
        guess = min(_STRIDE * low, low + left_bytes // row_bytes)
    guess = max(guess, low + step)
    if refused is None or guess < refused:
        return guess
    return (low + refused) // 2


def _try(search: FitSearch, candidate: Candidate) -> Tried:
    """Tries a candidate, and tells of it."""
    start_s = time.perf_counter()
    peak_bytes = _peak_bytes(search, candidate)
    wall_s = time.perf_counter() - start_s
    tried = Tried(candidate, peak_bytes, wall_s)
    search.note(tried)
    return tried


def _peak_bytes(search: FitSearch, candidate: Candidate) -> int | None:
    """The compiler's, where the candidate fits."""
    # The formula takes no time, so what it knows not to fit is not compiled.
    if search.least_bytes(candidate) > search.capacity_bytes:
        return None

    # What a compiler does not refuse may still be more than there is.
    built = search.compiled(candidate)
    if isinstance(built, Refused) or built.memory.peak > search.capacity_bytes:
        return None
    return built.memory.peak
