"""What a method is: a plan of visits, a way its weights travel, and a merge. Steps are the same for all."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from snake_jax.config import Config
from snake_jax.executor import VisitResult
from snake_jax.layers import Params
from snake_jax.schedule import Plan, Round

Shards = Sequence[np.ndarray]

NETWORK_FLAGS = frozenset({"cached"})
RELAY_FLAGS = NETWORK_FLAGS | {"mode", "distill", "carry_optimizer_state", "interrupt", "fault_rate", "interruption"}


class Algorithm(NamedTuple):
    """A method as pure functions.

    Attributes:
      name: the value of `--algorithm`.
      rounds: `(plan, cycle) -> rounds` of the cycle; a round's visits run side by side from the same parameters.
      traffic: none (data and model in one place), relay (visit after visit, through the server or node to node) or star
        (every visit through the server, which merges).
      init_merge: `(config, params) -> state` of the merge, a tree of arrays.
      merge: `(config, params, state, results) -> (params, state)` after a round.
      shards: `shards -> shards`, where the data is not trained on as it lies on the nodes.
      flags: those of the flags not meant for every method that it has a use for (`RELAY_FLAGS`, ...).
    """

    name: str
    rounds: Callable[[Plan, int], tuple[Round, ...]]
    traffic: str
    init_merge: Callable[[Config, Params], Any]
    merge: Callable[[Config, Params, Any, Sequence[VisitResult]], tuple[Params, Any]]
    shards: Callable[[Shards], Shards] = lambda shards: shards
    flags: frozenset[str] = frozenset()


def no_merge_state(config: Config, params: Params) -> dict[str, Any]:
    """For merges that remember nothing."""
    del config, params
    return {}


def replace(config: Config, params: Params, state: Any, results: Sequence[VisitResult]) -> tuple[Params, Any]:
    """The trained layers take the place of the old ones."""
    del config
    for result in results:
        params = {**params, **result.layers}
    return params, state
