"""The small timescale solved to the optimum, whole subcarriers included, in one compiled loop.

For a target V the least shares are g_n(V, beta) = a_n / (V - c_n - t_n(beta)), so V is reachable
where phi(V), the least sum of them over whole beta with sum K, is at most 1. Each g_n is convex and
falls in beta: the rate x log(1 + c / x) is a perspective of a concave function, so concave; a time
1 / R is convex, V - c - t concave, and one over a positive concave function convex. A separable
convex sum under one sum constraint is least where no unit is worth more elsewhere (Gross 1956, Fox
1966). phi falls in V, so a search on V alone is exact.

The search holds V, reached, and a target, asked. A target is refuted (phi > 1) or it is reached,
and then V is the root at its beta (`snake_jax/scct/shares.py`). Targets take turns: one just below
V, whose refutation is the proof that V is least, and one further below, by some times what V fell
last, at most halfway to what is refuted. The first kind alone would do in exact arithmetic; but
devices with all layers bound V by c + t alone, V then falls by one subcarrier a turn, and rounding
can stop it short.

phi is not computed from nothing for each target: single subcarriers move from where they are worth
least to where they are worth most, until none does. One step of the loop moves a subcarrier or does
a step of Newton's method, in every row of [samples, devices] at once, each at its own target. The
search begins at the relaxation with fractional subcarriers (`snake_jax/scct/relaxed.py`), so that
few have to move.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.scct.relaxed import relaxed

JUST_BELOW = 1e-12
"""Relative: a V that is not reached with this much less is the optimum."""
_MARGIN = 1 + 1e-12  # a move must be worth more than rounding, or moves could go round in a circle
_GALLOP = 4.0  # a far target lies this much of V's last fall below V
_FIRST = 1.01  # of the relaxation's V: near the optimum, which whole subcarriers put a little above
_SLOW = 0.5  # of the fall before: a fall that is more is slow, and a far target is next
_NEEDED, _LEAST_NEEDED = 1e300, 1e290  # worth of a subcarrier without which a target is lost
_STEPS_PER_UNIT = 1000


class Exact(NamedTuple):
    """The optimum of every row: V [B], its subcarriers [B, N], and the loop's steps."""

    level_s: np.ndarray
    subcarriers: np.ndarray
    steps: int


class Tables(NamedTuple):
    """Link times of samples, padded and in float64: what all split points have in common.

    Attributes:
      link_s: [Q, N, K + 2]; index b is b subcarriers, infinite for none.
      least_s: [Q, N], with as many subcarriers as one device can have.
      start: [N], the subcarriers of an equal allocation.
      real: [N], whether a column is a device.
      shape: Q, N and K before padding.
    """

    link_s: jax.Array
    least_s: jax.Array
    start: np.ndarray
    real: np.ndarray
    shape: tuple[int, int, int]


class _Search(NamedTuple):
    """The loop's state of B rows.

    Attributes:
      steps: done.
      spare: [B], subcarriers that are left to give, or missing where negative.
      subcarriers: [B, N], of the target.
      fewer_s: [B, N], link time with one less.
      link_s: [B, N], with just as many.
      more_s: [B, N], with one more.
      best: [B, N], subcarriers that reach `level_s`.
      level_s: [B], the least V reached.
      fall_s: [B], by how much V fell last.
      refuted_s: [B], the largest V known not to be reachable.
      target_s: [B], that is asked, or Newton's value on the way to a root.
      rooting: [B], whether `target_s` is Newton's.
      near: [B], whether the target is the one just below V.
      done: [B].
    """

    steps: jax.Array
    spare: jax.Array
    subcarriers: jax.Array
    fewer_s: jax.Array
    link_s: jax.Array
    more_s: jax.Array
    best: jax.Array
    level_s: jax.Array
    fall_s: jax.Array
    refuted_s: jax.Array
    target_s: jax.Array
    rooting: jax.Array
    near: jax.Array
    done: jax.Array


def equal_subcarriers(nodes: int, subcarriers: int) -> np.ndarray:
    """[N]: K // N each, the remainder to the first."""
    each, left = divmod(subcarriers, nodes)
    return each + (np.arange(nodes) < left)


def tables(link_s: np.ndarray) -> Tables:
    """Link times [Q, N, K] of 1 to K subcarriers, made ready for `solve`.

    Sizes are rounded up, so that scenarios of nearly the same size share one program. A device that
    pads has nothing to do and one subcarrier, which it cannot give.
    """
    samples, nodes, subcarriers = link_s.shape
    width = _rounded(subcarriers, 16) + 2
    padded = np.zeros((_rounded(samples, 32), _rounded(nodes, 4), width))
    padded[..., 0] = np.inf
    padded[:samples, :nodes, 1 : subcarriers + 1] = link_s
    padded[:samples, :nodes, subcarriers + 1 :] = link_s[..., -1:]
    start = np.ones(padded.shape[1], np.int32)
    start[:nodes] = equal_subcarriers(nodes, subcarriers)
    with jax.enable_x64(True), _host():
        return Tables(
            jnp.asarray(padded),
            jnp.asarray(padded[..., subcarriers - nodes + 1]),
            start,
            np.arange(len(start)) < nodes,
            (samples, nodes, subcarriers),
        )


def solve(ready: Tables, device_s: np.ndarray, whole_edge_s: np.ndarray) -> Exact:
    """The optimum of S candidates on Q samples, in one compiled call in float64.

    Args:
      ready: of the samples.
      device_s: c [S, Q, N].
      whole_edge_s: a [S, Q, N].

    Returns:
      Rows of [S Q], candidate by candidate.

    Raises:
      RuntimeError: the search did not end, which is a bug.
    """
    samples, nodes, _ = ready.shape
    count = len(device_s) * samples
    # Rows that pad repeat others, columns that pad have nothing to do.
    rows, columns = _rounded(count, 32), (0, len(ready.start) - nodes)
    sample = np.resize(np.arange(samples, dtype=np.int32), rows)
    fixed = np.resize(device_s, (rows, nodes))
    whole = np.resize(whole_edge_s, (rows, nodes))
    fixed, whole = (np.pad(array, ((0, 0), columns)) for array in (fixed, whole))
    with jax.enable_x64(True), _host():
        found = _search(*ready[:4], sample, fixed, whole)
        level_s, best, steps, done = jax.device_get(found)
    if not done.all():
        raise RuntimeError(f"the search for the best allocation did not end in {steps} steps")
    return Exact(level_s[:count], best[:count, :nodes], int(steps))


def _rounded(size: int, least: int) -> int:
    """The next power of two from the least up to 32, the next multiple of 8 above."""
    if size > 32:
        return -(-size // 8) * 8
    return max(least, 1 << (size - 1).bit_length())


def _host() -> AbstractContextManager[object]:
    """The CPU: thousands of tiny steps one after the other are no work for an accelerator."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


@jax.jit
def _search(
    link_s: jax.Array,
    least_s: jax.Array,
    start: jax.Array,
    real: jax.Array,
    sample: jax.Array,
    device_s: jax.Array,
    whole_edge_s: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """V, its subcarriers, the steps and whether each row is done."""
    rows = len(sample)
    nodes = jnp.arange(len(start))

    def looked_up(subcarriers: jax.Array) -> jax.Array:
        return link_s[sample[:, None], nodes, subcarriers]

    def going(search: _Search) -> jax.Array:
        limit = _STEPS_PER_UNIT * link_s.shape[1] + link_s.shape[2]
        return ~search.done.all() & (search.steps < limit)

    def step(search: _Search) -> _Search:
        return _step(search, link_s, sample, device_s, whole_edge_s)

    equal = jnp.broadcast_to(start, device_s.shape)
    begun = relaxed(looked_up, equal, real, device_s, whole_edge_s)
    alone_s = device_s + least_s[sample] + whole_edge_s
    none_s = jnp.full(rows, jnp.inf)
    no = jnp.zeros(rows, bool)
    first = _Search(
        steps=jnp.zeros((), int),
        spare=start.sum() - begun.subcarriers.sum(axis=1),
        subcarriers=begun.subcarriers,
        fewer_s=looked_up(begun.subcarriers - 1),
        link_s=looked_up(begun.subcarriers),
        more_s=looked_up(begun.subcarriers + 1),
        best=begun.subcarriers,
        level_s=none_s,
        fall_s=none_s,
        # No device is faster than with the whole edge and all subcarriers that others can spare.
        refuted_s=alone_s.max(axis=1) * (1 - JUST_BELOW),
        target_s=begun.level_s * _FIRST,
        rooting=no,
        near=no,
        done=no,
    )
    last = jax.lax.while_loop(going, step, first)
    return last.level_s, last.best, last.steps, last.done


def _step(
    search: _Search,
    link_s: jax.Array,
    sample: jax.Array,
    device_s: jax.Array,
    whole_edge_s: jax.Array,
) -> _Search:
    """One move of a subcarrier, or one of Newton's steps, or the next target, in every row."""
    rooting = search.rooting
    room_s = search.target_s[:, None] - device_s  # for link and edge
    used = whole_edge_s > 0

    # What the target takes of the edge now, and with one subcarrier less or more.
    bracket_s = room_s - search.link_s
    bracket_s = jnp.where(rooting[:, None], jnp.maximum(bracket_s, whole_edge_s), bracket_s)
    share = _share(whole_edge_s, bracket_s)
    worth_less = _share(whole_edge_s, room_s - search.fewer_s) - share
    worth_more = share - _share(whole_edge_s, room_s - search.more_s)
    # Too few subcarriers for the target at all: more are worth everything, none should go. Where
    # some must, the device with most of them gives, never the last one.
    worth_more = jnp.where(jnp.isinf(share), jnp.inf, worth_more)
    needed = jnp.isinf(share) | jnp.isinf(worth_less)
    lent = jnp.where(search.subcarriers > 1, _NEEDED / search.subcarriers, jnp.inf)
    worth_less = jnp.where(needed, lent, worth_less)
    taker, giver = worth_more.argmax(axis=1), worth_less.argmin(axis=1)
    gained, lost = worth_more.max(axis=1), worth_less.min(axis=1)
    asking = ~rooting & ~search.done
    take = asking & (search.spare > 0)
    give = asking & (search.spare < 0)
    begun = jnp.isfinite(search.level_s)
    better = begun & (taker != giver) & (gained > lost * _MARGIN) & (lost < _LEAST_NEEDED)
    move = asking & (search.spare == 0) & better

    # Where none moves, the sum is phi: the target is reached or refuted. The first target only says
    # who gives or takes what the rounding left, and leads to a root: there is no V before.
    total = share.sum(axis=1)
    settled = asking & (search.spare == 0) & ~better
    unreached = settled & (total > 1)
    refuted = unreached & begun
    reached = settled & ~refuted

    # Newton's step on 1 / S - 1, from a reached target back to the root or on from the left.
    slope = jnp.where(used, share / jnp.where(used, bracket_s, 1.0), 0.0).sum(axis=1)
    newton_s = total * (total - 1) / jnp.where(slope > 0, slope, 1.0)
    on = rooting & ~search.done & (newton_s > 4e-16 * search.target_s)
    rooted = rooting & ~search.done & ~on
    left_s = (device_s + search.link_s + whole_edge_s).max(axis=1)
    # No device needs the edge, or the target is out of reach: the tangent says nothing.
    newton_s = jnp.where((slope > 0) & ~unreached, search.target_s + newton_s, 0.0)
    newton_s = jnp.maximum(newton_s, left_s)

    # The next target, once one is refuted or V is lower.
    level_s = jnp.where(rooted, search.target_s, search.level_s)
    fall_s = jnp.where(rooted, search.level_s - level_s, search.fall_s)
    refuted_s = jnp.where(refuted, search.target_s, search.refuted_s)
    proven = refuted & search.near
    tight = (rooted | refuted) & (level_s - refuted_s <= JUST_BELOW * level_s)
    turn = rooted | refuted
    slow = search.near & rooted & (fall_s > _SLOW * search.fall_s)
    near = jnp.where(turn, ~slow, search.near)
    far_s = jnp.maximum(level_s - _GALLOP * fall_s, 0.5 * (level_s + refuted_s))
    asked_s = jnp.where(near, level_s * (1 - JUST_BELOW), far_s)
    target_s = jnp.where(turn, asked_s, jnp.where(reached | on, newton_s, search.target_s))
    moved = _moved(
        search, link_s, sample, jnp.where(move | take, taker, -1), jnp.where(move | give, giver, -1)
    )
    return moved._replace(
        steps=search.steps + 1,
        best=jnp.where(rooted[:, None], search.subcarriers, search.best),
        level_s=level_s,
        fall_s=fall_s,
        refuted_s=refuted_s,
        target_s=target_s,
        rooting=reached | on,
        near=near,
        done=search.done | proven | tight,
    )


def _share(whole_edge_s: jax.Array, bracket_s: jax.Array) -> jax.Array:
    """g: infinite where no time is left, 0 where nothing is to be done in it."""
    open_ = bracket_s > 0
    share = whole_edge_s / jnp.where(open_, bracket_s, 1.0)
    impossible = (bracket_s < 0) | (whole_edge_s > 0)
    return jnp.where(open_, share, jnp.where(impossible, jnp.inf, 0.0))


def _moved(
    search: _Search, link_s: jax.Array, sample: jax.Array, taker: jax.Array, giver: jax.Array
) -> _Search:
    """One subcarrier of each row from giver to taker [B]; -1: none moves."""
    nodes = jnp.arange(search.subcarriers.shape[1])
    takes = nodes == taker[:, None]
    gives = nodes == giver[:, None]
    rows = jnp.arange(len(sample))
    above = search.subcarriers[rows, taker] + 2
    below = search.subcarriers[rows, giver] - 2
    new_more_s = link_s[sample, taker, above][:, None]
    new_fewer_s = link_s[sample, giver, below][:, None]
    fewer_s = jnp.where(takes, search.link_s, jnp.where(gives, new_fewer_s, search.fewer_s))
    same_s = jnp.where(takes, search.more_s, jnp.where(gives, search.fewer_s, search.link_s))
    more_s = jnp.where(takes, new_more_s, jnp.where(gives, search.link_s, search.more_s))
    change = takes.astype(search.subcarriers.dtype) - gives
    return search._replace(
        spare=search.spare - change.sum(axis=1),
        subcarriers=search.subcarriers + change,
        fewer_s=fewer_s,
        link_s=same_s,
        more_s=more_s,
    )
