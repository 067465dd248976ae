"""Simulated seconds and joules of a round, from FLOPs, bytes and what nodes can do. Analytic:
nothing is measured.

Within a visit one thing happens at a time: transfers in turn, then computing, node and server in
alternation. The visits of a round start together and do not slow each other down, neither on a link
nor at the server. The server is always there.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.config import RunConfig
from snake_jax.nodes.fleet import Fleet, Node
from snake_jax.nodes.ledger import SERVER, Transfer, place

_HOUR_S = 3600.0
_ABSENCES = 64  # drawn at first; doubled until they reach far enough


class Work(NamedTuple):
    """What a visit does.

    Attributes:
      flops: `{place: FLOPs}`, places named as in the ledger. The nodes in it and the visiting one
        take part.
      transfers: the visit's rows of the ledger.
      exchanges: messages to and fro in the visit, beyond one a row of the ledger: a batch's
        activations are one, its gradient another. Their bytes are in `transfers`.
      node: the visiting node, whose presence the visit depends on. All others are taken to be
        present: a chain of nodes is timed as if only its first ever left. None: the visit depends
          on nobody (the server works alone).
    """

    flops: Mapping[str, int]
    transfers: Sequence[Transfer]
    exchanges: int
    node: int | None


class Elapsed(NamedTuple):
    """What a round took.

    Attributes:
      seconds: from the start to the end of the last visit.
      node_joules: of all nodes, computing, sending and receiving. Waiting costs none.
      server_joules: of the server.
      wait_s: seconds that nodes stood waiting, present and idle, summed over the nodes that take
        part: within a visit while others compute or a message is under way, and where visits are
          synchronised until the last is done.
      away_s: seconds that visits stood still because their node's window was closed or it had
        dropped, summed.
      drops: of nodes, in the middle of visits.
    """

    seconds: float
    node_joules: float
    server_joules: float
    wait_s: float
    away_s: float
    drops: int


class Trace(NamedTuple):
    """What goes wrong: a pure function of the seed, the node, and the turn (stragglers) or the time
    (drops).

    Attributes:
      straggler_rate: the chance that a node computes slower in a turn.
      slowdown: how many times slower.
      drop_rate_per_hour: of a node that is present; times between are exponential.
      rejoin_s: mean of the exponential time until it is back.
      seed: of all draws.
    """

    straggler_rate: float = 0.0
    slowdown: float = 1.0
    drop_rate_per_hour: float = 0.0
    rejoin_s: float = 0.0
    seed: int = 0


class _Spent(NamedTuple):
    """A visit's seconds of activity and of standing still, its drops, and its members' idle seconds
    while active.
    """

    active_s: float
    away_s: float
    drops: int
    members: int
    idle_s: float


def trace_of(config: RunConfig) -> Trace:
    """The trace that the flags describe."""
    return Trace(
        config.straggler_rate,
        config.straggler_slowdown,
        config.drop_rate_per_hour,
        config.rejoin_s,
        config.seed,
    )


def elapse(
    fleet: Fleet, trace: Trace, now_s: float, turn: int, works: Sequence[Work], synchronised: bool
) -> Elapsed:
    """Seconds and joules of a round.

    A visit starts when its node is present, stands still while it is not, and goes on where it
    stopped. Its seconds are those of standing still and of activity. The latter are, for every
    transfer, its bytes over the slower of the sender's up and the receiver's down rate plus both
    latencies; for every place, its FLOPs over its rate, times the slowdown of a straggler; for
    every exchange, the latencies of the two slowest places that take part.

    Args:
      fleet: what nodes can do.
      trace: what goes wrong.
      now_s: simulated seconds since the start of the run; the end of this round is `now_s +
        seconds`.
      turn: of the round, for stragglers.
      works: its visits.
      synchronised: whether nodes that are done wait for the last.
    """
    spent = [_spend(fleet, trace, now_s, turn, work) for work in works]
    totals = [visit.active_s + visit.away_s for visit in spent]
    longest_s = max(totals, default=0.0)
    late_s = (
        sum(v.members * (longest_s - s) for v, s in zip(spent, totals, strict=True))
        if synchronised
        else 0.0
    )
    joules = [_joules(fleet, work) for work in works]
    return Elapsed(
        longest_s,
        sum(node for node, _ in joules),
        sum(server for _, server in joules),
        late_s + sum(visit.idle_s for visit in spent),
        sum(visit.away_s for visit in spent),
        sum(visit.drops for visit in spent),
    )


def _spend(fleet: Fleet, trace: Trace, now_s: float, turn: int, work: Work) -> _Spent:
    compute_s = {
        name: _compute_s(fleet, trace, turn, name, flops) for name, flops in work.flops.items()
    }
    transfer_s = [(t, _transfer_s(fleet, t)) for t in work.transfers]
    active_s = (
        sum(compute_s.values())
        + sum(s for _, s in transfer_s)
        + work.exchanges * _exchange_s(fleet, work)
    )
    members = _members(work)
    busy_s = sum(compute_s.get(name, 0.0) for name in members)
    busy_s += sum(s for t, s in transfer_s for name in (t.source, t.destination) if name in members)
    away_s, drops = (
        (0.0, 0) if work.node is None else _away(fleet, trace, work.node, now_s, active_s)
    )
    # Sums in another order differ in the last bit; nobody waits less than nothing.
    return _Spent(active_s, away_s, drops, len(members), max(0.0, len(members) * active_s - busy_s))


def _members(work: Work) -> set[str]:
    """The nodes that take part."""
    return {*work.flops, *([] if work.node is None else [place(work.node)])} - {SERVER}


def _index(name: str) -> int:
    return int(name.removeprefix(place(0)[:-1]))


def _figures(fleet: Fleet, name: str) -> Node:
    return fleet.server if name == SERVER else fleet.nodes[_index(name)]


def _compute_s(fleet: Fleet, trace: Trace, turn: int, name: str, flops: int) -> float:
    slowdown = 1.0 if name == SERVER else _slowdown(trace, turn, _index(name))
    return flops / _figures(fleet, name).flops_per_s * slowdown


def _transfer_s(fleet: Fleet, transfer: Transfer) -> float:
    sender, receiver = _figures(fleet, transfer.source), _figures(fleet, transfer.destination)
    rate = min(sender.up_bytes_per_s, receiver.down_bytes_per_s)
    return transfer.bytes / rate + sender.latency_s + receiver.latency_s


def _exchange_s(fleet: Fleet, work: Work) -> float:
    """Latency of a message between the two slowest of the places that take part; a lone node talks
    to the server.
    """
    names = _members(work) | (
        {SERVER} if SERVER in work.flops or len(_members(work)) < 2 else set()
    )
    return sum(sorted(_figures(fleet, name).latency_s for name in names)[-2:])


def _joules(fleet: Fleet, work: Work) -> tuple[float, float]:
    """Of the nodes and of the server."""
    spent = {True: 0.0, False: 0.0}
    for name, flops in work.flops.items():
        spent[name == SERVER] += flops * _figures(fleet, name).joules_per_flop
    for transfer in work.transfers:
        for name in (transfer.source, transfer.destination):
            spent[name == SERVER] += transfer.bytes * _figures(fleet, name).joules_per_byte
    return spent[False], spent[True]


def _slowdown(trace: Trace, turn: int, node: int) -> float:
    if not trace.straggler_rate:
        return 1.0
    drawn = streams.generator(trace.seed, "clock/stragglers", turn, node).random()
    return trace.slowdown if drawn < trace.straggler_rate else 1.0


def _away(
    fleet: Fleet, trace: Trace, node: int, start_s: float, active_s: float
) -> tuple[float, int]:
    """Seconds that a visit of `active_s` from `start_s` stands still until it is done, and drops in
    its middle.
    """
    now_s, left_s, away_s, drops = start_s, active_s, 0.0, 0
    while True:
        opens_s, closes_s = _window(fleet.nodes[node], fleet.period_s, now_s)
        drop_s, rejoin_s = _absence(trace, node, now_s)
        back_s = max(opens_s, rejoin_s if drop_s <= now_s else now_s)
        if back_s > now_s:
            away_s, now_s = away_s + (back_s - now_s), back_s
            continue
        stop_s = min(closes_s, drop_s)
        if now_s + left_s <= stop_s:
            return away_s, drops
        drops += stop_s == drop_s
        left_s, now_s = left_s - (stop_s - now_s), stop_s


def _window(node: Node, period_s: float, now_s: float) -> tuple[float, float]:
    """The first stretch of being free that ends after `now_s`."""
    if not node.windows:
        return -math.inf, math.inf
    cycle = math.floor(now_s / period_s)
    # Compared as the absolute times that callers go on from, so that rounding cannot make one
    # stretch come twice.
    starts_s = (number * period_s for number in (cycle - 1, cycle, cycle + 1))
    stretches = (
        (base_s + opens, base_s + closes) for base_s in starts_s for opens, closes in node.windows
    )
    return next((opens_s, closes_s) for opens_s, closes_s in stretches if closes_s > now_s)


def _absence(trace: Trace, node: int, now_s: float) -> tuple[float, float]:
    """The first absence that ends after `now_s`, as the times of dropping and of being back."""
    if not trace.drop_rate_per_hour:
        return math.inf, math.inf
    count = _ABSENCES
    while (absences := _absences(trace, node, count))[-1, 1] <= now_s:
        count *= 2
    drop_s, back_s = absences[np.searchsorted(absences[:, 1], now_s, side="right")]
    return float(drop_s), float(back_s)


@functools.lru_cache(maxsize=1024)
def _absences(trace: Trace, node: int, count: int) -> np.ndarray:
    """`[count, 2]` the node's first absences since the start of the run; more of them begin with
    the same.
    """
    draws = streams.generator(trace.seed, "clock/drops", node).exponential(size=(count, 2))
    return np.cumsum(draws * (_HOUR_S / trace.drop_rate_per_hour, trace.rejoin_s)).reshape(count, 2)
