"""What travels between nodes, and why: who holds which version of which layer, and a ledger of
every transfer.

Items are layers and what travels beside them: `LAYER/optimizer`, where optimizer states do. A place
(a node or the server) holds copies of items, each of a version and either in full precision or as
frozen layers are stored. A receiver that caches what it was sent needs only what changed since; one
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
from typing import NamedTuple

SERVER = "server"
OPTIMIZER = "optimizer"


class Transfer(NamedTuple):
    """A row of the ledger.

    `why` is initial (the receiver's first), update (just trained) or catch-up (changed since);
    where a model is cut, activations, gradients and labels are what all batches of the visit sent
    over the cut below `layers`.
    """

    visit: int
    source: str
    destination: str
    layers: tuple[str, ...]
    bytes: int
    why: str


class Copy(NamedTuple):
    """What a place holds of an item: its version and whether in full precision."""

    version: int
    full: bool


class Network(NamedTuple):
    """The state of the exchange.

    Attributes:
      latest: `{item: version}`.
      held: `{place: {item: Copy}}`.
      holder: in peer-to-peer mode, the place that holds the whole current model; the server at the
        start.
      trained: the items that the holder trained last.
    """

    latest: Mapping[str, int]
    held: Mapping[str, Mapping[str, Copy]]
    holder: str = SERVER
    trained: tuple[str, ...] = ()


class Sizes(NamedTuple):
    """Bytes of each item in full precision and as it is stored frozen."""

    full: Mapping[str, int]
    frozen: Mapping[str, int]


def start(items: Iterable[str]) -> Network:
    """Only the server holds anything: version 0 of every item."""
    items = tuple(items)
    return Network(dict.fromkeys(items, 0), {SERVER: {item: Copy(0, True) for item in items}})


def place(node: int) -> str:
    """The name of a node in the ledger."""
    return f"node{node}"


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
    node: int,
    trained: tuple[str, ...],
    *,
    cached: bool,
    held: Iterable[str] | None = None,
) -> tuple[Network, list[Transfer]]:
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
    if held is None:
        held = [item for item in network.latest if not is_companion(item)]
    layers = set(held)
    needs = {}
    for item in network.latest:
        if item in trained or item in layers:
            needs[item] = item in trained
    return _deliver(network, sizes, visit, SERVER, place(node), needs, (), cached)


def deliveries_from_holder(
    network: Network,
    sizes: Sizes,
    visit: int,
    node: int,
    *,
    cached: bool,
    held: Iterable[str] | None = None,
) -> tuple[Network, list[Transfer]]:
    """What the previous holder of the model sends the next, as for `deliveries_from_server`."""
    destination = place(node)
    if network.holder == destination:
        return network, []
    carried = None if held is None else {*held, *map(optimizer_item, held)}
    needs = {item: True for item in network.latest if carried is None or item in carried}
    fresh = network.trained if network.holder != SERVER else ()
    return _deliver(network, sizes, visit, network.holder, destination, needs, fresh, cached)


def deliveries_along_chain(
    network: Network,
    sizes: Sizes,
    visit: int,
    segments: Mapping[str, tuple[str, ...]],
    *,
    cached: bool,
) -> tuple[Network, list[Transfer]]:
    """What several nodes that hold a segment each get from whoever trained it last.

    Args:
      network: the state before.
      sizes: of the items.
      visit: its index, for the ledger.
      segments: `{place: items}`.
      cached: whether nodes still have what they were sent before.
    """
    before, transfers = network, list[Transfer]()
    for destination, items in segments.items():
        sources = {item: _newest(before, item) for item in items}
        for source in dict.fromkeys(sources.values()):
            if source == destination:
                continue
            needs = {item: True for item in items if sources[item] == source}
            fresh = () if source == SERVER else items
            network, sent = _deliver(
                network, sizes, visit, source, destination, needs, fresh, cached
            )
            transfers += sent
    return network, transfers


def commit_to_server(
    network: Network, sizes: Sizes, visit: int, node: int, trained: tuple[str, ...]
) -> tuple[Network, list[Transfer]]:
    """A node has trained these items and hands them in: both have the new versions."""
    network = _renew(network, trained, (place(node), SERVER))
    return network, [hand_in(sizes, visit, node, trained)]


def commit_at_holder(network: Network, node: int, trained: tuple[str, ...]) -> Network:
    """A node has trained these items and holds the current model until the next one gets it."""
    network = _renew(network, trained, (place(node),))
    return network._replace(holder=place(node), trained=trained)


def commit_along_chain(network: Network, segments: Mapping[str, tuple[str, ...]]) -> Network:
    """Several nodes have trained a segment each, `{place: items}`."""
    for destination, items in segments.items():
        network = _renew(network, items, (destination,))
    return network


def _newest(network: Network, item: str) -> str:
    """A place that has the item's latest version in full precision."""
    return next(
        place
        for place, copies in network.held.items()
        if copies.get(item) == Copy(network.latest[item], True)
    )


def hand_in(sizes: Sizes, visit: int, node: int, trained: tuple[str, ...]) -> Transfer:
    """What a node sends the server to be merged with others' (then `aggregated`)."""
    return _transfer(visit, place(node), SERVER, dict.fromkeys(trained, True), sizes, "update")


def aggregated(network: Network, items: tuple[str, ...]) -> Network:
    """The server has merged several nodes' updates, or trained them: its copies are new, and nobody
    else's.
    """
    return _renew(network, items, (SERVER,))


def _deliver(
    network: Network,
    sizes: Sizes,
    visit: int,
    source: str,
    destination: str,
    needs: Mapping[str, bool],
    fresh: tuple[str, ...],
    cached: bool,
) -> tuple[Network, list[Transfer]]:
    """Sends what `destination` lacks of `needs` (`{item: in full precision}`)."""
    known = network.held.get(destination)
    cache = dict(known or {}) if cached else {}
    missing = {
        item: full
        for item, full in needs.items()
        if not _serves(cache.get(item), network.latest[item], full)
    }
    groups: dict[str, dict[str, bool]] = {}
    for item, full in missing.items():
        why = "initial" if known is None else "update" if item in fresh else "catch-up"
        groups.setdefault(why, {})[item] = full
    transfers = [
        _transfer(visit, source, destination, items, sizes, why) for why, items in groups.items()
    ]
    # A copy as stored frozen is one in full precision where frozen layers are stored so.
    cache |= {
        item: Copy(network.latest[item], full or sizes.frozen[item] == sizes.full[item])
        for item, full in missing.items()
    }
    return network._replace(held={**network.held, destination: cache}), transfers


def _serves(copy: Copy | None, version: int, full: bool) -> bool:
    return copy is not None and copy.version == version and (copy.full or not full)


def _renew(network: Network, items: tuple[str, ...], places: tuple[str, ...]) -> Network:
    """A new version of `items`, held in full precision at `places`; older copies serve nobody and
    are forgotten.
    """
    latest = {**network.latest, **{item: network.latest.get(item, -1) + 1 for item in items}}
    old, new = set(items), {item: Copy(latest[item], True) for item in items}
    held = {
        name: {i: c for i, c in copies.items() if i not in old}
        for name, copies in network.held.items()
    }
    held |= {name: {**held.get(name, {}), **new} for name in places}
    return network._replace(latest=latest, held=held)


def _transfer(
    visit: int, source: str, destination: str, items: Mapping[str, bool], sizes: Sizes, why: str
) -> Transfer:
    total = sum((sizes.full if full else sizes.frozen)[item] for item, full in items.items())
    return Transfer(visit, source, destination, tuple(items), total, why)


def bytes_up_down(transfers: Iterable[Transfer]) -> tuple[int, int]:
    """Bytes sent by nodes (to the server or the next node) and bytes sent by the server; a transfer
    counts once.
    """
    transfers = list(transfers)
    down = sum(t.bytes for t in transfers if t.source == SERVER)
    return sum(t.bytes for t in transfers) - down, down


def to_json(network: Network) -> dict:
    """The state as JSON-able lists and dicts."""
    held = {
        name: {item: list(copy) for item, copy in copies.items()}
        for name, copies in network.held.items()
    }
    return {**network._asdict(), "held": held}


def from_json(stored: dict) -> Network:
    """The state that `to_json` gave."""
    held = {
        name: {item: Copy(*copy) for item, copy in copies.items()}
        for name, copies in stored["held"].items()
    }
    return Network(stored["latest"], held, stored["holder"], tuple(stored["trained"]))
