"""Seconds of a message: over the links between its ends, as they are in its turn."""

from snake_jax.nodes import links
from snake_jax.nodes.fleet import Fleet, figures_of
from snake_jax.nodes.ledger import Transfer


def transfer_s(fleet: Fleet, transfer: Transfer) -> float:
    """Bytes over the slower end's rate, and both ends' latencies.

    Between nodes that are no neighbours it goes hop after hop.
    """
    seconds = 0.0
    for source, destination in links.hops(fleet.links, transfer.source, transfer.destination):
        sender = figures_of(fleet, source)
        receiver = figures_of(fleet, destination)
        rate = min(sender.up_bytes_per_s, receiver.down_bytes_per_s)
        rate *= links.rate_factor(fleet.links, transfer.visit, source, destination)
        seconds += transfer.bytes / rate + sender.latency_s + receiver.latency_s
    return seconds


def delay_s(fleet: Fleet, transfer: Transfer) -> float:
    """Latencies of both ends of every hop."""
    seconds = 0.0
    for source, destination in links.hops(fleet.links, transfer.source, transfer.destination):
        seconds += figures_of(fleet, source).latency_s + figures_of(fleet, destination).latency_s
    return seconds
