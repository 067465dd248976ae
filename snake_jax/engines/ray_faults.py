"""Faults on demand, for tests and for the fault matrix: nothing of this happens in a run.

`SNAKE_JAX_TEST_FAULT=nan@4,die@7` in the process that starts a run has the node of visit 4 give
back numbers that are none, and kills that of visit 7 once it has trained. Others are `shape@4`,
`checksum@4`, `stale@4`, and `stall@4`, whose node goes on to answer heart-beats and never trains.
Who takes over is well.
"""

import os
import signal
import time
from collections.abc import Callable

import jax
import numpy as np

from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.params import PyTree

VARIABLE = "SNAKE_JAX_TEST_FAULT"
KINDS = ("nan", "shape", "checksum", "stale", "die", "stall")


def asked() -> str:
    """What the environment asks for; empty: nothing, as in every run."""
    return os.environ.get(VARIABLE, "")


def kind_for(fault: str, visit: Visit) -> str:
    """The kind of fault that strikes a visit; empty: none."""
    for word in filter(None, fault.split(",")):
        kind, _, turn = word.partition("@")
        if int(turn) == visit.turn and not visit.event:
            return kind
    return ""


def stalled(kind: str) -> None:
    """Where that is the fault, does not return."""
    while kind == "stall":
        time.sleep(3600)


def spoiled(kind: str, outcome: Outcome) -> Outcome:
    """The outcome with its arrays spoiled before a checksum is made of them.

    Args:
      kind: of the fault.
      outcome: as it was trained.
    """
    if kind == "stale" and outcome.started is not None:
        started = {name: number - 1 for name, number in outcome.started.items()}
        return outcome._replace(started=started)
    if kind == "nan":
        return _with_first(outcome, lambda array: np.full_like(array, np.nan))
    if kind == "shape":
        return _with_first(outcome, lambda array: array[:-1])
    return outcome


def sent(kind: str, values: list[PyTree]) -> list[PyTree]:
    """What is sent, spoiled after its checksum was made.

    Args:
      kind: of the fault.
      values: that are to be sent.
    """
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind != "checksum":
        return values
    first = jax.tree.map(lambda array: array + np.ones((), array.dtype), values[0])
    return [first, *values[1:]]


def _with_first(outcome: Outcome, change: Callable[[np.ndarray], np.ndarray]) -> Outcome:
    """The outcome with one array of its first layer changed."""
    name = next(iter(outcome.layers))
    leaves, structure = jax.tree.flatten(jax.device_get(outcome.layers[name]))
    changed = jax.tree.unflatten(structure, [change(leaves[0]), *leaves[1:]])
    return outcome._replace(layers={**outcome.layers, name: changed})
