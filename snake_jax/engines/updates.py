"""Whether an update may be merged: it is checked here, whatever engine it comes from.

An update is what a visit gives back: trained layers, optimizer states, and what the node remembers
or tells for its method. What arrives damaged, was trained from other layers than was asked for, has
other shapes, is not finite though its node says so, or moved too far is refused, and its visit is
lost as if it had never come back.
"""

import math
import zlib
from collections.abc import Mapping

import jax
import numpy as np

from snake_jax.algorithms.visits import Order, Outcome
from snake_jax.params import Params, PyTree

UNKNOWN_VERSION = -1
"""Of a layer that a node had, and nobody gave it for this visit."""


def checksum(outcome: Outcome) -> int:
    """CRC-32 over the bytes of all arrays of an outcome, in the order of their names."""
    found = 0
    for leaf in jax.tree.leaves(_arrays(outcome)):
        array = np.ascontiguousarray(jax.device_get(leaf))
        found = zlib.crc32(array.view(np.uint8).data, found)
    return found


def _arrays(outcome: Outcome) -> tuple[PyTree, ...]:
    return outcome.layers, outcome.states, outcome.memory, outcome.report


def refusal(outcome: Outcome, order: Order, params: Params, max_norm: float = 0.0) -> str:
    """Why an outcome is not to be merged; empty where it may be.

    Args:
      outcome: that came for the order.
      order: of the visit.
      params: the model that the visit started from.
      max_norm: how far the trained layers may have moved, as the L2 norm of all their changes;
        0: any way.
    """
    if outcome.checksum is not None and outcome.checksum != checksum(outcome):
        return "its checksum differs: what arrived is not what was sent"
    stale = _stale(outcome.started, order.layers)
    if stale:
        return f"it started from another version of {stale} than it was ordered to"
    misshapen = _misshapen(outcome.layers, {name: params[name] for name in order.visit.layers})
    if misshapen:
        return misshapen
    # A node that says itself that it diverged is a matter of --on_divergence.
    if not outcome.finite:
        return ""
    if not _is_finite(_arrays(outcome)):
        return "it is not finite, though its node says it is"
    if max_norm:
        norm = _moved(outcome.layers, params)
        if norm > max_norm:
            return f"it moved by {norm:.4g}, over --max_update_norm={max_norm:g}"
    return ""


def _stale(started: Mapping[str, int] | None, asked: Mapping[str, int]) -> str:
    """The first layer that a visit read in another version than it was asked to; empty: none."""
    if started is None:
        return ""
    for name, version in asked.items():
        if started.get(name) != version:
            return name
    return ""


def _misshapen(layers: Params, wanted: Params) -> str:
    """What is wrong with the shapes of trained layers; empty: nothing."""
    if layers.keys() != wanted.keys():
        return f"it has layers {', '.join(layers)}, not {', '.join(wanted)}"
    for name, like in wanted.items():
        own: object = jax.tree.structure(layers[name])
        models: object = jax.tree.structure(like)
        if own != models:
            return f"{name} has other arrays than the model's"
        pairs = zip(jax.tree.leaves(layers[name]), jax.tree.leaves(like), strict=True)
        for ours, theirs in pairs:
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                return (
                    f"{name} has an array {ours.dtype}{list(ours.shape)}, not "
                    f"{theirs.dtype}{list(theirs.shape)}"
                )
    return ""


def _is_finite(tree: PyTree) -> bool:
    """Whether all numbers of a tree of arrays are."""
    leaves = jax.tree.leaves(tree)
    # A CPU's lie on the host already: of a small node's visit even a needless call for each shows.
    if jax.default_backend() != "cpu":
        leaves = jax.device_get(leaves)
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)


def _moved(layers: Params, params: Params) -> float:
    """The L2 norm of the change of all these layers, summed in float64."""
    square = 0.0
    for name, layer in layers.items():
        pairs = zip(jax.tree.leaves(layer), jax.tree.leaves(params[name]), strict=True)
        for new, old in pairs:
            change = np.float64(jax.device_get(new)) - np.float64(jax.device_get(old))
            square += float(np.square(change).sum())
    return math.sqrt(square)
