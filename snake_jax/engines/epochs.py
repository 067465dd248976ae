"""What a visit is given, epoch after epoch, and what it gives back; nothing here is compiled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.params import Params
from snake_jax.train.image_step import Batches, EpochStats
from snake_jax.train.optimizers import OptimizerStates


class VisitSettings(NamedTuple):
    """What decides a visit besides the step: see the flags of the same names in `config.Config`."""

    local_epochs: int
    batch_size: int
    frozen_dtype: str
    early_stop: float
    seed: int


class Rows(NamedTuple):
    """A node's part of `steps.Batches`, before it goes to a device; of `[S, B]` the first `steps`
    rows count.
    """

    indices: np.ndarray
    weight: np.ndarray
    steps: int


class Tally(NamedTuple):
    """A visit's sums so far, the last epoch's mean loss, and whether it is over."""

    loss_sum: float = 0.0
    examples: float = 0.0
    iterations: int = 0
    train_s: float = 0.0
    previous: float = np.inf
    finite: bool = True
    over: bool = False


def count(
    tallies: Sequence[Tally],
    stats: EpochStats,
    todo: Sequence[Rows],
    train_s: float,
    early_stop: float,
) -> list[Tally]:
    """The tallies after an epoch that one program trained for several visits.

    Args:
      tallies: of the visits.
      stats: their sums, with any leading axes, perhaps of more nodes.
      todo: their batches; a visit without any keeps its tally.
      train_s: seconds the program ran.
      early_stop: see `VisitSettings`.
    """
    working = sum(rows.steps > 0 for rows in todo)
    columns = (np.ravel(column).tolist() for column in stats)
    return [
        after_epoch(tally, numbers, rows.steps, train_s / working, early_stop)
        if rows.steps
        else tally
        for tally, rows, numbers in zip(tallies, todo, zip(*columns, strict=True), strict=False)
    ]


def after_epoch(
    tally: Tally, numbers: tuple, iterations: int, train_s: float, early_stop: float
) -> Tally:
    """The tally after an epoch of these statistics; one that diverged or lowered the loss too
    little is the last.
    """
    loss_sum, examples, finite = numbers
    loss = loss_sum / max(examples, 1.0)
    stalled = bool(early_stop) and tally.previous - loss < early_stop * abs(tally.previous)
    return Tally(
        tally.loss_sum + loss_sum,
        tally.examples + examples,
        tally.iterations + iterations,
        tally.train_s + train_s,
        loss,
        finite,
        stalled or not finite,
    )


def annotation(visits: Sequence[Visit]) -> str:
    """What a profile calls the visits that one program carries out: `visit 3, node 1: conv1,
    fc11`.
    """
    first, several = visits[0], len(visits) > 1
    which = f"visits {first.turn} to {visits[-1].turn}" if several else f"visit {first.turn}"
    who = f"{len(visits)} nodes" if several else f"node {first.node}"
    return f"{which}, {who}: {', '.join(first.layers)}"


def result(
    visit: Visit, layers: Params, states: OptimizerStates, tally: Tally, examples_held: int
) -> Outcome:
    """What the visit gives back."""
    loss = tally.loss_sum / tally.examples if tally.examples else float("nan")
    examples = int(tally.examples)
    return Outcome(
        visit,
        layers,
        states,
        loss,
        tally.finite,
        tally.iterations,
        examples,
        examples_held,
        tally.train_s,
    )


def epoch_rows(
    visit: Visit, epoch: int, shard: np.ndarray, rows: int, settings: VisitSettings
) -> Rows:
    """An epoch of a visit, a fresh shuffle of the shard; `visit.share` cuts the steps, here perhaps
    to none.

    Args:
      visit: who trains when.
      epoch: from 0 to `settings.local_epochs`.
      shard: the node's indices.
      rows: padded to so many.
      settings: see `VisitSettings`.
    """
    padded, size = no_rows(rows, settings.batch_size), settings.batch_size
    steps = -(-len(shard) // size)
    begin, end = (int(part * steps * settings.local_epochs) for part in visit.share)
    low, high = max(begin - epoch * steps, 0), min(end - epoch * steps, steps)
    if low >= high:
        return padded
    order = streams.generator(settings.seed, "shuffle", visit.turn, visit.node, epoch).permutation(
        shard
    )
    chosen = order[low * size : high * size]
    padded.indices.flat[: len(chosen)], padded.weight.flat[: len(chosen)] = chosen, 1.0
    return padded._replace(steps=high - low)


def no_rows(rows: int, batch_size: int) -> Rows:
    """What a node without anything to do is given."""
    shape = (rows, batch_size)
    return Rows(np.zeros(shape, np.int32), np.zeros(shape, np.float32), 0)


def stacked(nodes: Sequence[Rows], lead: tuple[int, ...]) -> Batches:
    """Several nodes' rows along leading axes `lead`, filled up by nodes without any; `lead` is
    empty for one node.
    """
    empty = no_rows(*nodes[0].indices.shape)
    nodes = [*nodes, *[empty] * (math.prod(lead) - len(nodes))]
    shape = (*lead, *empty.indices.shape)
    return Batches(
        jnp.asarray(np.stack([rows.indices for rows in nodes]).reshape(shape)),
        jnp.asarray(np.stack([rows.weight for rows in nodes]).reshape(shape)),
        jnp.asarray(np.reshape([rows.steps for rows in nodes], lead), jnp.int32),
    )
