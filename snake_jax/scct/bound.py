"""A bound that no split points beat: every sample takes its own ("wait and see").

Equation 29 asks for one split point a device, good on the mean of Q samples. Let each sample
choose for itself, and the mean of the samples' optima is below what any common choice reaches.
What moving the parameters takes enters as the least that the allowed split points cost, and the
edge's memory (constraint 21-7) not at all; both leave it a bound.

One sample is solved exactly. For a target V, device n needs at least the share

  g_n(s, beta) = (L - s) p_e / (V - s p - t_n(beta))

of the edge, where p and p_e are seconds of a layer on the device and on the whole edge, and t_n
those on beta subcarriers. With U = V - t_n(beta), dg/ds has the sign of L p - U, whatever s is: the
least share is at the smallest or at the largest allowed split point, and none between needs a look.
The least of both, f_n(beta), is not convex, so subcarriers are dealt out by dynamic programming
over the devices, a (min, +) convolution of O(N K^2). V is reached where the shares sum to at most
1.

All rows (samples, of one or of many restrictions) are solved side by side in NumPy. The inner
statement is over [rows, subcarriers], so there is little overhead to compile away, and nothing
compiles anew for each number of rows that branch and bound asks for.
"""

from typing import NamedTuple

import numpy as np

from snake_jax.scct import latency
from snake_jax.scct import shares as edge
from snake_jax.scct.scenario import Scenario, splits_that_fit

MARGIN = 1e-12
"""A target is refuted this much below what is reached; float64 resolves a thousandth of it."""


class SampleRows(NamedTuple):
    """Samples to be solved, each by itself; N devices, M = K - N + 1 subcarriers at most for one.

    Attributes:
      device_layer_s: [B, N] seconds of a layer, forward and backward, on the device.
      link_s: [B, N, M] seconds on 1 to M subcarriers.
      edge_layer_s: seconds of a layer with the whole edge.
      layers: L.
    """

    device_layer_s: np.ndarray
    link_s: np.ndarray
    edge_layer_s: float
    layers: int

    def at(self, rows: np.ndarray) -> "SampleRows":
        """These rows of them, in this order."""
        return self._replace(device_layer_s=self.device_layer_s[rows], link_s=self.link_s[rows])


class Least(NamedTuple):
    """The least latencies of rows.

    Attributes:
      refuted_s: [B] no choice and no allocation reaches this; below `reached_s` by `MARGIN`.
      reached_s: [B] seconds of an iteration, without the cloud link, that `splits` reach.
      splits: [B, N] each at an end of its range.
    """

    refuted_s: np.ndarray
    reached_s: np.ndarray
    splits: np.ndarray


class LowerBound(NamedTuple):
    """What no split points beat.

    Attributes:
      objective_s: below equation 29 of all split points allowed, seconds a round.
      splits: [Q, N] what each sample would choose for itself.
    """

    objective_s: float
    splits: np.ndarray


def wait_and_see(scenario: Scenario, ranges: np.ndarray | None = None) -> LowerBound:
    """The bound of a scenario.

    Args:
      scenario: of which.
      ranges: [N, 2] ints, the smallest and the largest split point allowed; left out: all that the
        devices' memory allows.
    """
    if ranges is None:
        ranges = ranges_that_fit(scenario)
    rows = rows_of(scenario)
    every = np.broadcast_to(ranges, (len(rows.link_s), *ranges.shape))
    least = least_latency(rows, every)
    return LowerBound(bounded_s(scenario, ranges, least.refuted_s), least.splits)


def ranges_that_fit(scenario: Scenario) -> np.ndarray:
    """[N, 2] ints: 1 and the largest split point of constraint 21-6."""
    largest = splits_that_fit(scenario)
    return np.stack([np.ones_like(largest), largest], axis=1)


def rows_of(scenario: Scenario) -> SampleRows:
    """A row for each sample of a scenario."""
    model, server = scenario.model, scenario.server
    # Each device has one subcarrier at least, which limits what one can have.
    most = server.subcarriers - len(scenario.devices) + 1
    return SampleRows(
        latency.device_s(model, 1, scenario.samples.flops_per_s),
        latency.link_table_s(scenario)[..., :most],
        latency.layers_flops(model, 1) / server.flops_per_s,
        model.layers,
    )


def bounded_s(scenario: Scenario, ranges: np.ndarray, refuted_s: np.ndarray) -> float:
    """Equation 29 with what no sample reaches [Q], and what moving into the ranges takes at least.

    Moving takes longer the farther the split point goes, so the nearest allowed one is cheapest.
    """
    nearest = ranges[:, 0].copy()
    for node, device in enumerate(scenario.devices):
        if device.split is not None:
            nearest[node] = np.clip(device.split, *ranges[node])
    return float(latency.objective_s(scenario, nearest, refuted_s))


def least_latency(rows: SampleRows, ranges: np.ndarray, above_s: np.ndarray | None = None) -> Least:
    """The least latency of each row where every row chooses its own split points.

    Args:
      rows: B samples.
      ranges: [B, N, 2] ints, the smallest and the largest split point allowed.
      above_s: [B] seconds known not to be reached, such as with wider ranges.
    """
    # Below a device alone with all that there is, nothing is reached.
    alone_s = _device_s(rows, ranges) + rows.link_s[:, :, -1:] + _edge_s(rows, ranges)
    refuted_s = alone_s.min(axis=2).max(axis=1) * (1 - MARGIN)
    if above_s is not None:
        refuted_s = np.maximum(refuted_s, above_s)
    # A start that is reached: equal parts, and the better split point with them.
    devices = ranges.shape[1]
    even = np.full(ranges.shape[:2], (rows.link_s.shape[2] - 1) // devices)
    better = (_device_s(rows, ranges) + devices * _edge_s(rows, ranges)).argmin(axis=2)
    splits = _picked(ranges, better)
    reached_s = _reached(rows, splits, even)
    # Targets alternate. Just below what is reached: if refuted, the row is solved; if not, its
    # plan leads by Newton's step to a better one. That alone may creep where devices keep all
    # layers, so every other target halves what is left.
    unsolved = np.arange(len(splits))
    halving = False
    while unsolved.size:
        few = rows.at(unsolved)
        low_s, high_s = refuted_s[unsolved], reached_s[unsolved]
        target_s = (low_s + high_s) / 2 if halving else high_s * (1 - MARGIN)
        shares, extra, chosen = _plan(few, ranges[unsolved], target_s)
        hit = shares <= 1
        refuted_s[unsolved] = np.where(hit, low_s, target_s)
        planned_s = np.minimum(_reached(few, chosen, extra), target_s)
        reached_s[unsolved] = np.where(hit, planned_s, high_s)
        splits[unsolved] = np.where(hit[:, None], chosen, splits[unsolved])
        left = refuted_s[unsolved] < reached_s[unsolved] * (1 - 2 * MARGIN)
        unsolved = unsolved[left]
        halving = not halving
    return Least(refuted_s, reached_s, splits)


def _plan(
    rows: SampleRows, ranges: np.ndarray, target_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least sum of shares that reaches a target [B], and how.

    Returns:
      [B] sums, inf where the target is out of reach; [B, N] subcarriers beyond the first; [B, N]
      split points.
    """
    shares = _shares(rows, ranges, target_s)
    ends = shares.argmin(axis=2)
    least = np.ascontiguousarray(shares.min(axis=2).transpose(1, 0, 2))
    sums = _sums(least)
    extras = _dealt(least, sums)
    chosen = np.take_along_axis(ends, extras[..., None], axis=2)[..., 0]
    return sums[-1, :, -1], extras, _picked(ranges, chosen)


def _shares(rows: SampleRows, ranges: np.ndarray, target_s: np.ndarray) -> np.ndarray:
    """g [B, N, 2, M] at both ends of the ranges; inf where no time is left for the edge."""
    device_s = _device_s(rows, ranges)[..., None]
    edge_s = _edge_s(rows, ranges)[..., None]
    room_s = target_s[:, None, None, None] - device_s - rows.link_s[:, :, None, :]
    shares = np.full(room_s.shape, np.inf)
    np.divide(edge_s, room_s, out=shares, where=room_s > 0)
    return shares


def _sums(least: np.ndarray) -> np.ndarray:
    """The (min, +) convolutions of f [N, B, M]: at [n, b, m] the least sum of devices 0 to n with m
    subcarriers beyond the first of each.
    """
    devices, _, most = least.shape
    sums = np.empty_like(least)
    sums[0] = least[0]
    for device in range(1, devices):
        before, mine, kept = sums[device - 1], least[device], sums[device]
        np.add(before, mine[:, :1], out=kept)
        for extra in range(1, most):
            given = before[:, : most - extra] + mine[:, extra : extra + 1]
            np.minimum(kept[:, extra:], given, out=kept[:, extra:])
    return sums


def _dealt(least: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """[B, N] subcarriers beyond the first of which the last sums are made, read backwards."""
    devices, batch, most = least.shape
    row = np.arange(batch)[:, None]
    extra = np.arange(most)
    dealt = np.zeros((batch, devices), int)
    left = np.full(batch, most - 1)
    for device in range(devices - 1, 0, -1):
        others = left[:, None] - extra
        total = sums[device - 1][row, np.maximum(others, 0)] + least[device]
        total[others < 0] = np.inf
        dealt[:, device] = total.argmin(axis=1)
        left = left - dealt[:, device]
    dealt[:, 0] = left
    return dealt


def _reached(rows: SampleRows, splits: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """[B] the least latency of fixed split points and subcarriers [B, N]; shares are optimal."""
    link_s = np.take_along_axis(rows.link_s, extra[..., None], axis=2)[..., 0]
    whole_edge_s = rows.edge_layer_s * (rows.layers - splits)
    return edge.level_s(whole_edge_s, rows.device_layer_s * splits + link_s)


def _device_s(rows: SampleRows, ranges: np.ndarray) -> np.ndarray:
    """[B, N, 2] seconds on the device at both ends of the ranges."""
    return rows.device_layer_s[..., None] * ranges


def _edge_s(rows: SampleRows, ranges: np.ndarray) -> np.ndarray:
    """[B, N, 2] seconds with all of the edge at both ends of the ranges."""
    return rows.edge_layer_s * (rows.layers - ranges)


def _picked(ranges: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[B, N] split points: the first (0) or second (1) end of each range."""
    return np.take_along_axis(ranges, ends[..., None], axis=2)[..., 0]
