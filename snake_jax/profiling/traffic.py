"""Bytes that the visits of a cycle send, by the functions that fill the ledger of a run."""

import dataclasses
from collections.abc import Mapping

from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Sizes
from snake_jax.profiling.rows import Sent
from snake_jax.runs.job import Job, exchange_of, planned

CYCLES = 3
"""After so many every node has had a turn and every layer a new version: later cycles send the
same.
"""


def cycles(setup: Job, sizes: Sizes) -> list[list[tuple[tuple[str, ...], int, int]]]:
    """For each cycle of the configuration, of each visit: what it trains, bytes up and bytes
    down.
    """
    exchange = exchange_of(setup, sizes)
    traffic = setup.algorithm.traffic
    net = ledger.start(setup.layer_names)
    found: list[list[tuple[tuple[str, ...], int, int]]] = [[] for _ in range(setup.config.cycles)]
    for visits in planned(setup):
        transfers = []
        for visit in visits:
            net, sent = traffic.deliveries(exchange, net, visit)
            transfers += sent
        net, sent = traffic.commit(exchange, net, visits, visits)
        transfers += sent
        for visit in visits:
            own = ledger.place(visit.node)
            mine = [t for t in transfers if visit.others or own in (t.source, t.destination)]
            found[visit.cycle].append((visit.layers, *ledger.bytes_up_down(mine)))
    return found


def by_assignment(setup: Job, sizes: Sizes) -> Mapping[tuple[str, ...], Sent]:
    """`{what trains: bytes}` of the visits of a late cycle, in both modes where the method has
    both.
    """
    both = "mode" in setup.algorithm.flags
    last = {
        (mode, cached): cycles(_variant(setup, mode, cached), sizes)[-1]
        for mode in ("client_server", "peer_to_peer")[: 1 + both]
        for cached in (False, True)
    }
    plain, kept = last["client_server", False], last["client_server", True]
    onward = (
        [[up + down for _, up, down in last["peer_to_peer", cached]] for cached in (False, True)]
        if both
        else []
    )
    found: dict[tuple[str, ...], Sent] = {}
    for index, ((layers, up, down), (_, _, down_cached)) in enumerate(
        zip(plain, kept, strict=True)
    ):
        found.setdefault(layers, Sent(up, down, down_cached, *(line[index] for line in onward)))
    return found


def _variant(setup: Job, mode: str, cached: bool) -> Job:
    config = dataclasses.replace(setup.config, mode=mode, cached=cached, cycles=CYCLES)
    return setup._replace(config=config, plan=setup.plan._replace(config=config))
