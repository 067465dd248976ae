"""The random keys of visits: from (seed, turn, node), and of their epochs and calls from those."""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from snake_jax.algorithms.visits import Visit


def of_epoch(
    key: jax.Array, visits: Sequence[Visit], epoch: int, lead: tuple[int, ...]
) -> jax.Array:
    """A key for each visit's epoch, `[*lead]`.

    Args:
      key: of all visits of the run.
      visits: of one program; where `lead` has more places, the others' keys are not used.
      epoch: its number.
      lead: see `programs.Program`.
    """
    turns, nodes = (np.zeros(math.prod(lead), np.uint32) for _ in range(2))
    for place, visit in enumerate(visits):
        turns[place], nodes[place] = visit.turn, visit.node
    return _of_epoch(key, turns, nodes, epoch, lead)


@functools.partial(jax.jit, static_argnames="lead")
def _of_epoch(
    key: jax.Array, turns: jax.Array, nodes: jax.Array, epoch: jax.Array, lead: tuple[int, ...]
) -> jax.Array:
    def of_visit(turn: jax.Array, node: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, turn), node), epoch)

    return jax.vmap(of_visit)(turns, nodes).reshape(lead)


@jax.jit
def of_call(keys: jax.Array, number: jax.Array) -> jax.Array:
    """The keys of one of an epoch's calls, by its number."""
    fold = lambda key: jax.random.fold_in(key, number)  # noqa: E731
    return jax.vmap(fold)(keys.reshape(-1)).reshape(keys.shape)
