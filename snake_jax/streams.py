"""Random streams of a run: the only place that makes a generator from its seed.

A stream has a name and, where there are many of a kind, numbers: `generator(seed, "shuffle", turn,
node, epoch)`. Streams of one seed are independent of each other, and what one draws does not depend
on what was drawn before from another: a run that goes on after a kill draws what the unbroken one
draws.

A list of numbers alone will not do as a seed: NumPy fills it up with zeros, so that `[7, 1]` and
`[7, 1, 0, 0]` give one stream. Here the name's digest and the count of the numbers go in before the
numbers, so no two of different names or numbers are alike.
"""

import hashlib

import jax
import numpy as np

NAMES = (
    "partition/iid",
    "partition/priors",
    "partition/dirichlet",
    "partition/dirichlet_split",
    "partition/dirichlet_capped",
    "partition/pathological",
    "partition/by_category",
    "divergence/deals",
    "partition/drawn",
    "partition/drawn_sizes",
    "images/part",
    "images/validation",
    "images/hold_out",
    "images/outliers",
    "text/hold_out",
    "text/limit",
    "personal/likes",
    "personal/questions",
    "nodes/hold_out",
    "nodes/outliers",
    "nodes/clusters",
    "schedule/layers",
    "schedule/nodes",
    "schedule/sampled",
    "schedule/server_order",
    "schedule/faults",
    "schedule/drawn",
    "schedule/walk",
    "topology/edges",
    "shuffle",
    "fleet/figures",
    "fleet/windows",
    "clock/stragglers",
    "clock/drops",
    "clock/fading",
    "scct/devices",
    "scct/samples",
    "scct/search",
    "scct/epochs",
    "scct/batches",
    "scct/hold_out",
    "key/weights",
    "key/adapters",
    "key/visits",
)
"""Every stream of a run. A new one is a line here; `tests/test_streams.py` sees them apart."""


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """The generator of a stream.

    Args:
      seed: of the run.
      name: one of `NAMES`.
      *numbers: which of the streams of that name, each at least 0 and below 2^32.
    """
    sequence = _sequence(seed, name, numbers)
    return np.random.default_rng(sequence)


def of_data(seed: int) -> np.random.RandomState:
    """The generator of a split that is part of a data set and of no run's seed.

    NumPy's legacy one, as scikit-learn takes it: its numbers are the same in every version.
    """
    return np.random.RandomState(seed)


def integer(seed: int, name: str) -> int:
    """A number below 2^32 drawn for a library that takes nothing but a seed."""
    (number,) = _sequence(seed, name, ()).generate_state(1)
    return int(number)


def key(seed: int, name: str) -> jax.Array:
    """The PRNG key of a stream; `jax.random.fold_in` makes those of its parts."""
    return jax.random.key(integer(seed, name))


def _sequence(seed: int, name: str, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    if name not in NAMES:
        raise ValueError(f"{name} is no stream of snake_jax.streams.NAMES")
    # Two words of the name's digest tell names apart, the count tells (1,) from (1, 0).
    digest = hashlib.sha256(name.encode()).digest()
    words = np.frombuffer(digest[:8], "<u4").tolist()
    return np.random.SeedSequence(seed, spawn_key=(*words, len(numbers), *numbers))
