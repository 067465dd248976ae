"""What a method sends, and between whom: before each visit, and after each round.

- `NO_TRAFFIC`: data and model are in one place.
- `RELAY`: visit after visit, through the server or from node to node (`--mode`); where several
  nodes train side by side the server merges what they hand in.
- `STAR`: all visits of a round start from the server's model, and the server merges.
- `WALK`: every segment of a cut model goes from the node that had it to the one that is to have it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE, Chain
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.config import RunConfig
from snake_jax.nodes import ledger, places
from snake_jax.nodes.ledger import Exchanged, Items, Network, Sizes, Transfer
from snake_jax.nodes.places import Place
from snake_jax.params import LayerNames


class Exchange(NamedTuple):
    """What traffic depends on, the same through a run.

    Attributes:
      config: of the run.
      sizes: bytes of all that may travel.
      chain: where the layers of a visit lie.
      layer_names: the model's order.
      beside: names of layers that the visiting node has beside the model's.
      companions: kinds of items that travel with every trained layer.
    """

    config: RunConfig
    sizes: Sizes
    chain: Chain
    layer_names: LayerNames
    beside: LayerNames = ()
    companions: tuple[str, ...] = ()

    def held(self) -> LayerNames:
        """The layers that a visiting node has, frozen ones included."""
        return chains.held(self.chain, self.layer_names, ON_NODE) + self.beside

    def trained_at_node(self, visit: Visit) -> Items:
        """The layers of a visit that its node trains, and what travels with them."""
        # Of a cut model the others train elsewhere.
        held = set(self.held())
        layers = tuple(name for name in visit.layers if name in held)
        beside = []
        for kind in self.companions:
            for name in layers:
                beside.append(ledger.companion(name, kind))
        return (*layers, *beside)


class Traffic(NamedTuple):
    """What is sent around the visits of a round.

    Attributes:
      deliveries: `(exchange, network, visit) -> (network, transfers)` before a visit.
      commit: `(exchange, network, visits, returned) -> (network, transfers)` after a round; of
        its visits those returned that handed in, or kept, what they trained.
    """

    deliveries: Callable[[Exchange, Network, Visit], Exchanged]
    commit: Callable[[Exchange, Network, Round, Sequence[Visit]], Exchanged]


def _nothing_before(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    del exchange, visit
    return network, []


def _nothing_after(
    exchange: Exchange, network: Network, visits: Round, returned: Sequence[Visit]
) -> Exchanged:
    del exchange, visits, returned
    return network, []


def _from_server(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    """The node gets what it is to hold, whoever trained it last."""
    return ledger.deliveries_from_server(
        network,
        exchange.sizes,
        visit.turn,
        places.node(visit.node),
        exchange.trained_at_node(visit),
        cached=exchange.config.cached,
        held=exchange.held(),
    )


def _from_server_or_holder(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    """As `--mode` says."""
    if exchange.config.mode == "client_server":
        return _from_server(exchange, network, visit)
    # Whoever is next may have to train, or pass on, any layer: all of it goes from node to node.
    return ledger.deliveries_from_holder(
        network,
        exchange.sizes,
        visit.turn,
        places.node(visit.node),
        cached=exchange.config.cached,
        held=exchange.held(),
    )


def _merged_at_server(
    exchange: Exchange, network: Network, visits: Round, returned: Sequence[Visit]
) -> Exchanged:
    """Nodes hand in what they trained; the server's copies are new, and nobody else's."""
    # What a lost visit trained never arrives.
    transfers = []
    for visit in visits:
        if visit in returned:
            trained = exchange.trained_at_node(visit)
            node = places.node(visit.node)
            transfers.append(ledger.hand_in(exchange.sizes, visit.turn, node, trained))
    if returned:
        # Some of what a visit trains lies at the server, where the model is cut.
        renewed: dict[str, None] = {}
        for visit in returned:
            renewed |= dict.fromkeys((*visit.layers, *exchange.trained_at_node(visit)))
        network = ledger.aggregated(network, tuple(renewed))
    return network, transfers


def _handed_on(
    exchange: Exchange, network: Network, visits: Round, returned: Sequence[Visit]
) -> Exchanged:
    """A lone node hands in, or keeps, what it trained; the server keeps its part of a cut model."""
    if len(visits) > 1:
        return _merged_at_server(exchange, network, visits, returned)
    if not returned:
        return network, []

    # The node's part: to the server, or kept until the next node is to have it.
    (visit,) = visits
    node = places.node(visit.node)
    trained = exchange.trained_at_node(visit)
    transfers: list[Transfer] = []
    if exchange.config.mode == "client_server":
        network, transfers = ledger.commit_to_server(
            network, exchange.sizes, visit.turn, node, trained
        )
    else:
        network = ledger.commit_at_holder(network, node, trained)

    # The server's part of a cut model was trained where it lies.
    held = exchange.held()
    elsewhere = tuple(name for name in visit.layers if name not in held)
    return ledger.aggregated(network, elsewhere), transfers


def _segments(exchange: Exchange, visit: Visit) -> dict[Place, LayerNames]:
    """`{place: layers}` of a visit's chain."""
    # A place may have several segments, as a node has in the U-shape: it gets all at once.
    found = {}
    for role in chains.roles(exchange.chain):
        layers = chains.held(exchange.chain, exchange.layer_names, role)
        found[chains.place_of(role, visit)] = layers
    return found


def _along_chain(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    """Every place of the chain gets its segment from the place that has its newest version."""
    return ledger.deliveries_along_chain(
        network,
        exchange.sizes,
        visit.turn,
        _segments(exchange, visit),
        cached=exchange.config.cached,
    )


def _kept_along_chain(
    exchange: Exchange, network: Network, visits: Round, returned: Sequence[Visit]
) -> Exchanged:
    """What was trained stays where it is until the next visit."""
    for visit in visits:
        if visit in returned:
            network = ledger.commit_along_chain(network, _segments(exchange, visit))
    return network, []


NO_TRAFFIC = Traffic(_nothing_before, _nothing_after)
RELAY = Traffic(_from_server_or_holder, _handed_on)
STAR = Traffic(_from_server, _merged_at_server)
WALK = Traffic(_along_chain, _kept_along_chain)
