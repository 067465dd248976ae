"""Bytes that the visits of a cycle send, by the functions that fill the ledger of a run."""

import dataclasses
from collections.abc import Mapping

from snake_jax.nodes import places
from snake_jax.nodes.ledger import Sizes, bytes_up_down
from snake_jax.profiling.rows import Sent
from snake_jax.runs.job import Job, planned_transfers

CYCLES = 3
"""After so many every node has had a turn and every layer a new version: later cycles send the
same.
"""


def cycles(job: Job, sizes: Sizes) -> list[list[tuple[tuple[str, ...], int, int]]]:
    """For each cycle of the configuration, of each visit: what it trains, bytes up and bytes
    down.
    """
    found: list[list[tuple[tuple[str, ...], int, int]]] = [[] for _ in range(job.config.cycles)]
    for visits, transfers in planned_transfers(job, sizes):
        for visit in visits:
            node = places.node(visit.node)
            mine = transfers
            if not visit.others:
                mine = [sent for sent in transfers if node in (sent.source, sent.destination)]
            found[visit.cycle].append((visit.layers, *bytes_up_down(mine)))
    return found


def by_assignment(job: Job, sizes: Sizes) -> Mapping[tuple[str, ...], Sent]:
    """`{what trains: bytes}` of the visits of a late cycle, in both modes where the method has
    both.
    """

    def late(mode: str, cached: bool) -> list[tuple[tuple[str, ...], int, int]]:
        return cycles(_variant(job, mode, cached), sizes)[-1]

    plain, kept = late("client_server", False), late("client_server", True)
    found: dict[tuple[str, ...], Sent] = {}
    for (layers, up, down), (_, _, down_cached) in zip(plain, kept, strict=True):
        found.setdefault(layers, Sent(up, down, down_cached))
    if "mode" not in job.algorithm.flags:
        return found

    # Node to node all that a visit sends goes on to the next. The same visits, in the same order.
    onward, onward_cached = late("peer_to_peer", False), late("peer_to_peer", True)
    added: dict[tuple[str, ...], Sent] = {}
    for (layers, up, down), (_, up_cached, down_cached) in zip(onward, onward_cached, strict=True):
        both = {"onward": up + down, "onward_cached": up_cached + down_cached}
        added.setdefault(layers, found[layers]._replace(**both))
    return added


def _variant(job: Job, mode: str, cached: bool) -> Job:
    config = dataclasses.replace(job.config, mode=mode, cached=cached, cycles=CYCLES)
    return job._replace(config=config, plan=job.plan._replace(config=config))
