"""Bytes that the visits of a cycle send, by the functions that fill the ledger of a run."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from snake_jax.nodes import places
from snake_jax.nodes.ledger import Sizes, bytes_up_down
from snake_jax.params import LayerNames
from snake_jax.profiling.rows import Sent
from snake_jax.runs.job import Job, planned_transfers

CYCLES = 3
"""After so many every node has had a turn and every layer a new version: later cycles send the
same.
"""


class VisitBytes(NamedTuple):
    """What one visit sends.

    Attributes:
      trained: the layers that it trains.
      up: bytes sent by nodes.
      down: bytes sent by the server.
    """

    trained: LayerNames
    up: int
    down: int


def cycles(job: Job, sizes: Sizes) -> list[list[VisitBytes]]:
    """Of each cycle of the configuration what each visit sends, in the order of the visits."""
    found: list[list[VisitBytes]] = []
    for _ in range(job.config.cycles):
        found.append([])
    for visits, transfers in planned_transfers(job, sizes):
        for visit in visits:
            node = places.node(visit.node)
            # A visit over several nodes is alone in its round: all that is sent is its own.
            mine = transfers
            if not visit.others:
                mine = [sent for sent in transfers if node in (sent.source, sent.destination)]
            up, down = bytes_up_down(mine)
            found[visit.cycle].append(VisitBytes(visit.layers, up, down))
    return found


def by_assignment(job: Job, sizes: Sizes) -> Mapping[LayerNames, Sent]:
    """`{what trains: bytes}` of the visits of a late cycle, in both modes where there are two."""
    # The same visits in the same order, whether or not nodes keep what they are sent.
    fresh = _late(job, sizes, "client_server", cached=False)
    kept = _late(job, sizes, "client_server", cached=True)
    found: dict[LayerNames, Sent] = {}
    for visit, kept_visit in zip(fresh, kept, strict=True):
        if visit.trained not in found:
            found[visit.trained] = Sent(visit.up, visit.down, kept_visit.down)
    if "mode" not in job.algorithm.flags:
        return found

    # Node to node all that a visit sends goes on to the next.
    fresh = _late(job, sizes, "peer_to_peer", cached=False)
    kept = _late(job, sizes, "peer_to_peer", cached=True)
    both: dict[LayerNames, Sent] = {}
    for visit, kept_visit in zip(fresh, kept, strict=True):
        if visit.trained not in both:
            both[visit.trained] = found[visit.trained]._replace(
                onward=visit.up + visit.down,
                onward_cached=kept_visit.up + kept_visit.down,
            )
    return both


def _late(job: Job, sizes: Sizes, mode: str, *, cached: bool) -> list[VisitBytes]:
    """The visits of the last of `CYCLES` cycles."""
    config = dataclasses.replace(job.config, mode=mode, cached=cached, cycles=CYCLES)
    plan = job.plan._replace(config=config)
    variant = job._replace(config=config, plan=plan)
    return cycles(variant, sizes)[-1]
