"""What a round costs: transfers, waits, simulated time. All of it follows from the setup."""

from collections.abc import Mapping, Sequence

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE
from snake_jax.algorithms.visits import Outcome
from snake_jax.nodes import clock, ledger
from snake_jax.nodes.ledger import Transfer
from snake_jax.runs.setup import Setup


def synchronisations(setup: Setup, results: Sequence[Outcome]) -> int:
    """How often a party waited for another: for gradients over a cut, and for the slowest node of a
    round.
    """
    trips = chains.round_trips(messages(setup))
    return trips * sum(r.iterations for r in results) + (len(results) > 1)


def messages(setup: Setup) -> tuple[chains.Message, ...]:
    """What every batch sends over the cuts."""
    gradients = not setup.algorithm.local_losses
    return chains.messages(setup.chain, setup.model, setup.config.compute_dtype, gradients)


def elapsed(
    setup: Setup,
    now_s: float,
    results: Sequence[Outcome],
    transfers: Sequence[Transfer],
    flops: Sequence[Mapping[int, int]],
) -> clock.Elapsed:
    """What the round takes by the clock."""
    works = []
    for result, by_role in zip(results, flops, strict=True):
        works.append(_work(setup, result, by_role, transfers))
    turn = results[0].visit.turn if results else 0
    trace = clock.trace_of(setup.config)
    return clock.elapse(setup.fleet, trace, now_s, turn, works, synchronised=len(works) > 1)


def _work(
    setup: Setup, result: Outcome, by_role: Mapping[int, int], transfers: Sequence[Transfer]
) -> clock.Work:
    """One visit's part of a round. Without traffic the data is in one place: the server's."""
    visit = result.visit
    if setup.algorithm.at_server:
        return clock.Work({ledger.SERVER: sum(by_role.values())}, (), 0, None)
    own = chains.place_of(ON_NODE, visit)
    mine = [t for t in transfers if visit.others or own in (t.source, t.destination)]
    at = {chains.place_of(role, visit): flops for role, flops in by_role.items()}
    batch = sum(message.why != "labels" for message in messages(setup))
    return clock.Work(at, mine, batch * result.iterations, visit.node)
