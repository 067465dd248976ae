"""What a method sends, and between whom: before each visit, and after each round.

- `NO_TRAFFIC`: data and model are in one place.
- `RELAY`: visit after visit, through the server or from node to node (`--mode`); where several
  nodes train side by side the server merges what they hand in.
- `STAR`: all visits of a round start from the server's model, and the server merges.
- `WALK`: every segment of a cut model goes from the node that had it to the one that is to have it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_CLOUD, ON_NODE, ON_SERVER, Chain, Role
from snake_jax.algorithms.visits import Round, Visit
from snake_jax.config import RunConfig
from snake_jax.nodes import columns, ledger, places
from snake_jax.nodes.columns import WHOLE, Columns
from snake_jax.nodes.ledger import Exchanged, Items, Network, Sizes, Transfer
from snake_jax.nodes.places import CLOUD
from snake_jax.params import LayerNames


class Exchange(NamedTuple):
    """What traffic depends on, the same through a run.

    Attributes:
      config: of the run.
      sizes: bytes of all that may travel.
      chain: where the layers of a visit lie.
      layer_names: the model's order.
      beside: names of what there is beside the model's layers: adapters, or a head of the node's.
      companions: kinds of items that travel with every trained layer.
      read: `{layer: layers whose weights it reads too}`, as a head that is tied to the embedding.
      columns: how adapters are cut where nodes have unlike ranks.
    """

    config: RunConfig
    sizes: Sizes
    chain: Chain
    layer_names: LayerNames
    beside: LayerNames = ()
    companions: tuple[str, ...] = ()
    read: Mapping[str, LayerNames] = {}
    columns: Columns = WHOLE

    def held(self, role: Role = ON_NODE) -> LayerNames:
        """The layers that a role has, frozen ones included, and what is beside them."""
        names = (*self.layer_names, *self.beside)
        return chains.owned(self.chain, self.layer_names, names, role)

    def needed(self, role: Role = ON_NODE) -> LayerNames:
        """The layers that a role has, and those that it reads besides."""
        held = self.held(role)
        also = []
        for layer in held:
            for name in self.read.get(layer, ()):
                if name not in held:
                    also.append(name)
        return (*held, *also)

    def trained_at(self, role: Role, visit: Visit) -> LayerNames:
        """The layers of a visit that train on a role."""
        # Of a cut model the others train elsewhere.
        held = set(self.held(role))
        return tuple(name for name in visit.layers if name in held)

    def items(self, layers: LayerNames) -> Items:
        """The items that layers are in the ledger."""
        return columns.all_parts(self.columns, layers)

    def renewed_at(self, role: Role, visit: Visit) -> Items:
        """The items of a visit that are new after it: of adapters the columns that its node has."""
        return columns.all_trained(self.columns, self.trained_at(role, visit), visit.node)

    def trained_at_node(self, visit: Visit) -> Items:
        """The items of a visit that its node trains, and what travels with them."""
        layers = self.trained_at(ON_NODE, visit)
        return self._with_companions(layers, self.renewed_at(ON_NODE, visit))

    def read_at_node(self, visit: Visit) -> Items:
        """The items that the node's steps read in full precision, and what travels with them: of
        what it trains all columns.
        """
        layers = self.trained_at(ON_NODE, visit)
        return self._with_companions(layers, self.items(layers))

    def _with_companions(self, layers: LayerNames, items: Items) -> Items:
        """Items of these layers, and what travels beside them."""
        beside = []
        for kind in self.companions:
            # An optimizer's state has columns as its layer has; what methods add goes whole.
            for name in items if kind == ledger.OPTIMIZER else layers:
                beside.append(ledger.companion(name, kind))
        return (*items, *beside)


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
    """The node gets what it is to hold, whoever trained it last; so does the cloud."""
    network, to_cloud = _to_cloud(exchange, network, visit)
    network, to_node = ledger.deliveries_from_server(
        network,
        exchange.sizes,
        visit.turn,
        places.node(visit.node),
        exchange.read_at_node(visit),
        cached=exchange.config.cached,
        held=exchange.items(exchange.needed()),
    )
    return network, [*to_cloud, *to_node]


def _to_cloud(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    """The cloud gets its part once, and has the newest from then on."""
    if ON_CLOUD not in chains.roles(exchange.chain):
        return network, []
    return ledger.deliveries_from_server(
        network,
        exchange.sizes,
        visit.turn,
        CLOUD,
        exchange.items(exchange.trained_at(ON_CLOUD, visit)),
        cached=True,
        held=exchange.items(exchange.needed(ON_CLOUD)),
    )


def _from_server_or_holder(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    """As `--mode` says."""
    if exchange.config.mode == "client_server":
        return _from_server(exchange, network, visit)
    # Whoever is next may have to train, or pass on, any layer: all of it goes from node to node.
    network, to_cloud = _to_cloud(exchange, network, visit)
    network, to_node = ledger.deliveries_from_holder(
        network,
        exchange.sizes,
        visit.turn,
        places.node(visit.node),
        cached=exchange.config.cached,
        held=exchange.items(exchange.needed()),
    )
    return network, [*to_cloud, *to_node]


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
        # Some of what visits train lies, where the model is cut, at the server or in the cloud,
        # which merges its own copies. A merge may change all columns of adapters.
        renewed: dict[str, None] = {}
        in_cloud: dict[str, None] = {}
        for visit in returned:
            layers = exchange.items(visit.layers)
            renewed |= dict.fromkeys((*layers, *exchange.read_at_node(visit)))
            in_cloud |= dict.fromkeys(exchange.items(exchange.trained_at(ON_CLOUD, visit)))
        at_server = tuple(item for item in renewed if item not in in_cloud)
        network = ledger.aggregated(network, at_server)
        network = ledger.aggregated(network, tuple(in_cloud), CLOUD)
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

    # The server's part of a cut model was trained where it lies, the cloud's likewise.
    network = ledger.aggregated(network, exchange.renewed_at(ON_SERVER, visit))
    in_cloud = exchange.renewed_at(ON_CLOUD, visit)
    return ledger.aggregated(network, in_cloud, CLOUD), transfers


def _along_chain(exchange: Exchange, network: Network, visit: Visit) -> Exchanged:
    """Every place of the chain gets its segment from the place that has its newest version."""
    # A place may have several segments, as a node has in the U-shape: it gets all at once.
    segments = {}
    for role in chains.roles(exchange.chain):
        segments[chains.place_of(role, visit)] = exchange.items(exchange.needed(role))
    return ledger.deliveries_along_chain(
        network, exchange.sizes, visit.turn, segments, cached=exchange.config.cached
    )


def _kept_along_chain(
    exchange: Exchange, network: Network, visits: Round, returned: Sequence[Visit]
) -> Exchanged:
    """What was trained stays where it is until the next visit."""
    for visit in visits:
        if visit not in returned:
            continue
        trained = {}
        for role in chains.roles(exchange.chain):
            trained[chains.place_of(role, visit)] = exchange.renewed_at(role, visit)
        network = ledger.commit_along_chain(network, trained)
    return network, []


NO_TRAFFIC = Traffic(_nothing_before, _nothing_after)
RELAY = Traffic(_from_server_or_holder, _handed_on)
STAR = Traffic(_from_server, _merged_at_server)
WALK = Traffic(_along_chain, _kept_along_chain)
