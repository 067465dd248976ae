"""Which images make a step; nothing here is compiled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Sharding

from snake_jax import processes, streams
from snake_jax.algorithms.visits import Visit
from snake_jax.engines.epochs import VisitSettings, rate_factors
from snake_jax.params import PyTree
from snake_jax.training.image_step import Batches


class Picked(NamedTuple):
    """A node's part of `image_step.Batches`, before it goes to a device: of `[S, B]` or `[S, A, B]`
    the first `steps` rows count. `factors` `[S]` is of their learning rate, None where all have
    the same.
    """

    indices: np.ndarray
    weight: np.ndarray
    steps: int
    factors: np.ndarray | None = None


def step_shape(settings: VisitSettings) -> tuple[int, ...]:
    """`(B,)`, or `(A, B)` where several parts make a step."""
    if settings.accumulate > 1:
        return (settings.accumulate, settings.batch_size)
    return (settings.batch_size,)


def epoch_batches(
    visit: Visit, epoch: int, shard: np.ndarray, rows: int, settings: VisitSettings
) -> Picked:
    """An epoch of a visit, a fresh shuffle of the shard; `visit.share` cuts the steps, here perhaps
    to none.

    Args:
      visit: who trains when.
      epoch: from 0; none is left from the node's number of them on.
      shard: the node's indices.
      rows: padded to so many steps.
      settings: see `VisitSettings`.
    """
    padded = no_batches(rows, settings)
    size = math.prod(step_shape(settings))
    steps = -(-len(shard) // size)

    # The share is one of all the visit's steps; here it is that of this epoch's.
    epochs = settings.epochs_at(visit.node)
    begin, end = (int(part * steps * epochs) for part in visit.share)
    low, high = max(begin - epoch * steps, 0), min(end - epoch * steps, steps)
    if low >= high:
        return padded

    shuffle = streams.generator(settings.seed, "shuffle", visit.turn, visit.node, epoch)
    chosen = shuffle.permutation(shard)[low * size : high * size]
    padded.indices.flat[: len(chosen)] = chosen
    padded.weight.flat[: len(chosen)] = 1.0
    if padded.factors is not None:
        total = steps * epochs
        count = high - low
        padded.factors[:count] = rate_factors(settings, epoch * steps + low, count, total)
    return padded._replace(steps=high - low)


def no_batches(rows: int, settings: VisitSettings) -> Picked:
    """What a node without anything to do is given."""
    shape = (rows, *step_shape(settings))
    factors = np.zeros(rows, np.float32) if settings.changes_rate else None
    return Picked(np.zeros(shape, np.int32), np.zeros(shape, np.float32), 0, factors)


def stacked(
    nodes: Sequence[Picked], lead: tuple[int, ...], place: Sharding | None = None
) -> Batches:
    """Several nodes' batches along leading axes `lead`, filled up by nodes without any.

    Args:
      nodes: at least one.
      lead: empty for one node.
      place: where they go, see `processes.put`.
    """
    first = nodes[0]
    empty = Picked(np.zeros_like(first.indices), np.zeros_like(first.weight), 0, first.factors)
    filled = [*nodes, *[empty] * (math.prod(lead) - len(nodes))]
    shape = (*lead, *first.indices.shape)
    factors = None
    every = [picked.factors for picked in filled if picked.factors is not None]
    if every:
        factors = np.stack(every).reshape(*lead, len(every[0]))
    own: PyTree = (
        np.stack([picked.indices for picked in filled]).reshape(shape),
        np.stack([picked.weight for picked in filled]).reshape(shape),
        np.reshape([picked.steps for picked in filled], lead).astype(np.int32),
        factors,
    )
    # One call puts all of it on the device: array by array the host's time shows.
    return Batches(*processes.put(own, place))
