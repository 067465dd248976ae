"""What a round costs: transfers, waits, simulated time. All of it follows from the setup."""

from collections.abc import Mapping, Sequence

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE
from snake_jax.algorithms.visits import Outcome, Round, Visit
from snake_jax.nodes import clock, ledger
from snake_jax.nodes.ledger import Network, Sizes, Transfer
from snake_jax.runs.setup import Setup


def synchronisations(setup: Setup, results: Sequence[Outcome]) -> int:
    """How often a party waited for another: for gradients over a cut, and for the slowest node of a
    round.
    """
    trips = chains.round_trips(messages(setup))
    return trips * sum(r.iterations for r in results) + (len(results) > 1)


def merges(setup: Setup, visits: Sequence[Visit]) -> bool:
    """Whether the server waits for all nodes of the round and merges what they hand in."""
    return setup.algorithm.traffic == "star" or len(visits) > 1


def messages(setup: Setup) -> tuple[chains.Message, ...]:
    """What every batch sends over the cuts."""
    gradients = not setup.algorithm.local_losses
    return chains.messages(setup.chain, setup.model, setup.config.compute_dtype, gradients)


def exchange(
    setup: Setup, sizes: Sizes, net: Network, visits: Round, returned: set[Visit]
) -> tuple[Network, list[Transfer]]:
    """Layers to and from the nodes of a round."""
    config, transfers = setup.config, []
    held = _held_by_node(setup)
    if setup.algorithm.traffic == "walk":
        (visit,) = visits
        segments = {
            chains.place_of(role, visit): chains.held(setup.chain, setup.model.layer_names, role)
            for role in chains.roles(setup.chain)
        }
        return ledger.visit_chain(
            net, sizes, visit.turn, segments, cached=config.cached, returns=visit in returned
        )
    merged = merges(setup, visits)
    deliver = (
        ledger.visit_peer_to_peer if config.mode == "peer_to_peer" else ledger.visit_client_server
    )
    for visit in visits:
        trained = _items(tuple(n for n in visit.layers if n in held), config.carry_optimizer_state)
        back = visit in returned and not merged
        net, sent = deliver(
            net,
            sizes,
            visit.turn,
            visit.node,
            trained,
            cached=config.cached,
            returns=back,
            held=held,
        )
        transfers += sent
    if merged:
        for visit in visits:
            if visit in returned:
                trained = tuple(n for n in visit.layers if n in held)
                transfers.append(ledger.hand_in(sizes, visit.turn, visit.node, trained))
        net = ledger.aggregated(net, visits[0].layers) if returned else net
    elif returned:
        net = ledger.aggregated(net, tuple(n for n in visits[0].layers if n not in held))
    return net, transfers


def _held_by_node(setup: Setup) -> tuple[str, ...]:
    """The layers that a visiting node has, frozen ones included, and what it has beside the
    model's.
    """
    beside = setup.layer_names[len(setup.model.layer_names) :]
    return chains.held(setup.chain, setup.model.layer_names, ON_NODE) + beside


def _items(layers: tuple[str, ...], with_states: bool) -> tuple[str, ...]:
    return layers + tuple(ledger.optimizer_item(name) for name in layers) if with_states else layers


def elapsed(
    setup: Setup,
    now_s: float,
    results: Sequence[Outcome],
    transfers: Sequence[Transfer],
    flops: Sequence[Mapping[int, int]],
) -> clock.Elapsed:
    """What the round takes by the clock."""
    works = [_work(setup, r, by_role, transfers) for r, by_role in zip(results, flops, strict=True)]
    turn, trace = results[0].visit.turn, clock.trace_of(setup.config)
    return clock.elapse(setup.fleet, trace, now_s, turn, works, synchronised=len(works) > 1)


def _work(
    setup: Setup, result: Outcome, by_role: Mapping[int, int], transfers: Sequence[Transfer]
) -> clock.Work:
    """One visit's part of a round. Without traffic the data is in one place: the server's."""
    visit = result.visit
    if setup.algorithm.traffic == "none":
        return clock.Work({ledger.SERVER: sum(by_role.values())}, (), 0, None)
    own = chains.place_of(ON_NODE, visit)
    mine = [t for t in transfers if visit.others or own in (t.source, t.destination)]
    at = {chains.place_of(role, visit): flops for role, flops in by_role.items()}
    batch = sum(message.why != "labels" for message in messages(setup))
    return clock.Work(at, mine, batch * result.iterations, visit.node)
