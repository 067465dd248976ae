"""Bytes that the visits of a cycle send, by the functions that fill the ledger of a run."""

import dataclasses
from collections.abc import Mapping

from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Sizes
from snake_jax.profiling.rows import Sent
from snake_jax.runs import round_costs
from snake_jax.runs.setup import Setup

CYCLES = 3
"""After so many every node has had a turn and every layer a new version: later cycles send the
same.
"""


def cycles(setup: Setup, sizes: Sizes) -> list[list[tuple[tuple[str, ...], int, int]]]:
    """For each cycle of the configuration, of each visit: what it trains, bytes up and bytes
    down.
    """
    net, found = ledger.start(setup.layer_names), []
    for cycle in range(setup.config.cycles):
        lines = []
        for visits in setup.algorithm.rounds(setup.plan, cycle):
            net, sent = round_costs.exchange(setup, sizes, net, visits, set(visits))
            for visit in visits:
                own = ledger.place(visit.node)
                mine = [t for t in sent if visit.others or own in (t.source, t.destination)]
                lines.append((visit.layers, *ledger.bytes_up_down(mine)))
        found.append(lines)
    return found


def by_assignment(setup: Setup, sizes: Sizes) -> Mapping[tuple[str, ...], Sent]:
    """Bytes of the visits of a late cycle by what they train, in all modes that the method has.

    Args:
      setup: of the method.
      sizes: bytes of everything that may travel.
    """

    def late(mode: str, cached: bool) -> list[tuple[tuple[str, ...], int, int]]:
        return cycles(_variant(setup, mode, cached), sizes)[-1]

    plain, kept = late("client_server", False), late("client_server", True)
    found: dict[tuple[str, ...], Sent] = {}
    for (layers, up, down), (_, _, down_cached) in zip(plain, kept, strict=True):
        found.setdefault(layers, Sent(up, down, down_cached))
    if "mode" not in setup.algorithm.flags:
        return found

    # Node to node all that a visit sends goes on to the next. The same visits, in the same order.
    onward, onward_cached = late("peer_to_peer", False), late("peer_to_peer", True)
    added: dict[tuple[str, ...], Sent] = {}
    for (layers, up, down), (_, up_cached, down_cached) in zip(onward, onward_cached, strict=True):
        both = {"onward": up + down, "onward_cached": up_cached + down_cached}
        added.setdefault(layers, found[layers]._replace(**both))
    return added


def _variant(setup: Setup, mode: str, cached: bool) -> Setup:
    config = dataclasses.replace(setup.config, mode=mode, cached=cached, cycles=CYCLES)
    return setup._replace(config=config, plan=setup.plan._replace(config=config))
