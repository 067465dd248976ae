"""Which rows of text make a step; nothing here is compiled."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from snake_jax import streams
from snake_jax.algorithms.visits import Visit
from snake_jax.data.text import packing
from snake_jax.training import sharding
from snake_jax.training.text_step import TextBatch

Shard = Mapping[int, np.ndarray]  # tokens in a row -> a node's rows of that length


class Batch(NamedTuple):
    """Rows of one length: indices `[A, B]` or `[B]` into all of that length, and which of them are
    no padding.
    """

    length: int
    indices: np.ndarray
    real: np.ndarray


def epoch_batches(
    visit: Visit, epoch: int, shard: Shard, shape: tuple[int, int], epochs: int, seed: int
) -> list[Batch]:
    """An epoch's batches, rows of a length shuffled and lengths mixed; `visit.share` cuts them,
    here perhaps to none.

    Args:
      visit: who trains when.
      epoch: from 0 to `epochs`.
      shard: the node's rows.
      shape: `(A, B)`.
      epochs: of the visit.
      seed: of the run.
    """
    rng = streams.generator(seed, "shuffle", visit.turn, visit.node, epoch)
    batches: list[Batch] = []
    for length in sorted(shard):
        batches += row_batches(length, rng.permutation(shard[length]), shape)
    batches = [batches[i] for i in rng.permutation(len(batches))]

    begin, end = part_of_epoch(visit, epoch, len(batches), epochs)
    return batches[begin:end]


def part_of_epoch(visit: Visit, epoch: int, count: int, epochs: int) -> tuple[int, int]:
    """Which of an epoch's batches the visit's share has: the first, and the one after the last.

    Args:
      visit: who trains when.
      epoch: from 0 to `epochs`.
      count: batches of an epoch.
      epochs: of the visit.
    """
    # The share is one of all the visit's batches; here it is that of this epoch's.
    begin, end = (int(part * count * epochs) - epoch * count for part in visit.share)
    return max(begin, 0), max(end, 0)


def steps_of_epoch(shard: Shard, shape: tuple[int, int]) -> int:
    """Batches of an epoch without a cut."""
    size = math.prod(shape)
    return sum(math.ceil(len(rows) / size) for rows in shard.values())


def row_batches(length: int, rows: np.ndarray, shape: tuple[int, ...]) -> Iterator[Batch]:
    """All rows in order, in batches of this shape; the last one is filled up with padding."""
    size = math.prod(shape)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        indices = np.zeros(size, np.int32)
        indices[: len(part)] = part
        yield Batch(length, indices.reshape(shape), (np.arange(size) < len(part)).reshape(shape))


def gathered(
    rows: packing.TextRows, batch: Batch, packed: bool, place: NamedSharding | None = None
) -> TextBatch:
    """The batch's rows, `[A, B, T]`; padding has no weight, and segments are told only where rows
    have several.

    Args:
      rows: all of that length.
      batch: which of them.
      packed: whether rows of that length have several segments.
      place: on a mesh, of which a process takes the rows of its own devices; None: on the host.
    """

    def read(part: np.ndarray, at: Any = ...) -> np.ndarray:
        chosen = part[batch.indices[at]]
        if part is rows.weight:
            return chosen * batch.real[at][..., None].astype(np.float32)
        return chosen

    def taken(part: np.ndarray) -> Any:
        if place is None:
            return read(part)
        shape, axes = (*batch.indices.shape, part.shape[1]), batch.indices.ndim
        return jax.make_array_from_callback(shape, place, lambda at: read(part, (at or ())[:axes]))

    ids, targets, weight, positions = (taken(part) for part in rows[:4])
    return TextBatch(ids, targets, weight, positions, taken(rows.segments) if packed else None)


def rows_of(
    mesh: Mesh | None, rows: packing.TextRows, batch: Batch, packed: bool, hidden: Any = None
) -> TextBatch:
    """The batch's rows, and their kept input of the first block that trains.

    Args:
      mesh: that they lie over, of which every process reads its own; None: one device.
      rows: all of that length.
      batch: which of them.
      packed: see `gathered`.
      hidden: `[A, B, T, D]` or None.
    """
    if mesh is None:
        return gathered(rows, batch, packed)._replace(hidden=hidden)
    place = sharding.row_sharding(mesh, batch.indices.ndim - 1)
    if hidden is not None:
        hidden = sharding.put_at(hidden, place)
    return gathered(rows, batch, packed, place)._replace(hidden=hidden)


def is_packed(rows: packing.TextRows) -> bool:
    """Whether a row holds several texts."""
    return bool((rows.segments > 1).any())


def packed_lengths(rows: Mapping[int, packing.TextRows]) -> frozenset[int]:
    """The lengths whose rows hold several texts."""
    return frozenset(length for length, some in rows.items() if is_packed(some))


def num_tokens(rows: packing.TextRows, batch: Batch) -> int:
    """Tokens that are no padding."""
    return int((rows.segments[batch.indices[batch.real]] > 0).sum())


class Entrance(NamedTuple):
    """Kept inputs of the first block that trains, by length, and where each row's lies; both empty:
    not kept.
    """

    values: Mapping[int, Any]
    places: Mapping[int, Mapping[int, int]]

    def of(self, batch: Batch) -> Any:
        """`[A, B, T, D]`, or None."""
        if not self.values:
            return None
        places = self.places[batch.length]
        # Padding rows have index 0 of all nodes' rows, which need not be this node's.
        index = [places.get(int(row), 0) for row in batch.indices.ravel()]
        return self.values[batch.length][np.reshape(index, batch.indices.shape)]
