"""The clock: hand counts, and what must hold of any round."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.config import ImageConfig
from snake_jax.nodes import clock
from snake_jax.nodes.clock import Elapsed, Faults, VisitWork, elapse, trace_of
from snake_jax.nodes.fleet import Fleet, Node, make_fleet
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import CLOUD, SERVER, node

# A round number for each: 1000 FLOP/s, 50 B/s up and 100 down, half a second of latency.
NODE = Node(1e3, 1000, 50.0, 100.0, 0.5, 2.0, 3.0)
SERVER_NODE = Node(1e4, 1000, 200.0, 400.0, 0.25, 0.5, 0.1)
FLEET = Fleet((NODE, NODE._replace(flops_per_s=500.0, latency_s=1.0), NODE), SERVER_NODE, 100.0)
CALM = Faults()


def _send(source, destination, sent_bytes):
    return Transfer(0, source, destination, ("conv1",), sent_bytes, "update")


def _work(number=0, flops=3000, sent_bytes=0, exchanges=0, server_flops=0):
    visitor = node(number)
    places = {visitor: flops}
    if server_flops:
        places[SERVER] = server_flops
    transfers = []
    if sent_bytes:
        transfers = [_send(SERVER, visitor, sent_bytes), _send(visitor, SERVER, sent_bytes)]
    return VisitWork(places, transfers, exchanges, visitor)


def _alone(windows=(), **figures):
    return Fleet((NODE._replace(windows=windows, **figures),), SERVER_NODE, 100.0)


def _seconds(fleet, work, now_s=0.0, trace=CALM, turn=0):
    return elapse(fleet, trace, now_s, turn, [work], False).seconds


def test_a_local_visit_by_hand():
    # Down 200 B at 100 B/s, up at 50 B/s, 0.75 s of latency each; 3 s of compute.
    took = elapse(FLEET, CALM, 7.0, 0, [_work(sent_bytes=200)], True)
    assert took == Elapsed(
        seconds=2.75 + 4.75 + 3.0,
        node_joules=6000 + 1200,
        server_joules=pytest.approx(40),
        wait_s=0,
        away_s=0,
        drops=0,
    )


def test_a_transfer_between_nodes_is_as_fast_as_the_slower_end():
    work = VisitWork({node(1): 500}, [_send(node(0), node(1), 100)], 0, node(1))
    took = elapse(FLEET, CALM, 0.0, 0, [work], False)
    assert took == Elapsed(
        2.0 + 1.5 + 1.0, node_joules=1000 + 600, server_joules=0, wait_s=0, away_s=0, drops=0
    )


def test_a_split_visit_waits_for_the_server_and_for_messages():
    # 8 messages of 0.5 + 0.25 s; the server takes 2 s; both are the node's idle time.
    took = elapse(
        FLEET, CALM, 0.0, 0, [_work(sent_bytes=200, exchanges=8, server_flops=20_000)], False
    )
    assert took.seconds == 7.5 + 3.0 + 6.0 + 2.0
    assert took.wait_s == 6.0 + 2.0
    assert took.server_joules == pytest.approx(20_000 * 0.5 + 40)


def test_a_visit_over_node_server_and_cloud_by_hand():
    fleet = FLEET._replace(cloud=Node(1e5, 1000, 150.0, 250.0, 2.0, 0.25, 0.5))
    flops = {node(0): 3000, SERVER: 20_000, CLOUD: 400_000}
    sent = [_send(node(0), SERVER, 50), _send(SERVER, CLOUD, 500), _send(CLOUD, SERVER, 300)]
    work = VisitWork(flops, sent, 4, node(0), cloud_exchanges=6)
    took = elapse(fleet, CALM, 0.0, 0, [work], False)

    # The slower of server and cloud: 200 B/s up, 150 B/s down; 2.25 s of latency.
    on_links_s = (1.0 + 0.75) + (2.5 + 2.25) + (2.0 + 2.25)
    assert took.seconds == 3 + 2 + 4 + on_links_s + 4 * 0.75 + 6 * 2.25
    assert took.wait_s == took.seconds - 3 - 1.75
    assert took.node_joules == 3000 * 2 + 50 * 3
    assert took.server_joules == pytest.approx(20_000 * 0.5 + 850 * 0.1)
    assert took.cloud_joules == pytest.approx(400_000 * 0.25 + 800 * 0.5)


def test_a_node_whose_model_goes_on_in_the_cloud_waits_for_the_cloud():
    fleet = FLEET._replace(cloud=Node(1e5, 1000, 150.0, 250.0, 2.0, 0.25, 0.5))
    work = VisitWork({node(0): 3000, CLOUD: 400_000}, [], 2, node(0))
    assert _seconds(fleet, work) == 3 + 4 + 2 * 2.5


def test_in_a_chain_of_nodes_all_wait_for_one_another():
    flops = {node(0): 1000, node(1): 1000, node(2): 3000}
    work = VisitWork(flops, [_send(node(0), node(1), 50)], 2, node(0))
    took = elapse(FLEET, CALM, 0.0, 0, [work], False)
    transfer_s, exchanges_s = 1.0 + 1.5, 2 * 1.5
    assert took.seconds == 1 + 2 + 3 + transfer_s + exchanges_s
    assert took.wait_s == 3 * took.seconds - (1 + 2 + 3) - 2 * transfer_s


def test_a_synchronised_round_waits_for_the_slowest():
    works = [_work(0), _work(1), _work(2, flops=1000)]  # 3, 6 and 1 s
    assert elapse(FLEET, CALM, 0.0, 0, works, True).wait_s == 3 + 5
    assert elapse(FLEET, CALM, 0.0, 0, works, False).wait_s == 0
    assert elapse(FLEET, CALM, 0.0, 0, works, True).seconds == 6


def test_all_nodes_of_a_chain_that_is_done_wait():
    chain = VisitWork({node(0): 1000, node(2): 1000}, [], 0, node(0))
    assert elapse(FLEET, CALM, 0.0, 0, [chain, _work(1)], True).wait_s == 2 * 1 + 2 * (6 - 2)


def test_the_server_alone_has_nobody_to_wait_for():
    took = elapse(
        _alone(((50.0, 60.0),)), CALM, 0.0, 0, [VisitWork({SERVER: 20_000}, [], 0, None)], True
    )
    assert took == Elapsed(2.0, node_joules=0, server_joules=10_000, wait_s=0, away_s=0, drops=0)


def test_nothing_to_do_takes_no_time():
    assert elapse(FLEET, CALM, 5.0, 0, [], True) == Elapsed(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("now_s", "flops", "seconds"),
    [
        (0.0, 3000, 10 + 3),  # waits for the window
        (10.0, 3000, 3),  # at its opening
        (18.0, 3000, 90 + 3),  # stopped at 20, goes on at 110
        (20.0, 3000, 90 + 3),  # at its close: the next one
        (17.0, 3000, 3),  # done as it closes
        (15.0, 25_000, 25 + 2 * 90),  # over two closed stretches
        (1e6 + 0.0, 3000, 10 + 3),
    ],
)
def test_a_closed_window_postpones_exactly(now_s, flops, seconds):
    took = elapse(_alone(((10.0, 20.0),)), CALM, now_s, 0, [_work(flops=flops)], True)
    assert took.seconds == seconds
    assert took.away_s == seconds - flops / 1000
    assert took.wait_s == took.drops == 0


def test_windows_that_touch_are_one_also_across_the_period():
    fleet = _alone(((0.0, 30.0), (30.0, 40.0), (90.0, 100.0)))
    assert _seconds(fleet, _work(flops=45_000), now_s=92.0) == 45
    assert _seconds(fleet, _work(flops=49_000), now_s=92.0) == 49 + 50


def test_away_time_of_one_is_wait_of_the_others():
    fleet = Fleet((NODE, NODE._replace(windows=((10.0, 20.0),))), SERVER_NODE, 100.0)
    took = elapse(fleet, CALM, 0.0, 0, [_work(0), _work(1)], True)
    assert (took.seconds, took.wait_s, took.away_s) == (13, 10, 10)


def test_stragglers_are_as_frequent_and_as_slow_as_said():
    trace = Faults(straggler_rate=0.3, slowdown=5.0, seed=1)
    seconds = [_seconds(FLEET, _work(), trace=trace, turn=turn) for turn in range(1000)]
    assert set(seconds) == {3.0, 15.0}
    assert abs(seconds.count(15.0) / 1000 - 0.3) < 4 * math.sqrt(0.21 / 1000)
    assert seconds[:50] == [_seconds(FLEET, _work(), trace=trace, turn=turn) for turn in range(50)]
    assert seconds != [
        _seconds(FLEET, _work(), trace=trace._replace(seed=2), turn=turn) for turn in range(1000)
    ]
    assert seconds != [_seconds(FLEET, _work(2), trace=trace, turn=turn) for turn in range(1000)]


def test_a_straggler_computes_slower_but_sends_as_before():
    trace = Faults(straggler_rate=1.0, slowdown=5.0)
    work = _work(sent_bytes=200, server_flops=20_000)
    assert _seconds(FLEET, work, trace=trace) == 7.5 + 15.0 + 2.0


def test_drops_by_hand(monkeypatch):
    absences = np.array([[2.0, 3.0], [4.0, 10.0], [1000.0, 1001.0]])
    monkeypatch.setattr(clock, "_absences", lambda trace, node, count: absences)
    trace = Faults(drop_rate_per_hour=1.0)

    def took(now_s, flops):
        elapsed = elapse(_alone(), trace, now_s, 0, [_work(flops=flops)], False)
        return elapsed.seconds, elapsed.away_s, elapsed.drops

    assert took(0.0, 2000) == (2, 0, 0)
    assert took(0.0, 4000) == (4 + 1 + 6, 7, 2)
    assert took(2.5, 1000) == (0.5 + 1, 0.5, 0)  # it had dropped before
    assert took(4.0, 1000) == (6 + 1, 6, 0)
    assert took(10.0, 5000) == (5, 0, 0)


def test_a_window_that_closes_while_a_node_is_gone(monkeypatch):
    monkeypatch.setattr(
        clock, "_absences", lambda trace, node, count: np.array([[12.0, 25.0], [1e6, 1e6]])
    )
    took = elapse(_alone(((10.0, 20.0),)), Faults(drop_rate_per_hour=1.0), 0.0, 0, [_work()], False)
    assert (took.seconds, took.drops) == (110 + 1, 1)


def test_drops_are_as_frequent_and_as_long_as_said():
    fleet, trace = _alone(), Faults(drop_rate_per_hour=2.0, rejoin_s=100.0, seed=3)
    took = elapse(
        fleet, trace, 0.0, 0, [_work(flops=int(1e3 * 3600 * 1000))], False
    )  # a thousand hours
    assert abs(took.drops - 2000) < 4 * math.sqrt(2000)
    assert took.away_s / took.drops == pytest.approx(100, rel=4 / math.sqrt(2000))
    assert took.seconds == pytest.approx(3600 * 1000 + took.away_s)


def test_more_absences_begin_with_the_same():
    trace = Faults(drop_rate_per_hour=1.0, rejoin_s=10.0, seed=5)
    assert (clock._absences(trace, 2, 64) == clock._absences(trace, 2, 512)[:64]).all()


def test_nodes_and_seeds_drop_at_their_own_times():
    trace = Faults(drop_rate_per_hour=1.0, rejoin_s=10.0, seed=5)
    firsts = []
    for seeded in (trace, trace._replace(seed=6)):
        firsts += [clock.absence(seeded, number, 0.0) for number in range(3)]
    assert len(set(firsts)) == 6


TRACES = st.builds(
    Faults,
    straggler_rate=st.sampled_from([0.0, 0.5]),
    slowdown=st.floats(1, 10),
    drop_rate_per_hour=st.sampled_from([0.0, 10.0, 300.0]),
    rejoin_s=st.floats(0, 50),
    seed=st.integers(0, 5),
)
FLEETS = st.builds(
    lambda seed, spread, tidal: make_fleet(3, spread, seed, tidal),
    st.integers(0, 20),
    st.floats(0, 1),
    st.floats(0.2, 1),
)
WORKS = st.builds(
    _work,
    st.integers(0, 2),
    st.integers(0, 10**14),
    st.integers(0, 10**8),
    st.integers(0, 50),
    st.integers(0, 10**15),
)
ROUNDS = st.lists(WORKS, min_size=1, max_size=3, unique_by=lambda work: work.node)
TIMES = st.floats(0, 1e6)


def _at_least(longer, shorter):
    return longer >= shorter * (1 - 1e-9) - 1e-6


@settings(deadline=None)
@given(FLEETS, TRACES, TIMES, WORKS, WORKS)
def test_more_work_never_takes_shorter(fleet, trace, now_s, work, more):
    flops = {place: count + more.flops.get(place, 0) for place, count in work.flops.items()}
    longer = VisitWork(
        flops, [*work.transfers, *more.transfers], work.exchanges + more.exchanges, work.node
    )
    before, after = (elapse(fleet, trace, now_s, 0, [w], False) for w in (work, longer))
    assert _at_least(after.seconds, before.seconds)
    assert after.node_joules >= before.node_joules
    assert after.drops >= before.drops


@settings(deadline=None)
@given(
    FLEETS,
    TRACES,
    TIMES,
    WORKS,
    st.floats(1, 10),
    st.sampled_from(["flops_per_s", "up_bytes_per_s"]),
)
def test_a_faster_node_is_never_later(fleet, trace, now_s, work, factor, figure):
    faster = tuple(
        node._replace(**{figure: getattr(node, figure) * factor}) for node in fleet.nodes
    )
    slow, fast = (_seconds(f, work, now_s, trace) for f in (fleet, fleet._replace(nodes=faster)))
    assert _at_least(slow, fast)


@settings(deadline=None)
@given(FLEETS, TRACES, TIMES, ROUNDS, st.booleans())
def test_a_round_is_its_longest_visit_and_adds_up(fleet, trace, now_s, works, synchronised):
    took = elapse(fleet, trace, now_s, 4, works, synchronised)
    apart = [elapse(fleet, trace, now_s, 4, [work], synchronised) for work in works]
    assert took.seconds == max(each.seconds for each in apart)
    assert took.node_joules == pytest.approx(sum(each.node_joules for each in apart))
    assert took.drops == sum(each.drops for each in apart)
    assert took.away_s == pytest.approx(sum(each.away_s for each in apart))
    late_s = sum(took.seconds - each.seconds for each in apart) if synchronised else 0
    assert took.wait_s == pytest.approx(late_s + sum(each.wait_s for each in apart))
    assert all(value >= 0 and math.isfinite(value) for value in took)


@settings(deadline=None)
@given(FLEETS, TRACES, st.lists(ROUNDS, min_size=2, max_size=5))
def test_resuming_equals_the_unbroken_sequence(fleet, trace, rounds):
    def go_on(now_s, first):
        ends = []
        for turn, works in enumerate(rounds[first:], first):
            now_s += elapse(fleet, trace, now_s, turn, works, True).seconds
            ends.append(now_s)
        return ends

    unbroken = go_on(0.0, 0)
    clock._absences.cache_clear()  # as in a new process
    assert go_on(unbroken[0], 1) == unbroken[1:]


@given(st.integers(1, 10**12), st.integers(1, 10**8), st.integers(0, 100))
def test_alike_nodes_do_not_wait_for_each_other(flops, sent_bytes, seed):
    fleet = make_fleet(3, 0.0, seed)
    works = [_work(node, flops, sent_bytes) for node in range(3)]
    assert elapse(fleet, CALM, 0.0, 0, works, True).wait_s == 0


def test_the_configuration_says_which_trace():
    config = ImageConfig(
        straggler_rate=0.1, straggler_slowdown=3.0, drop_rate_per_hour=2.0, rejoin_s=30.0, seed=4
    )
    assert trace_of(config) == Faults(0.1, 3.0, 2.0, 30.0, 4)
    assert _seconds(FLEET, _work(), trace=trace_of(ImageConfig())) == 3.0
