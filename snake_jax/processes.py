"""Several processes as one run: which of them speaks, and what they tell each other.

All processes carry out the same rounds; the first alone reads and writes the run's folder. In a run
of one process all of this is free.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

Tree = TypeVar("Tree")


def is_first() -> bool:
    """Whether this is the process that writes, prints and shows progress."""
    return jax.process_index() == 0


def from_first(tree: Tree) -> Tree:
    """The first process's arrays, bit for bit, on the host of all.

    Args:
      tree: of arrays; those of the others give shapes and types.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(_array_from_first, tree)


def text_from_first(text: str) -> str:
    """The first process's text in all."""
    if jax.process_count() == 1:
        return text
    own = np.frombuffer(text.encode(), np.uint8)
    # The others have to know how much they are to receive.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(own.size)))
    if not is_first():
        own = np.zeros(size, np.uint8)
    return from_first(own).tobytes().decode()


def any_of(fact: bool) -> bool:
    """Whether it holds in any process; all have to ask.

    When it returns, all have done what comes before.
    """
    if jax.process_count() == 1:
        return fact
    facts = multihost_utils.process_allgather(np.bool_(fact))
    return bool(np.any(facts))


def meet() -> None:
    """Waits until all processes have come here."""
    any_of(False)


def put(tree: Tree, place: Sharding | None) -> Tree:
    """Arrays that all processes have alike, over devices of all of them.

    Args:
      tree: of arrays.
      place: where each of them goes; None: to the process's own first device.
    """
    if place is None or place.is_fully_addressable:
        return jax.device_put(tree, place)
    return _placing(place)(tree)


def whole(tree: Tree, home: jax.Device | None) -> Tree:
    """Arrays that lie over devices, each whole in all processes.

    On the host where other processes have parts of them.

    Args:
      tree: of arrays.
      home: where those go that this process has; None: they stay.
    """
    if not all(array.is_fully_addressable for array in jax.tree.leaves(tree)):
        return multihost_utils.process_allgather(tree, tiled=True)
    return tree if home is None else jax.device_put(tree, home)


@functools.cache
def _placing(place: Sharding) -> Callable[[Any], Any]:
    """A program that lays arrays over devices of several processes.

    `device_put` does this neither for keys nor, to every device, for arrays of a device.
    """

    def unchanged(tree: Any) -> Any:
        return tree

    return jax.jit(unchanged, out_shardings=place)


def _array_from_first(array: jax.Array | np.ndarray) -> np.ndarray:
    """As bytes: the broadcast is a sum over processes, in which a float's -0 becomes 0."""
    own = np.asarray(jax.device_get(array), order="C")
    own_bytes = own.reshape(-1).view(np.uint8)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(own_bytes))
    return sent.view(own.dtype).reshape(own.shape)
