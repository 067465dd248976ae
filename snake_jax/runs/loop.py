"""Runs an algorithm: visits, transfers, merges, evaluation, metrics, and the state to go on from.

`prepare` does everything that can fail on wrong input, before anything is compiled; `train` does
the rest.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms import schedule
from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.traffic import Exchange
from snake_jax.algorithms.visits import Ending, Round
from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.engines.contract import Compilations, Engine, Held, Holdings, Scores
from snake_jax.nodes import ledger
from snake_jax.nodes.clock import Elapsed
from snake_jax.nodes.ledger import Network, Transfer
from snake_jax.params import Params, PyTree
from snake_jax.runs import (
    carry,
    course,
    distilling,
    events,
    image_task,
    limits,
    membership,
    privacy,
    rates,
    records,
    round_costs,
    stops,
    text_task,
)
from snake_jax.runs import job as jobs
from snake_jax.runs.carry import Carried, Diverged
from snake_jax.runs.membership import Request
from snake_jax.runs.setup import Setup
from snake_jax.runs.state import Report, State
from snake_jax.training.optimizers import OptimizerStates

__all__ = [
    "Diverged",
    "Report",
    "Setup",
    "State",
    "initial_state",
    "make_engine",
    "planned",
    "prepare",
    "summarise",
    "total_rounds",
    "train",
]


def prepare(config: RunConfig) -> Setup:
    """Checks a configuration and loads its data; compiles nothing.

    Raises:
      UserError: flags, data, model or layers are wrong.
    """
    return _PREPARE[type(config)](config)


_PREPARE: dict[type, Callable[[Any], Setup]] = {
    ImageConfig: image_task.prepare,
    TextConfig: text_task.prepare,
}


def planned(setup: Setup) -> list[Round]:
    """All rounds of the run, in order, where nothing fails but what the flags ask for."""
    return jobs.planned(setup.job)


def total_rounds(setup: Setup) -> int:
    """How many rounds the run has, where nothing fails but what the flags ask for."""
    return jobs.outline(setup.job).rounds


def initial_state(setup: Setup) -> State:
    """Fresh or pretrained parameters; nothing sent yet."""
    params = setup.task.params(setup)
    memory = setup.algorithm.memory(setup.config, params)
    return State(params, {}, memory, {}, ledger.start(jobs.items(setup.job)), {}, 0)


def make_engine(setup: Setup) -> Engine:
    """What carries out this setup's visits; puts the data on the device."""
    return setup.task.engine(setup)


def _no_requests() -> Sequence[Request]:
    return ()


def train(
    setup: Setup,
    engine: Engine,
    state: State,
    keep: Callable[[State], None],
    requests: Callable[[], Sequence[Request]] = _no_requests,
    watch: carry.Watch | None = None,
) -> Iterator[Report]:
    """Carries out the rounds that `state` has not finished, yielding a report after each.

    It ends before the planned rounds do where all nodes have left, and where a threshold says that
    the model is good enough.

    Args:
      setup: from `prepare`.
      engine: from `make_engine`.
      state: from `initial_state` or a checkpoint.
      keep: is called with the last good state before the run ends on divergence.
      requests: is asked after every round for all requests to leave or join so far.
      watch: is told how far visits have come; None: nobody is.

    Raises:
      Diverged: a visit's loss is not finite and `--on_divergence=stop`.
      UserError: no node's update of a visit can be merged, or no node is there that can hold it.
    """
    config, work = setup.config, setup.task.work(setup.job)
    exchange, turns = jobs.exchange_of(setup.job), _expected(setup, engine, state)
    rounds, coming, finished, unfinished = course.begun(setup, state)
    spent = privacy.spent_in(finished, config.local_epochs)
    heard = dict.fromkeys(state.nodes, state.rounds)
    refused = Counter[int]()
    while coming.visits is not None and not state.ended:
        before, number = state, state.rounds
        visits = limits.shortened(setup, coming.visits, state.steps)
        rate = schedule.learning_rate(config, visits[0].cycle, visits[0].turn / turns)

        # Before the visits: what each node is sent. After them: what comes back, and the merge.
        network, sent = _deliveries(setup.algorithm, exchange, state.network, visits)
        holdings = _holdings(setup, state, heard)
        orders = [holdings.order(visit, rate) for visit in visits]
        with jax.profiler.TraceAnnotation(f"round {number + 1}"):
            engine.hold(holdings)
            carried = carry.carry_out(setup, engine, state, orders, refused, keep, watch)
        flops = [work(outcome) for outcome in carried.outcomes]
        done = _merged(setup, exchange, state, network, sent, visits, carried, flops)

        # How it went decides what comes next, and is kept so that a resumed run decides alike.
        state = _state_after(setup, state, done, requests())
        absent = coming.absent
        coming = course.following(
            setup, rounds, done.endings, state, number + 1, state.measured, state.clock_s
        )
        state = state._replace(plans=coming.plans)
        # Why the run ends here though its plan goes on.
        over = limits.why_over(config, state.steps) if coming.visits is not None else ""
        if over:
            coming = coming._replace(visits=None)
        noted = membership.noted(
            setup, engine, before, visits, carried, unfinished, state.moves, coming.visits, absent
        )
        unfinished = course.unfinished(done.endings)
        if carried.nodes:
            heard |= {visit.node: number + 1 for visit in carried.accepted}

        scores = None
        if state.rounds % config.eval_every == 0 or coming.visits is None:
            scores = _evaluated(engine, state.params)
        ended = over
        if coming.visits is not None:
            ended = stops.why_ends(config, scores)
        if ended:
            state = state._replace(ended=ended)
            noted = (*noted, events.of_run_end(number, visits[0].turn, ended))
        record = _record(setup, done, scores, rate, ended)
        record |= privacy.of_round(config, visits, spent)
        yield Report(record, done.transfers, state, carried.lost, noted)


def _expected(setup: Setup, engine: Engine, state: State) -> int:
    """Tells the engine what the run is going to ask for; how many turns the run has."""
    outline = jobs.outline(setup.job, state.rounds)
    shared = setup.algorithm.shared(state.memory)
    if engine.by_node:
        engine.expect(planned(setup), state.params, state.rounds, shared)
    else:
        rounds = (*outline.kinds, *outline.left)
        engine.expect(rounds, state.params, len(outline.kinds), shared)
    return outline.turns


class _Done(NamedTuple):
    """A round that was carried out and merged.

    Attributes:
      visits: of it.
      carried: what came of them.
      endings: how each went, for the method.
      params: the model after it.
      memory: what the server remembers.
      network: who holds what.
      transfers: all that was sent.
      flops: of each outcome, by role.
      took: in simulated seconds.
    """

    visits: Round
    carried: Carried
    endings: tuple[Ending, ...]
    params: Params
    memory: PyTree
    network: Network
    transfers: list[Transfer]
    flops: list[Mapping[chains.Role, int]]
    took: Elapsed


def _merged(
    setup: Setup,
    exchange: Exchange,
    state: State,
    network: Network,
    delivered: list[Transfer],
    visits: Round,
    carried: Carried,
    flops: list[Mapping[chains.Role, int]],
) -> _Done:
    """The round with its outcomes merged, and what that took.

    Args:
      setup: of the run.
      exchange: what traffic depends on.
      state: before the round.
      network: after its deliveries.
      delivered: what was sent by them.
      visits: of the round.
      carried: what came of them.
      flops: of each outcome, by role.
    """
    algorithm = setup.algorithm
    params, memory = algorithm.merge.finish(
        setup.plan, visits, state.params, state.memory, carried.total
    )
    network, sent = algorithm.traffic.commit(exchange, network, visits, carried.accepted)
    network = _renewed(state, params, carried.states, network)
    over_cuts = round_costs.sent_over_cuts(setup, carried.outcomes)
    transfers = [*delivered, *sent, *over_cuts]
    took = round_costs.elapsed(setup, state.clock_s, carried.outcomes, transfers, flops)
    endings = course.endings_of(visits, carried)
    return _Done(visits, carried, endings, params, memory, network, transfers, flops, took)


def _state_after(setup: Setup, state: State, done: _Done, requests: Sequence[Request]) -> State:
    """The state with a round done; the plans of what comes are still those of before.

    Args:
      setup: of the run.
      state: before the round.
      done: the round.
      requests: all so far to leave or join.
    """
    config, carried = setup.config, done.carried
    changed = membership.after_round(setup, state, done.visits, carried, requests)
    measured = state.measured
    if config.rates == "measured":
        measured = rates.measured_after(measured, carried.outcomes, done.flops)
    return State(
        done.params,
        carried.states,
        done.memory,
        carried.nodes,
        done.network,
        course.with_failures(state, done.endings),
        state.rounds + 1,
        state.clock_s + done.took.seconds,
        *changed,
        measured,
        state.plans,
        begun_s=(*state.begun_s, state.clock_s) if config.follow_clock else (),
        steps=limits.steps_after(state.steps, carried.outcomes),
    )


def _evaluated(engine: Engine, params: Params) -> Scores:
    with jax.profiler.TraceAnnotation("evaluate"):
        return engine.evaluate(params)


def _deliveries(
    algorithm: Algorithm, exchange: Exchange, network: Network, visits: Round
) -> tuple[Network, list[Transfer]]:
    """What is sent before the visits of a round, one after the other."""
    transfers = list[Transfer]()
    for visit in visits:
        network, sent = algorithm.traffic.deliveries(exchange, network, visit)
        transfers += sent
    return network, transfers


def _record(
    setup: Setup, done: _Done, scores: Scores | None, rate: float, ended: str
) -> dict[str, Any]:
    """What a round's line of metrics says."""
    outcomes = done.carried.outcomes
    waits = round_costs.synchronisations(setup, outcomes)
    found = scores or (None, None)
    record = records.of_round(done.visits, outcomes, done.transfers, found, rate, done.flops, waits)
    record |= records.of_clock(done.took) | setup.task.record(outcomes, scores)
    record |= {"distilled": setup.distilled, "event": _event(done.visits, done.carried)}
    record |= stops.of_visits(outcomes)
    record |= records.of_serialized(outcomes)
    return record | {"ended": ended} if ended else record


def _holdings(setup: Setup, state: State, heard: Mapping[int, int]) -> Holdings:
    """What the orders of the next round name, by the ledger's versions.

    Args:
      setup: of the run.
      state: before the round.
      heard: `{node: rounds that were finished when its memory was last heard of}`.
    """
    latest, algorithm = state.network.latest, setup.algorithm
    layers, states, memory = {}, {}, {}
    for name, value in state.params.items():
        layers[name] = Held(latest.get(name, 0), value)
    for name, value in state.states.items():
        states[name] = Held(latest.get(ledger.optimizer_item(name), 0), value)
    for node, value in state.nodes.items():
        memory[node] = Held(heard[node], value)
    if algorithm.client(setup.config) is None:
        return Holdings(layers, states, memory)
    return Holdings(layers, states, memory, Held(state.rounds, algorithm.shared(state.memory)))


def _renewed(state: State, params: Params, states: OptimizerStates, network: Network) -> Network:
    """The network with a new version of every layer that the merge changed, and of every optimizer
    state that a visit did.

    A method's traffic renews what it sends. What changes where nothing is sent, as in centralised
    training, is another version all the same: a node is given by it what it lacks.
    """
    changed = []
    for name, value in params.items():
        same = network.latest.get(name) == state.network.latest.get(name)
        if same and value is not state.params.get(name):
            changed.append(name)
    for name, own in states.items():
        item = ledger.optimizer_item(name)
        same = network.latest.get(item) == state.network.latest.get(item)
        if same and own is not state.states.get(name):
            changed.append(item)
    return ledger.aggregated(network, tuple(changed)) if changed else network


def _event(visits: Round, carried: Carried) -> str:
    """What a round's line of metrics says of it."""
    if carried.lost:
        return "lost"
    # A lost visit that the flags ask for is trained and then thrown away.
    diverged = [outcome for outcome in carried.outcomes if not outcome.finite]
    return "skipped" if diverged else max(visit.event for visit in visits)


def summarise(
    setup: Setup,
    compiled: Compilations,
    lines: Sequence[records.Record],
    engine: Engine | None = None,
) -> records.Record:
    """The content of summary.json.

    Args:
      setup: of the run.
      compiled: in all processes of the run.
      lines: all lines of metrics.
      engine: of the run, for what a task measures at its end.
    """
    config = setup.config
    if len(setup.chain) > 1:  # the program holds both sides, so its memory is no node's
        compiled = compiled._replace(peak_bytes=None)
    return {
        **setup.task.summary(setup, engine, lines),
        **records.summary(lines, compiled),
        **records.total_serialized(lines),
        **privacy.summary(config, setup.algorithm, lines),
        **stops.summary(lines),
        "divergence": setup.data.divergence,
        "divergence_measure": config.distill_measure,
        **distilling.summary(setup.verdict),
        "device": f"{jax.devices()[0].platform}:{jax.devices()[0].device_kind}",
        "config": dataclasses.asdict(config),
    }
