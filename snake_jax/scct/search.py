"""The loop that finds the small timescale's optimum, whole subcarriers included.

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

from typing import NamedTuple

import jax
import jax.numpy as jnp

JUST_BELOW = 1e-12
"""Relative: a V that is not reached with this much less is the optimum."""
FIRST = 1.01
"""The first target over the relaxation's V: whole subcarriers put the optimum a little above it."""
_MARGIN = 1 + 1e-12  # a move must be worth more than rounding, or moves could go round in a circle
_GALLOP = 4.0  # a far target lies this much of V's last fall below V
_SLOW = 0.5  # of the fall before: a fall that is more is slow, and a far target is next
_RAISED = 1.01  # the first target, by every step that finds it too low for a device
_NEEDED, _LEAST_NEEDED = 1e300, 1e290  # worth of a subcarrier without which a target is lost
_STEPS_PER_UNIT = 1000
_FEW = 40  # rows that take hardly longer than one


class LoopState(NamedTuple):
    """The loop's state of B rows, which lie along the last axis: a sum over devices is then one of
    vectors.

    Attributes:
      steps: done.
      spare: [B], subcarriers that are left to give, or missing where negative.
      subcarriers: [N, B], of the target.
      fewer_s: [N, B], link time with one less.
      link_s: [N, B], with just as many.
      more_s: [N, B], with one more.
      best: [N, B], subcarriers that reach `level_s`.
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


class RowInputs(NamedTuple):
    """What B rows are given: which sample [B], c [N, B] and a [N, B]."""

    sample: jax.Array
    device_s: jax.Array
    whole_edge_s: jax.Array


class _Offers(NamedTuple):
    """What a target asks of B rows.

    Attributes:
      taker: [B], to whom one more subcarrier is worth most.
      gained: [B], that much of the edge's share.
      giver: [B], to whom one less costs least.
      lost: [B], that much.
      total: [B], sum of the shares, S.
      slope: [B], how fast it falls with the target, -S'.
    """

    taker: jax.Array
    gained: jax.Array
    giver: jax.Array
    lost: jax.Array
    total: jax.Array
    slope: jax.Array


def run(search: LoopState, link_s: jax.Array, given: RowInputs) -> LoopState:
    """Steps until all rows are done: the last quarter of many rows goes on by itself.

    Most rows are done soon, and a step takes as long as there are rows.
    """
    rows = len(given.sample)
    left = rows // 4 if rows > _FEW else 0
    limit = _STEPS_PER_UNIT * link_s.shape[1] + link_s.shape[2]

    def going(search: LoopState) -> jax.Array:
        return ((~search.done).sum() > left) & (search.steps < limit)

    search = jax.lax.while_loop(going, lambda now: _step(now, link_s, given), search)
    if not left:
        return search

    # False sorts before True.
    chosen = jnp.argsort(search.done)[:left]

    def some(array: jax.Array) -> jax.Array:
        return array[..., chosen] if array.ndim else array

    def put(array: jax.Array, changed: jax.Array) -> jax.Array:
        return array.at[..., chosen].set(changed) if array.ndim else changed

    part = run(jax.tree.map(some, search), link_s, jax.tree.map(some, given))
    return jax.tree.map(put, search, part)


def _step(search: LoopState, link_s: jax.Array, given: RowInputs) -> LoopState:
    """One move of a subcarrier, or one of Newton's steps, or the next target, in every row."""
    offers = _offers(search, given)

    # What rounding left is given or taken first; then a move must be worth it.
    asking = ~search.rooting & ~search.done
    even = search.spare == 0
    worth_it = (offers.gained > offers.lost * _MARGIN) & (offers.lost < _LEAST_NEEDED)
    better = (offers.taker != offers.giver) & worth_it
    takes = asking & ((search.spare > 0) | (even & better))
    gives = asking & ((search.spare < 0) | (even & better))

    # Where none moves, the sum is phi: the target is reached or refuted.
    settled = asking & even & ~better
    judged = _judged(search, given, offers, settled)
    taker = jnp.where(takes, offers.taker, -1)
    giver = jnp.where(gives, offers.giver, -1)
    return _moved(judged, link_s, given.sample, taker, giver)


def _offers(search: LoopState, given: RowInputs) -> _Offers:
    """What the target takes of the edge now, and with one subcarrier less or more."""
    room_s = search.target_s - given.device_s  # for link and edge
    bracket_s = room_s - search.link_s
    # A root is at least a_n above the rest, whatever rounding says.
    bracket_s = jnp.where(search.rooting, jnp.maximum(bracket_s, given.whole_edge_s), bracket_s)
    share = _share(given.whole_edge_s, bracket_s)
    less = _share(given.whole_edge_s, room_s - search.fewer_s) - share
    more = share - _share(given.whole_edge_s, room_s - search.more_s)

    # Too few subcarriers for the target at all: more are worth everything, none should go. Where
    # some must, the device with most of them gives, never the last one.
    more = jnp.where(jnp.isinf(share), jnp.inf, more)
    lent = jnp.where(search.subcarriers > 1, _NEEDED / search.subcarriers, jnp.inf)
    less = jnp.where(jnp.isinf(share) | jnp.isinf(less), lent, less)
    gained, lost = more.max(axis=0), less.min(axis=0)

    used = given.whole_edge_s > 0
    slope = jnp.where(used, share / jnp.where(used, bracket_s, 1.0), 0.0)
    return _Offers(
        taker=_first(more == gained),
        gained=gained,
        giver=_first(less == lost),
        lost=lost,
        total=share.sum(axis=0),
        slope=slope.sum(axis=0),
    )


def _judged(search: LoopState, given: RowInputs, offers: _Offers, settled: jax.Array) -> LoopState:
    """The next target or Newton step of every row, and what is known of V."""
    # The first target is a guess, and every device that it makes late moves it up. It leads to a
    # root whether it is reached or not: there is no V before.
    begun = jnp.isfinite(search.level_s)
    unreached = settled & (offers.total > 1)
    refuted = unreached & begun
    reached = settled & ~refuted
    late = ~search.rooting & ~begun & jnp.isinf(offers.gained)
    target_s = jnp.where(late, search.target_s * _RAISED, search.target_s)

    # Newton's step on 1 / S - 1, from a reached target back to the root or on from the left. The
    # tangent says nothing where no device needs the edge, or the target is out of reach.
    newton_s = offers.total * (offers.total - 1) / jnp.where(offers.slope > 0, offers.slope, 1.0)
    on = search.rooting & ~search.done & (newton_s > 4e-16 * search.target_s)
    rooted = search.rooting & ~search.done & ~on
    newton_s = jnp.where((offers.slope > 0) & ~unreached, search.target_s + newton_s, 0.0)
    left_s = (given.device_s + search.link_s + given.whole_edge_s).max(axis=0)
    target_s = jnp.where(reached | on, jnp.maximum(newton_s, left_s), target_s)

    # Once V is lower or a target is refuted, the next: just below V, or far where V fell slowly.
    level_s = jnp.where(rooted, search.target_s, search.level_s)
    fall_s = jnp.where(rooted, search.level_s - level_s, search.fall_s)
    refuted_s = jnp.where(unreached, search.target_s, search.refuted_s)
    refuted_s = jnp.maximum(refuted_s, search.refuted_s)
    slow = search.near & rooted & (fall_s > _SLOW * search.fall_s)
    turn = rooted | refuted
    near = jnp.where(turn, ~slow, search.near)
    far_s = jnp.maximum(level_s - _GALLOP * fall_s, 0.5 * (level_s + refuted_s))
    asked_s = jnp.where(near, level_s * (1 - JUST_BELOW), far_s)
    tight = turn & (level_s - refuted_s <= JUST_BELOW * level_s)
    return search._replace(
        steps=search.steps + 1,
        best=jnp.where(rooted, search.subcarriers, search.best),
        level_s=level_s,
        fall_s=fall_s,
        refuted_s=refuted_s,
        target_s=jnp.where(turn, asked_s, target_s),
        rooting=reached | on,
        near=near,
        done=search.done | tight | (refuted & search.near),
    )


def _share(whole_edge_s: jax.Array, bracket_s: jax.Array) -> jax.Array:
    """g: infinite where no time is left, 0 where nothing is to be done in it."""
    open_ = bracket_s > 0
    share = whole_edge_s / jnp.where(open_, bracket_s, 1.0)
    impossible = (bracket_s < 0) | (whole_edge_s > 0)
    return jnp.where(open_, share, jnp.where(impossible, jnp.inf, 0.0))


def _first(those: jax.Array) -> jax.Array:
    """[B] the first row of [N, B] where it holds; argmax would not be vectorised over B."""
    nodes = jnp.arange(len(those))[:, None]
    return jnp.where(those, nodes, len(those) - 1).min(axis=0)


def _moved(
    search: LoopState, link_s: jax.Array, sample: jax.Array, taker: jax.Array, giver: jax.Array
) -> LoopState:
    """One subcarrier of each row from giver to taker [B]; -1: none moves."""
    nodes = jnp.arange(len(search.subcarriers))[:, None]
    takes, gives = nodes == taker, nodes == giver
    above = jnp.where(takes, search.subcarriers + 2, 0).sum(axis=0)
    below = jnp.where(gives, search.subcarriers - 2, 0).sum(axis=0)
    new_more_s = link_s[sample, taker, above]
    new_fewer_s = link_s[sample, giver, below]
    fewer_s = jnp.where(takes, search.link_s, jnp.where(gives, new_fewer_s, search.fewer_s))
    same_s = jnp.where(takes, search.more_s, jnp.where(gives, search.fewer_s, search.link_s))
    more_s = jnp.where(takes, new_more_s, jnp.where(gives, search.link_s, search.more_s))
    change = takes.astype(search.subcarriers.dtype) - gives
    return search._replace(
        spare=search.spare - change.sum(axis=0),
        subcarriers=search.subcarriers + change,
        fewer_s=fewer_s,
        link_s=same_s,
        more_s=more_s,
    )
