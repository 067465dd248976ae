"""What a round costs: transfers, waits, simulated time. All of it follows from the setup."""

from collections.abc import Mapping, Sequence

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import Role
from snake_jax.algorithms.schedule import UNFINISHED, WAITED, share_struck
from snake_jax.algorithms.visits import Outcome, Visit
from snake_jax.config import RunConfig
from snake_jax.nodes import clock, places, presence
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import CLOUD, SERVER, Place
from snake_jax.nodes.presence import Moment
from snake_jax.runs.job import batch_messages
from snake_jax.runs.setup import Setup


def synchronisations(setup: Setup, results: Sequence[Outcome]) -> int:
    """How often a party waited for another.

    For gradients over a cut, and for the slowest node of a round.
    """
    iterations = sum(result.iterations for result in results)
    over_cuts = chains.round_trips(batch_messages(setup.job)) * iterations
    # Nodes side by side wait once, at the end, for the slowest of them.
    at_end = 1 if len(results) > 1 else 0
    return over_cuts + at_end


def elapsed(
    setup: Setup,
    now_s: float,
    results: Sequence[Outcome],
    transfers: Sequence[Transfer],
    flops: Sequence[Mapping[Role, int]],
) -> clock.Elapsed:
    """What the round takes by the clock.

    Args:
      setup: of the run.
      now_s: when the round begins, in seconds of the clock.
      results: of its visits.
      transfers: made for it.
      flops: of each visit, by role.
    """
    trace = clock.trace_of(setup.config)
    moment = Moment(setup.fleet, trace, now_s)
    sent_at = _by_end(transfers)
    works = []
    for result, by_role in zip(results, flops, strict=True):
        work = _work(setup, result, by_role, transfers, sent_at)
        works.append(_as_followed(setup.config, moment, result.visit, work))
    turn = results[0].visit.turn if results else 0
    side_by_side = len(works) > 1
    return clock.elapse(setup.fleet, trace, now_s, turn, works, synchronised=side_by_side)


def _by_end(transfers: Sequence[Transfer]) -> dict[Place, list[Transfer]]:
    """The transfers that begin or end at each place, in order; one pass a round."""
    found: dict[Place, list[Transfer]] = {}
    for sent in transfers:
        found.setdefault(sent.source, []).append(sent)
        found.setdefault(sent.destination, []).append(sent)
    return found


def _with_layers_of_cloud(node: Place, transfers: Sequence[Transfer]) -> list[Transfer]:
    """The transfers of a node, and those of layers between server and cloud, in order."""
    found = []
    for sent in transfers:
        ends = {sent.source, sent.destination}
        is_of_layers = ends == {SERVER, CLOUD} and sent.why not in chains.OF_BATCHES
        if node in ends or is_of_layers:
            found.append(sent)
    return found


def _work(
    setup: Setup,
    result: Outcome,
    by_role: Mapping[Role, int],
    transfers: Sequence[Transfer],
    sent_at: Mapping[Place, Sequence[Transfer]],
) -> clock.VisitWork:
    """One visit's part of a round. Without traffic the data is in one place: the server's."""
    visit = result.visit
    if setup.algorithm.at_server:
        total = sum(by_role.values())
        return clock.VisitWork({SERVER: total}, (), 0, None)
    node = places.node(visit.node)
    flops = {}
    for role, count in by_role.items():
        flops[chains.place_of(role, visit)] = count

    # A visit over several nodes is alone in its round, so all that was sent is its own. Between
    # server and cloud layers are waited for by all visits, and batches by their own visit.
    batch = batch_messages(setup.job)
    mine = list(transfers)
    if not visit.others:
        # Only where there is a cloud are there transfers that concern all visits.
        mine = list(sent_at.get(node, ()))
        if CLOUD in sent_at:
            mine = _with_layers_of_cloud(node, transfers)
        beyond = [message for message in batch if chains.is_beyond_server(message)]
        mine += chains.transfers(beyond, visit, _units(result), result.iterations)

    # Labels go up with activations, shared weights with them or with gradients.
    near, far = 0, 0
    for message in batch:
        if message.why not in ("labels", chains.SHARED):
            far += chains.is_beyond_server(message)
            near += not chains.is_beyond_server(message)
    steps = result.iterations
    work = clock.VisitWork(flops, mine, near * steps, node, far * steps)
    if not setup.algorithm.local_losses:
        return work
    # Nobody waits for a gradient: node and server train at the same time.
    streamed = [sent for sent in mine if sent.why in chains.OF_BATCHES]
    return work._replace(batches=steps, streamed=streamed)


def _as_followed(
    config: RunConfig, moment: Moment, visit: Visit, work: clock.VisitWork
) -> clock.VisitWork:
    """The work with what the clock is to know of who waits and who is cut short.

    Where the schedule follows the clock, that says itself for how long a node is away.
    """
    if not config.follow_clock:
        return work._replace(waits_s=config.rejoin_s) if visit.event == WAITED else work
    if visit.event not in UNFINISHED or share_struck(config, visit.turn) is not None:
        return work
    leaves = presence.leaving(moment, visit.node)
    return work._replace(ends_s=leaves.at_s, dropped=leaves.drops)


def sent_over_cuts(setup: Setup, outcomes: Sequence[Outcome]) -> list[Transfer]:
    """What all batches of a round sent where the model is cut."""
    sent = batch_messages(setup.job)
    transfers = []
    for outcome in outcomes:
        transfers += chains.transfers(sent, outcome.visit, _units(outcome), outcome.iterations)
    return transfers


def _units(outcome: Outcome) -> int:
    """Images, or tokens that are no padding: what a message's bytes are of."""
    return outcome.examples if outcome.text is None else outcome.text.tokens
