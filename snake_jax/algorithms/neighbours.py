"""The next node among neighbours: a relay over a graph, for peer to peer.

"Nodes autonomously choose a suitable next-hop node from adjacent nodes to minimize communication
latency and energy consumption" (snake_learning_arxiv, "Updated Parameter Transmission"). Of the
neighbours of the node that has the model those are eligible that can hold the visit and have had
the fewest so far, so that all are visited and none starves. With `--assign=greedy` the one is next
with the least seconds and joules of hop and visit, at the rate that the link has in that turn; else
the one that is next by number. Where no neighbour can hold a visit the nearest nodes that can are
eligible, and the model passes those between.

A visit that is taken over goes to a neighbour of whoever hands the model over (`stand_ins`): of the
node that handed in what it had, or where that was lost of the one that was visited before.
"""

from collections.abc import Callable, Generator, Sequence

from snake_jax.algorithms.schedule import Hop, Plan, taken_over
from snake_jax.algorithms.visits import Ending, Round, Rounds, Visit
from snake_jax.config import RunConfig
from snake_jax.errors import UserError
from snake_jax.nodes import places, sending, topology
from snake_jax.nodes.fleet import figures_of
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import SERVER, Place
from snake_jax.nodes.topology import Graph
from snake_jax.params import LayerNames

TOPOLOGY_FLAGS = frozenset({"topology", "neighbours"})


def is_graph(config: RunConfig) -> bool:
    """Whether some nodes are no neighbours."""
    return config.topology != topology.COMPLETE


def graph_of(config: RunConfig) -> Graph:
    """The graph of a configuration.

    Raises:
      UserError: there is no such graph.
    """
    return topology.make(config.topology, config.nodes, config.neighbours, config.seed)


def check(config: RunConfig) -> None:
    """Refuses what has nothing to say over a graph, or contradicts it.

    Raises:
      UserError: something does.
    """
    check_degree(config)
    if not is_graph(config):
        return
    flag = f"--topology={config.topology}"
    if config.mode != "peer_to_peer":
        raise UserError(f"{flag}: nodes send to each other with --mode=peer_to_peer; say so too")
    if config.assign not in ("serpentine", "greedy"):
        raise UserError(
            f"{flag}: --assign={config.assign} plans a cycle whoever is whose neighbour; say "
            "--assign=greedy or serpentine"
        )
    if config.rates == "measured":
        raise UserError(
            f"{flag}: --rates=measured plans whole cycles and keeps the plans, since a run that "
            "goes on could not measure the same; each hop is chosen when it comes, by stated "
            "rates; leave --rates=declared"
        )
    if config.shuffle_nodes:
        raise UserError(f"{flag}: the next node is a neighbour; leave --shuffle_nodes out")


def check_degree(config: RunConfig) -> None:
    """Refuses a number of neighbours for a graph that has its own.

    Raises:
      UserError: it is asked for.
    """
    if config.neighbours != RunConfig.neighbours and config.topology != "random":
        raise UserError(
            f"--neighbours={config.neighbours}: a number of neighbours is for --topology=random"
        )


def relay_over_graph(
    plan: Plan, assignments_of: Callable[[Plan, int], Sequence[LayerNames]]
) -> Rounds:
    """One visit after the other, each at a neighbour of the node that finished the last.

    Args:
      plan: of the run.
      assignments_of: `(plan, cycle) -> layers of each of its turns`.
    """
    visits = [0] * plan.config.nodes
    holder: int | None = None
    turn = 0
    for cycle in range(plan.config.cycles):
        for layers in assignments_of(plan, cycle):
            node = next_node(plan, holder, visits, turn, layers)
            (ending,) = yield (Visit(turn, cycle, node, layers, giver=holder),)
            ending = yield from _finished(plan, ending)
            # Whoever finished the visit has the model, also where it was taken over.
            holder = ending.visit.node
            visits[holder] += 1
            turn += 1


def _finished(plan: Plan, ending: Ending) -> Generator[Round, tuple[Ending, ...], Ending]:
    """Goes through the take-overs of a visit; returns the ending of the last."""
    rounds = taken_over(plan, ending)
    for_now = next(rounds, None)
    while for_now is not None:
        (visit,) = for_now
        if ending.event == "interrupted":
            # What its node has trained so far lies there.
            visit = visit._replace(giver=ending.visit.node)
        endings = yield (visit,)
        (ending,) = endings
        try:
            for_now = rounds.send(endings)
        except StopIteration:
            return ending
    return ending


def next_node(
    plan: Plan, holder: int | None, visits: Sequence[int], turn: int, layers: LayerNames
) -> int:
    """Who is visited next.

    Args:
      plan: of the run.
      holder: the node that has the model; None: the server.
      visits: that each node had so far.
      turn: of the visit, which says how links are.
      layers: that it trains.

    Raises:
      UserError: no node is admitted that can hold the visit.
    """
    count = plan.config.nodes
    able = plan.able.get(layers, range(count))
    there = [node for node in range(count) if node in able and node not in plan.refused]
    if not there:
        raise UserError(
            f"no node is admitted that can hold visit {turn} (layers {', '.join(layers)}): raise "
            "memory_bytes in --node_file"
        )
    eligible = there
    if holder is not None:
        eligible = _nearest(graph_of(plan.config), holder, there)
    fewest = min(visits[node] for node in eligible)
    eligible = [node for node in eligible if visits[node] == fewest]

    # By number, from the holder's on; or by what hop and visit cost, in seconds.
    if plan.hop is None:
        start = -1 if holder is None else holder
        return min(eligible, key=lambda node: (node - start - 1) % count)
    source = SERVER if holder is None else places.node(holder)
    prices = {}
    for node in eligible:
        prices[node] = _hop_price(plan.hop, source, node, turn) + _visit_price(plan, layers, node)
    return min(prices, key=lambda node: (prices[node], node))


def _nearest(graph: Graph, holder: int, nodes: Sequence[int]) -> list[int]:
    """Of these nodes the holder's nearest; itself where there is nobody else."""
    others = [node for node in nodes if node != holder]
    if not others:
        return list(nodes)
    hops = {node: topology.distance(graph, holder, node) for node in others}
    least = min(hops.values())
    return [node for node in others if hops[node] == least]


def _hop_price(hop: Hop, source: Place, node: int, turn: int) -> float:
    """Seconds of sending the model there, and the cost of the joules of both ends."""
    destination = places.node(node)
    transfer = Transfer(turn, source, destination, (), hop.model_bytes, "")
    cost = 0.0
    for place in (source, destination):
        figures = figures_of(hop.fleet, place)
        cost += hop.model_bytes * figures.joules_per_byte * figures.energy_price
    return sending.transfer_s(hop.fleet, transfer) + cost


def _visit_price(plan: Plan, layers: LayerNames, node: int) -> float:
    """Seconds of the visit there, and the cost of its joules."""
    if plan.hop is None or layers not in plan.able:
        return 0.0
    # The seconds are of computing alone where hops are counted apart.
    seconds = plan.able[layers][node]
    figures = plan.hop.fleet.nodes[node]
    flops = seconds * figures.flops_per_s
    return seconds + flops * figures.joules_per_flop * figures.energy_price
