"""What travels between places, and why: who holds which version of what, and a row a transfer.

Items are layers and what travels beside them: `LAYER/optimizer`, where optimizer states do. A place
holds copies of items, each of a version and either in full precision or as frozen layers are
stored. A receiver that caches what it was sent needs only what changed since; one
that does not needs everything again. (snake_learning_magazine, "Updated Parameter Transmission and
Node Management".)

In client-server mode a node gets from the server the layers it trains in full precision and the
others as it will store them, and hands in what it trained. In peer-to-peer mode all copies travel
in full precision, because the next node must be able to train, and pass on, any of them; a node
makes its own frozen copies.

Before a visit `deliveries_...` says what is sent for it, and after it `commit_...` takes note of
what was trained. A visit that is lost in between has been sent its layers and hands in nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from snake_jax.nodes import places
from snake_jax.nodes.places import CLOUD, SERVER, Place

OPTIMIZER = "optimizer"
Items = tuple[str, ...]


class Transfer(NamedTuple):
    """A row of the ledger.

    `why` is initial (the receiver's first), update (just trained) or catch-up (changed since);
    where a model is cut, activations, gradients and labels are what all batches of the visit sent
    over the cut below `layers`.
    """

    visit: int
    source: Place
    destination: Place
    layers: Items
    bytes: int
    why: str


class Copy(NamedTuple):
    """What a place holds of an item: its version and whether in full precision."""

    version: int
    full: bool


class Network(NamedTuple):
    """The state of the exchange. Its mappings are never changed, only replaced.

    Attributes:
      latest: `{item: version}`.
      held: `{place: {item: Copy}}`, of all places but `stale` nodes that were ever sent
        anything, and of the server.
      holder: in peer-to-peer mode, the place that holds the whole current model; the server at the
        start.
      trained: the items that the holder trained last.
      stale: the nodes that were sent something once and have no copy left that serves: a bit each,
        by number, since of many nodes a round visits a few.
    """

    latest: Mapping[str, int]
    held: Mapping[Place, Mapping[str, Copy]]
    holder: Place = SERVER
    trained: Items = ()
    stale: int = 0

    def knows(self, place: Place) -> bool:
        """Whether the place was ever sent anything."""
        if place in self.held:
            return True
        return place.kind == "node" and bool(self.stale >> place.index & 1)


Exchanged = tuple[Network, list[Transfer]]  # the state after, and what was sent


class Sizes(NamedTuple):
    """Bytes of each item in full precision and as it is stored frozen."""

    full: Mapping[str, int]
    frozen: Mapping[str, int]


def start(items: Iterable[str]) -> Network:
    """Only the server holds anything: version 0 of every item."""
    latest = dict.fromkeys(items, 0)
    at_server = dict.fromkeys(latest, Copy(0, True))
    return Network(latest, {SERVER: at_server})


def optimizer_item(layer: str) -> str:
    """The item that is a layer's optimizer state."""
    return companion(layer, OPTIMIZER)


def companion(layer: str, kind: str) -> str:
    """The item of a kind that travels beside a layer."""
    return f"{layer}/{kind}"


def is_companion(item: str) -> bool:
    """Whether an item travels beside a layer and is none itself."""
    return "/" in item


def deliveries_from_server(
    network: Network,
    sizes: Sizes,
    visit: int,
    node: Place,
    trained: Items,
    *,
    cached: bool,
    held: Iterable[str] | None = None,
) -> Exchanged:
    """What the server sends a node before its visit.

    Args:
      network: the state before.
      sizes: of the items.
      visit: its index, for the ledger.
      node: the visitor.
      trained: the items it trains (optimizer states among them where they travel).
      cached: whether the node still has what it was sent before.
      held: the layers that it needs to have; None: all.
    """
    # What travels beside a layer is needed where that layer trains, and nowhere else.
    if held is None:
        held = [item for item in network.latest if not is_companion(item)]
    layers = set(held)

    # What it trains it needs in full precision; the rest serves as it will store it.
    needs = {}
    for item in network.latest:
        if item in trained or item in layers:
            needs[item] = item in trained
    return _deliver(network, sizes, visit, SERVER, node, needs, (), cached)


def deliveries_from_holder(
    network: Network,
    sizes: Sizes,
    visit: int,
    node: Place,
    *,
    cached: bool,
    held: Iterable[str] | None = None,
) -> Exchanged:
    """What the previous holder of the model sends the next, as for `deliveries_from_server`."""
    # A node whose turn comes again has the model still.
    source = network.holder
    if source == node:
        return network, []

    # All in full precision, since the next node may train any of it; with optimizer states, since
    # it may go on from them.
    needed = tuple(network.latest)
    if held is not None:
        layers = tuple(held)
        carried = {*layers, *map(optimizer_item, layers)}
        needed = tuple(item for item in network.latest if item in carried)
    # From a node comes what it has just trained; from the server, at the start, nothing has been.
    fresh: Items = ()
    if source != SERVER:
        fresh = network.trained
    needs = dict.fromkeys(needed, True)
    return _deliver(network, sizes, visit, source, node, needs, fresh, cached)


def deliveries_along_chain(
    network: Network,
    sizes: Sizes,
    visit: int,
    segments: Mapping[Place, Items],
    *,
    cached: bool,
) -> Exchanged:
    """What several nodes that hold a segment each get from whoever trained it last.

    Args:
      network: the state before.
      sizes: of the items.
      visit: its index, for the ledger.
      segments: `{place: items}`.
      cached: whether nodes still have what they were sent before.
    """
    # All are sent to at the same time: a place that gets a segment here is nobody's source yet.
    before, transfers = network, list[Transfer]()
    for destination, items in segments.items():
        from_source: dict[Place, list[str]] = {}
        for item in items:
            from_source.setdefault(_newest(before, item), []).append(item)
        for source, sent_items in from_source.items():
            if source == destination:
                continue
            needs = dict.fromkeys(sent_items, True)
            fresh = () if source == SERVER else items
            network, sent = _deliver(
                network, sizes, visit, source, destination, needs, fresh, cached
            )
            transfers += sent
    return network, transfers


def commit_to_server(
    network: Network, sizes: Sizes, visit: int, node: Place, trained: Items
) -> Exchanged:
    """A node has trained these items and hands them in: both have the new versions."""
    network = _renew(network, trained, (node, SERVER))
    return network, [hand_in(sizes, visit, node, trained)]


def commit_at_holder(network: Network, node: Place, trained: Items) -> Network:
    """A node has trained these items and holds the current model until the next one gets it."""
    network = _renew(network, trained, (node,))
    return network._replace(holder=node, trained=trained)


def commit_along_chain(network: Network, segments: Mapping[Place, Items]) -> Network:
    """Several nodes have trained a segment each, `{place: items}`."""
    for destination, items in segments.items():
        network = _renew(network, items, (destination,))
    return network


def _newest(network: Network, item: str) -> Place:
    """The first place that has the item's latest version in full precision."""
    newest = Copy(network.latest[item], True)
    for place, copies in network.held.items():
        if copies.get(item) == newest:
            return place
    raise AssertionError("some place has the latest version of every item")


def hand_in(sizes: Sizes, visit: int, node: Place, trained: Items) -> Transfer:
    """What a node sends the server to be merged with others' (then `aggregated`)."""
    return _transfer(visit, node, SERVER, dict.fromkeys(trained, True), sizes, "update")


def aggregated(network: Network, items: Items, place: Place = SERVER) -> Network:
    """A place has merged or trained these items: its copies are new, and nobody else's."""
    if not items:
        return network
    return _renew(network, items, (place,))


def _deliver(
    network: Network,
    sizes: Sizes,
    visit: int,
    source: Place,
    destination: Place,
    needs: Mapping[str, bool],
    fresh: Items,
    cached: bool,
) -> Exchanged:
    """Sends what `destination` lacks of `needs` (`{item: in full precision}`)."""
    # A place that was never sent anything is told from one that has forgotten all: its first
    # transfer is called initial.
    known = network.knows(destination)
    cache: dict[str, Copy] = {}
    if cached:
        cache.update(network.held.get(destination, {}))

    # What it lacks, by the reason why it lacks it: a row of the ledger has one reason.
    missing: dict[str, dict[str, bool]] = {}
    for item, full in needs.items():
        version = network.latest[item]
        if _serves(cache.get(item), version, full):
            continue
        if not known:
            why = "initial"
        elif item in fresh:
            why = "update"
        else:
            why = "catch-up"
        missing.setdefault(why, {})[item] = full

        # A copy as stored frozen is one in full precision where frozen layers are stored so.
        is_full = full or sizes.frozen[item] == sizes.full[item]
        cache[item] = Copy(version, is_full)

    transfers = []
    for why, items in missing.items():
        transfers.append(_transfer(visit, source, destination, items, sizes, why))
    stale = network.stale
    if destination.kind == "node":
        stale &= ~(1 << destination.index)
    return network._replace(held={**network.held, destination: cache}, stale=stale), transfers


def _serves(copy: Copy | None, version: int, full: bool) -> bool:
    """Whether a copy is of this version and precise enough; one in full precision always is."""
    if copy is None or copy.version != version:
        return False
    return copy.full or not full


def _renew(network: Network, items: Items, holders: tuple[Place, ...]) -> Network:
    """A new version of `items`, held in full precision by `holders` alone."""
    latest = dict(network.latest)
    new = {}
    for item in items:
        latest[item] = latest.get(item, -1) + 1
        new[item] = Copy(latest[item], True)

    # Older copies serve nobody and are forgotten, and so is a node that has no others, but for
    # having been there: what is kept, and gone through here, does not grow with the nodes.
    held = dict(network.held)
    stale = network.stale
    for place, copies in network.held.items():
        if new.keys().isdisjoint(copies):
            continue
        left = {item: copy for item, copy in copies.items() if item not in new}
        if left or place in holders or place.kind != "node":
            held[place] = left
        else:
            del held[place]
            stale |= 1 << place.index
    for place in holders:
        held[place] = {**held.get(place, {}), **new}
    return network._replace(latest=latest, held=held, stale=stale)


def _transfer(
    visit: int, source: Place, destination: Place, items: Mapping[str, bool], sizes: Sizes, why: str
) -> Transfer:
    """A row of items, `{item: in full precision}`, with the sum of their bytes."""
    total = 0
    for item, full in items.items():
        total += sizes.full[item] if full else sizes.frozen[item]
    return Transfer(visit, source, destination, tuple(items), total, why)


def bytes_up_down(transfers: Iterable[Transfer]) -> tuple[int, int]:
    """Bytes sent up (by nodes, and from the server to the cloud), and down.

    A transfer counts once. What goes from node to node is sent by a node: it counts as up.
    """
    up, down = 0, 0
    for transfer in transfers:
        if is_downward(transfer.source, transfer.destination):
            down += transfer.bytes
        else:
            up += transfer.bytes
    return up, down


def is_downward(source: Place, destination: Place) -> bool:
    """Whether a message goes away from the cloud: from it, or from the server to a node."""
    return source == CLOUD or (source == SERVER and destination != CLOUD)


def to_row(transfer: Transfer) -> dict[str, Any]:
    """A transfer as a line of ledger.jsonl has it: places are words."""
    row = transfer._asdict()
    row["source"] = str(transfer.source)
    row["destination"] = str(transfer.destination)
    return row


def to_json(network: Network) -> dict[str, Any]:
    """The state as JSON-able lists and dicts: places are words."""
    held = {}
    for place, copies in network.held.items():
        held[str(place)] = {item: list(copy) for item, copy in copies.items()}
    return {
        "latest": dict(network.latest),
        "held": held,
        "holder": str(network.holder),
        "trained": list(network.trained),
        "stale": f"{network.stale:x}",
    }


def from_json(stored: Mapping[str, Any]) -> Network:
    """The state that `to_json` gave.

    Raises:
      UserError: a word in it is no place.
    """
    held = {}
    for word, copies in stored["held"].items():
        held[places.from_word(word)] = {item: Copy(*copy) for item, copy in copies.items()}
    holder = places.from_word(stored["holder"])
    stale = int(stored["stale"], 16)
    return Network(stored["latest"], held, holder, tuple(stored["trained"]), stale)
