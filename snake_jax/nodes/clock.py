"""Simulated seconds and joules of a round, from FLOPs, bytes and what nodes can do.

Analytic: nothing is measured. Within a visit one thing happens at a time: transfers in turn, then
computing, nodes, server and cloud in alternation; where the server need not be waited for, node,
link and server work at the same time (`overlap`). The visits of a round start together and do not
slow each other down, neither on a link nor at the server. Server and cloud are always there.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.config import RunConfig
from snake_jax.nodes import links, overlap, sending
from snake_jax.nodes.fleet import Fleet, Node, figures_of
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import CLOUD, KINDS, SERVER, Kind, Place

_HOUR_S = 3600.0
_ABSENCES = 64  # drawn at first; doubled until they reach far enough


class VisitWork(NamedTuple):
    """What a visit does.

    Attributes:
      flops: `{place: FLOPs}`. The nodes in it and the visiting one take part.
      transfers: the visit's rows of the ledger.
      exchanges: messages to and fro in the visit, beyond one a row of the ledger: a batch's
        activations are one, its gradient another. Their bytes are in `transfers`.
      node: the visiting node, whose presence the visit depends on. All others are taken to be
        present: a chain of nodes is timed as if only its first ever left. None: the visit depends
        on nobody (the server works alone).
      cloud_exchanges: messages between server and cloud, counted apart from `exchanges`.
      batches: in which node, link and server overlap; 0: nothing does.
      streamed: those of the transfers that go batch by batch, where batches overlap.
      waits_s: seconds before it begins, in which its node is away.
      ends_s: when it is cut short because its node is gone, in seconds of the run; None: it is not,
        and stands still while its node is away.
      dropped: whether the node drops then.
    """

    flops: Mapping[Place, int]
    transfers: Sequence[Transfer]
    exchanges: int
    node: Place | None
    cloud_exchanges: int = 0
    batches: int = 0
    streamed: Sequence[Transfer] = ()
    waits_s: float = 0.0
    ends_s: float | None = None
    dropped: bool = False


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
      cloud_joules: of the cloud.
    """

    seconds: float
    node_joules: float
    server_joules: float
    wait_s: float
    away_s: float
    drops: int
    cloud_joules: float = 0.0


class Faults(NamedTuple):
    """What goes wrong.

    A pure function of the seed, the node, and the turn (stragglers) or the time (drops).

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
    """What a visit took.

    Attributes:
      active_s: seconds in which something was computed or sent.
      away_s: seconds of standing still.
      drops: of its node.
      members: nodes that take part.
      idle_s: their idle seconds while something was active, summed.
    """

    active_s: float
    away_s: float
    drops: int
    members: int
    idle_s: float


def trace_of(config: RunConfig) -> Faults:
    """The trace that the flags describe."""
    return Faults(
        config.straggler_rate,
        config.straggler_slowdown,
        config.drop_rate_per_hour,
        config.rejoin_s,
        config.seed,
    )


def elapse(
    fleet: Fleet,
    trace: Faults,
    now_s: float,
    turn: int,
    works: Sequence[VisitWork],
    synchronised: bool,
) -> Elapsed:
    """Seconds and joules of a round.

    A visit starts when its node is present, stands still while it is not, and goes on where it
    stopped. Its seconds are those of standing still and of activity. The latter are, for every
    transfer, its bytes over the slower of the sender's up and the receiver's down rate plus both
    latencies; for every place, its FLOPs over its rate, times the slowdown of a straggler; for
    every exchange, the latencies of the two slowest places that take part; for every exchange of
    server and cloud, their two.

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
    totals_s = [each.active_s + each.away_s for each in spent]
    longest_s = max(totals_s, default=0.0)

    # Who is done waits for the last one only where the server merges what all hand in.
    late_s = 0.0
    if synchronised:
        for each, total_s in zip(spent, totals_s, strict=True):
            late_s += each.members * (longest_s - total_s)
    idle_s = sum(each.idle_s for each in spent)
    away_s = sum(each.away_s for each in spent)
    drops = sum(each.drops for each in spent)

    # Energy is spent whoever waits.
    node_joules = 0.0
    server_joules = 0.0
    cloud_joules = 0.0
    for work in works:
        joules = _joules(fleet, work)
        node_joules += joules["node"]
        server_joules += joules["server"]
        cloud_joules += joules["cloud"]
    return Elapsed(
        seconds=longest_s,
        node_joules=node_joules,
        server_joules=server_joules,
        wait_s=late_s + idle_s,
        away_s=away_s,
        drops=drops,
        cloud_joules=cloud_joules,
    )


def _members(work: VisitWork) -> tuple[Place, ...]:
    """The nodes that take part, each once.

    In a fixed order, so that sums over them are the same bit for bit in every process.
    """
    members = [place for place in work.flops if place.kind == "node"]
    if work.node is not None and work.node not in members:
        members.append(work.node)
    return tuple(members)


def _spend(fleet: Fleet, trace: Faults, now_s: float, turn: int, work: VisitWork) -> _Spent:
    """The seconds of one visit from `now_s`."""
    members = _members(work)

    # One thing at a time: seconds of activity add up, whoever is active.
    compute_s = {}
    for place, flops in work.flops.items():
        compute_s[place] = _compute_s(fleet, trace, turn, place, flops)
    transfer_s = [sending.transfer_s(fleet, transfer) for transfer in work.transfers]
    exchanges_s = work.exchanges * _exchange_s(fleet, work, members)
    active_s = sum(compute_s.values()) + sum(transfer_s) + exchanges_s
    active_s += work.cloud_exchanges * (fleet.server.latency_s + fleet.cloud.latency_s)

    # Members are busy while they compute and while they send or receive; both ends of a transfer
    # are. In the rest of the activity they wait.
    computing_s = sum(compute_s.get(place, 0.0) for place in members)
    sending_s = 0.0
    for transfer, seconds in zip(work.transfers, transfer_s, strict=True):
        for place in (transfer.source, transfer.destination):
            if place in members:
                sending_s += seconds
    idle_s = len(members) * active_s - (computing_s + sending_s)
    if work.batches:
        active_s, busy_s = overlap.seconds(_stages(fleet, work, compute_s))
        idle_s = active_s - busy_s

    away_s, drops = work.waits_s, 0
    if work.ends_s is not None:
        # What is done by then is less than planned: caches spare transfers that plans count.
        away_s, drops = max(0.0, work.ends_s - now_s - active_s), int(work.dropped)
    elif work.node is not None:
        more_s, drops = away(fleet, trace, work.node.index, now_s + work.waits_s, active_s)
        away_s += more_s
    # Sums in another order differ in the last bit; nobody waits less than nothing.
    return _Spent(active_s, away_s, drops, len(members), max(0.0, idle_s))


def _stages(
    fleet: Fleet, work: VisitWork, compute_s: Mapping[Place, float]
) -> overlap.StageSeconds:
    """A visit whose batches overlap, stage by stage."""
    link_s, latency_s = 0.0, 0.0
    for transfer in work.streamed:
        delay_s = sending.delay_s(fleet, transfer)
        link_s += sending.transfer_s(fleet, transfer) - delay_s
        latency_s = max(latency_s, delay_s)
    before_s, after_s = 0.0, 0.0
    for transfer in work.transfers:
        if transfer in work.streamed:
            continue
        if transfer.source == work.node:
            after_s += sending.transfer_s(fleet, transfer)
        else:
            before_s += sending.transfer_s(fleet, transfer)
    node_s = sum(seconds for place, seconds in compute_s.items() if place == work.node)
    server_s = compute_s.get(SERVER, 0.0)
    return overlap.StageSeconds(
        work.batches, node_s, link_s, latency_s, server_s, before_s, after_s
    )


def _compute_s(fleet: Fleet, trace: Faults, turn: int, place: Place, flops: int) -> float:
    """FLOPs over the place's rate; server and cloud are no stragglers."""
    seconds = flops / figures_of(fleet, place).flops_per_s
    if place.kind == "node":
        seconds *= _slowdown(trace, turn, place.index)
    return seconds


def _exchange_s(fleet: Fleet, work: VisitWork, members: tuple[Place, ...]) -> float:
    """Latency of a message between the two slowest of the places that take part.

    A lone node talks to the server, or to the cloud where that alone has the rest of its model.
    """
    # Two nodes that share a model talk to each other, unless the server holds a part too.
    ends = list(members)
    beyond = CLOUD if CLOUD in work.flops and SERVER not in work.flops else SERVER
    if beyond in work.flops or len(ends) < 2:
        ends.append(beyond)
    latencies_s = [figures_of(fleet, place).latency_s for place in ends]
    latencies_s.sort()
    return sum(latencies_s[-2:])


def _joules(fleet: Fleet, work: VisitWork) -> dict[Kind, float]:
    """By kind of place: computing, and at both ends of every transfer."""
    # Joules add up whatever happens at the same time.
    joules = dict.fromkeys(KINDS, 0.0)
    for place, flops in work.flops.items():
        figures = figures_of(fleet, place)
        joules[place.kind] += flops * figures.joules_per_flop
    for transfer in work.transfers:
        for ends in links.hops(fleet.links, transfer.source, transfer.destination):
            for place in ends:
                figures = figures_of(fleet, place)
                joules[place.kind] += transfer.bytes * figures.joules_per_byte
    return joules


def _slowdown(trace: Faults, turn: int, node: int) -> float:
    """How many times slower a node computes in this turn."""
    if not trace.straggler_rate:
        return 1.0
    rng = streams.generator(trace.seed, "clock/stragglers", turn, node)
    is_straggler = rng.random() < trace.straggler_rate
    return trace.slowdown if is_straggler else 1.0


def away(
    fleet: Fleet, trace: Faults, node: int, start_s: float, active_s: float
) -> tuple[float, int]:
    """Seconds that a visit of `active_s` from `start_s` stands still until it is done, and drops.

    The visit goes from event to event: a window opens or closes, its node drops or is back.
    """
    now_s, left_s = start_s, active_s
    away_s, drops = 0.0, 0
    while True:
        # The stretch of being free and the absence that are on, or come next.
        opens_s, closes_s = window(fleet.nodes[node], fleet.period_s, now_s)
        drop_s, rejoin_s = absence(trace, node, now_s)
        is_gone = drop_s <= now_s
        back_s = max(opens_s, rejoin_s if is_gone else now_s)
        if back_s > now_s:
            away_s += back_s - now_s
            now_s = back_s
            continue

        # Present: works until it is done, its window closes or it drops.
        stop_s = min(closes_s, drop_s)
        if now_s + left_s <= stop_s:
            return away_s, drops
        if stop_s == drop_s:
            drops += 1
        left_s -= stop_s - now_s
        now_s = stop_s


def window(node: Node, period_s: float, now_s: float) -> tuple[float, float]:
    """The first stretch of being free that ends after `now_s`."""
    if not node.windows:
        return -math.inf, math.inf

    # Windows repeat: stretch number n of a window lies n periods later.
    current = math.floor(now_s / period_s)
    # Compared as the absolute times that callers go on from, so that rounding cannot make one
    # stretch come twice; a period before and after, because `now_s` may lie at a border.
    for number in (current - 1, current, current + 1):
        for opens, closes in node.windows:
            opens_s = number * period_s + opens
            closes_s = number * period_s + closes
            if closes_s > now_s:
                return opens_s, closes_s
    raise AssertionError("a window of the next period ends after now")


def absence(trace: Faults, node: int, now_s: float) -> tuple[float, float]:
    """The first absence that ends after `now_s`, as the times of dropping and of being back."""
    if not trace.drop_rate_per_hour:
        return math.inf, math.inf
    # The draws are a fixed sequence of the node: as many of them as reach beyond now.
    count = _ABSENCES
    absences = _absences(trace, node, count)
    while absences[-1, 1] <= now_s:
        count *= 2
        absences = _absences(trace, node, count)
    first = np.searchsorted(absences[:, 1], now_s, side="right")
    drop_s, back_s = absences[first]
    return float(drop_s), float(back_s)


@functools.lru_cache(maxsize=1024)
def _absences(trace: Faults, node: int, count: int) -> np.ndarray:
    """`[count, 2]`: when the node drops and is back, since the start of the run.

    More of them begin with the same.
    """
    rng = streams.generator(trace.seed, "clock/drops", node)
    draws = rng.exponential(size=(count, 2))  # of mean 1

    # A node is present, then gone, then present, and so on: the sums of these spans are the times.
    present_s = _HOUR_S / trace.drop_rate_per_hour
    spans_s = draws * (present_s, trace.rejoin_s)
    return np.cumsum(spans_s).reshape(count, 2)
