"""Who holds which layers of which small model: the ledger's rows of a round.

A layer of a device's small model is an item of its own, `node7/block_03`, with a version. What a
place needs and does not have in its latest version it gets from where that is. So a moved split
point sends the layers between the old one and the new one and no other, the backup at a round's end
sends the edge's layers, and a device that drops, whose items have no new version, comes back with
what it had at the last round's end. With a backup the device has the edge's layers already when its
split point grows: then nothing is left to send.
"""

from collections.abc import Mapping
from typing import NamedTuple

from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Copy, Exchanged, Items, Network, Sizes, Transfer
from snake_jax.nodes.places import CLOUD, SERVER, Place
from snake_jax.nodes.places import node as node_place
from snake_jax.params import Params, num_bytes

EDGE = SERVER


class Segments(NamedTuple):
    """A small model's items by where they lie."""

    device: Items
    edge: Items


def owner_of(arm: str, node: int) -> str:
    """Whose small model a device computes with: its own, or the one of all."""
    return "shared" if arm == "scct_shared" else f"node{node}"


def item(owner: str, layer: str) -> str:
    """The ledger's name of a layer."""
    return f"{owner}/{layer}"


def segments(owner: str, layers: tuple[str, ...], split: int) -> Segments:
    """Where the items lie with `split` blocks on the device; the embedding is always there."""
    items = tuple(item(owner, layer) for layer in layers)
    return Segments(items[: split + 1], items[split + 1 :])


def start(small: Mapping[str, Params], holders: Mapping[int, str], trained: Params) -> Network:
    """Before the first round: each device holds its whole small model, the cloud what trains there.

    Args:
      small: parameters by owner.
      holders: `{node: owner}`.
      trained: of the cloud.
    """
    latest: dict[str, int] = {}
    held: dict[Place, dict[str, Copy]] = {EDGE: {}}
    for node, owner in holders.items():
        own = {item(owner, layer): Copy(0, True) for layer in small[owner]}
        latest |= dict.fromkeys(own, 0)
        held[node_place(node)] = own
    in_cloud = {item("cloud", layer): Copy(0, True) for layer in trained}
    latest |= dict.fromkeys(in_cloud, 0)
    held[CLOUD] = in_cloud
    return Network(latest, held)


def sizes(small: Mapping[str, Params], trained: Params) -> Sizes:
    """Bytes of all items; nothing of SCCT is stored otherwise than in full precision."""
    full = {}
    for owner, params in small.items():
        for layer, subtree in params.items():
            full[item(owner, layer)] = num_bytes(subtree)
    for layer, subtree in trained.items():
        full[item("cloud", layer)] = num_bytes(subtree)
    return Sizes(full, full)


def place(network: Network, size: Sizes, number: int, node: int, lying: Segments) -> Exchanged:
    """Before a round: device and edge get the layers of theirs that they lack."""
    wanted = {node_place(node): lying.device, EDGE: lying.edge}
    return ledger.deliveries_along_chain(network, size, number, wanted, cached=True)


def keep(
    network: Network, size: Sizes, number: int, node: int, lying: Segments, backup: bool
) -> Exchanged:
    """After a round, or where a device leaves: both have trained their layers.

    Args:
      network: the state before.
      size: of the items.
      number: of the round.
      node: the device.
      lying: where its layers were trained.
      backup: whether the edge's go back to the device.
    """
    here = node_place(node)
    network = ledger.commit_along_chain(network, {here: lying.device, EDGE: lying.edge})
    if not backup:
        return network, []
    wanted = {here: (*lying.device, *lying.edge)}
    return ledger.deliveries_along_chain(network, size, number, wanted, cached=True)


def keep_shared(
    network: Network, size: Sizes, number: int, lying: Mapping[int, Segments], backup: bool
) -> Exchanged:
    """After a round of one small model for all: every device and the edge have its new versions.

    Args:
      network: the state before.
      size: of the items.
      number: of the round.
      lying: by device, where its layers were trained.
      backup: whether the edge's go back to the devices.
    """
    # Who has trained what; a layer lies at the edge where some device's split point is before it.
    trained: dict[Place, Items] = {EDGE: ()}
    every: dict[str, None] = {}
    for node, own in lying.items():
        trained[node_place(node)] = own.device
        trained[EDGE] += tuple(name for name in own.edge if name not in trained[EDGE])
        every |= dict.fromkeys((*own.device, *own.edge))

    # One new version of an item, though several places have trained it alike.
    latest = dict(network.latest)
    for name in every:
        latest[name] += 1
    held = {}
    for holder, copies in network.held.items():
        kept = {name: copy for name, copy in copies.items() if name not in every}
        for name in trained.get(holder, ()):
            kept[name] = Copy(latest[name], True)
        held[holder] = kept
    network = network._replace(latest=latest, held=held)
    rows = list[Transfer]()
    if backup:
        for node, own in lying.items():
            both = {node_place(node): (*own.device, *own.edge)}
            network, sent = ledger.deliveries_along_chain(network, size, number, both, cached=True)
            rows += sent
    return network, rows


def keep_in_cloud(network: Network, trained: Params) -> Network:
    """After a round: new versions of what trained in the cloud, which goes nowhere."""
    items = tuple(item("cloud", layer) for layer in trained)
    return ledger.commit_along_chain(network, {CLOUD: items})
