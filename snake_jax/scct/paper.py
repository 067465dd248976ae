"""Algorithm 1 of the paper, mended as docs/scct.md says, for many samples side by side in NumPy.

Its outer loop does nothing after the first pass where every device needs the edge: the shares make
all of them equally slow, V; subcarriers that are no worse under these shares must be at least as
many for each device, and their sum is K, so they are the same.
"""

from typing import Literal, NamedTuple

import numpy as np

from snake_jax.scct import shares as edge
from snake_jax.scct.latency import LatencyProblem, edge_s, linked_s

Ties = Literal["slowest", "first"]
PASSES = 20
"""I, which the paper leaves open: the most; a pass that changes nothing is the last."""


class Steps(NamedTuple):
    """What Algorithm 1 comes to.

    Attributes:
      shares: alpha [..., N].
      subcarriers: beta [..., N].
      passes: of the outer loop, the one that changed nothing among them.
      levels_s: the slowest device's seconds [...], after every subcarrier and every change of the
        shares, in order: the inner steps of figure 6.
    """

    shares: np.ndarray
    subcarriers: np.ndarray
    passes: int
    levels_s: list[np.ndarray]


def algorithm1(problem: LatencyProblem, ties: Ties = "slowest", passes: int = PASSES) -> Steps:
    """Subcarriers for the shares, shares for the subcarriers, until nothing changes.

    Args:
      problem: of any leading shape.
      ties: who gets the next subcarrier where several are slowest. `first` is line 11 as written:
        none of them alone lowers the maximum, so every gain is 0 and the first device has it.
      passes: of the outer loop, at most.
    """
    alpha = np.full(problem.device_s.shape, 1 / problem.device_s.shape[-1])
    subcarriers = np.zeros(problem.device_s.shape, int)
    levels_s: list[np.ndarray] = []
    done = 0
    while done < passes:
        done += 1
        # Lines 1 to 13, with line 1 inside the loop: else K - N more would go out every pass.
        before = subcarriers
        subcarriers = _handed_out(problem, alpha, ties, levels_s)
        if np.array_equal(before, subcarriers):
            break
        # Lines 14 to 19: all devices that need the edge become equally slow.
        rest_s = problem.device_s + linked_s(problem, subcarriers)
        alpha = _shared_out(problem.whole_edge_s, rest_s)
        levels_s.append((rest_s + edge_s(problem.whole_edge_s, alpha)).max(axis=-1))
    return Steps(alpha, subcarriers, done, levels_s)


def _handed_out(
    problem: LatencyProblem, alpha: np.ndarray, ties: Ties, levels_s: list[np.ndarray]
) -> np.ndarray:
    """Lines 1 to 13: one subcarrier each, then one after the other by the greatest gain."""
    shape = problem.device_s.shape
    nodes = np.arange(shape[-1])
    fixed_s = problem.device_s + edge_s(problem.whole_edge_s, alpha)
    table = np.broadcast_to(problem.link_s, (*shape, problem.subcarriers))
    subcarriers = np.ones(shape, int)
    seconds = fixed_s + table[..., 0]
    for _ in range(problem.subcarriers - shape[-1]):
        # Only the slowest device can lower the maximum, and only where no other is as slow.
        chosen = seconds.argmax(axis=-1)[..., None]
        if ties == "first":
            tied = (seconds == seconds.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True) > 1
            chosen = np.where(tied, 0, chosen)
        subcarriers = subcarriers + (nodes == chosen)
        now = np.take_along_axis(subcarriers, chosen, axis=-1)
        rows = np.take_along_axis(table, chosen[..., None], axis=-2)[..., 0, :]
        linked = np.take_along_axis(rows, now - 1, axis=-1)
        fixed = np.take_along_axis(fixed_s, chosen, axis=-1)
        np.put_along_axis(seconds, chosen, fixed + linked, axis=-1)
        levels_s.append(seconds.max(axis=-1))
    return subcarriers


def _shared_out(whole_edge_s: np.ndarray, rest_s: np.ndarray) -> np.ndarray:
    """The optimum of equation 23: the whole edge, to those that need it."""
    # A device with all layers must not hold up V: its rest counts as nothing here.
    needing_s = np.where(whole_edge_s > 0, rest_s, 0.0)
    return edge.shares(whole_edge_s, needing_s, edge.level_s(whole_edge_s, needing_s))
