"""Runs an algorithm from a configuration: visits, transfers, merges, evaluation, metrics,
checkpoints, resume.

`prepare` does everything that can fail on wrong input, before anything is compiled; `train` does
the rest.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms import schedule
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.config import ImageConfig, RunConfig, TextConfig
from snake_jax.engines.contract import Compilations, run_visits
from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Network, Sizes, Transfer
from snake_jax.params import Params
from snake_jax.runs import image_task, records, round_costs, text_task
from snake_jax.runs.setup import Setup, rounds, state_like
from snake_jax.train.optimizers import OptimizerStates

__all__ = [
    "Diverged",
    "Report",
    "Setup",
    "State",
    "initial_state",
    "make_executor",
    "prepare",
    "rounds",
    "state_like",
]
__all__ += ["summarise", "train"]


class Diverged(RuntimeError):
    """A visit's loss or parameters are not finite; the message names the visit."""


class State(NamedTuple):
    """All that a run carries from round to round.

    Attributes:
      params: the model in full precision.
      states: optimizer states by layer, where they travel.
      merge: what the algorithm's merge remembers.
      network: who holds what.
      rounds: finished so far.
      clock_s: simulated seconds so far.
    """

    params: Params
    states: OptimizerStates
    merge: Any
    network: Network
    rounds: int
    clock_s: float = 0.0


class Report(NamedTuple):
    """A finished round: one line of metrics, its transfers, and the state after it."""

    record: dict[str, Any]
    transfers: list[Transfer]
    state: State


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


def initial_state(setup: Setup) -> State:
    """Fresh or pretrained parameters; nothing sent yet."""
    params = setup.task.params(setup)
    merge = setup.algorithm.init_merge(setup.config, params)
    return State(params, {}, merge, ledger.start(setup.layer_names), 0)


def make_executor(setup: Setup) -> Any:
    """The node emulation of this setup; puts the data on the device."""
    return setup.task.executor(setup)


def train(
    setup: Setup, executor: Any, state: State, keep: Callable[[State], None]
) -> Iterator[Report]:
    """Carries out the rounds that `state` has not finished, yielding a report after each.

    Args:
      setup: from `prepare`.
      executor: from `make_executor`.
      state: from `initial_state` or a checkpoint.
      keep: is called with the last good state before the run ends on divergence.

    Raises:
      Diverged: a visit's loss is not finite and `--on_divergence=stop`.
    """
    config, every = setup.config, rounds(setup)
    work, sizes = setup.task.work(setup), setup.task.sizes(setup)
    executor.expect(every, state.params, done=state.rounds)
    for number in range(state.rounds, len(every)):
        visits = every[number]
        rate = schedule.learning_rate(config, visits[0].cycle, number / len(every))
        with jax.profiler.TraceAnnotation(f"round {number + 1}"):
            results = run_visits(executor, visits, state.params, state.states, rate)
        good = [result for result in results if _is_good(result, config, state, keep)]
        flops = [work(result) for result in results]
        state, transfers = _advance(setup, sizes, state, visits, results, good)
        took = round_costs.elapsed(setup, state.clock_s, results, transfers, flops)
        state = state._replace(clock_s=state.clock_s + took.seconds)
        due = (number + 1) % config.eval_every == 0 or number + 1 == len(every)
        with jax.profiler.TraceAnnotation("evaluate"):
            scores = executor.evaluate(state.params) if due else (None, None)
        waits = round_costs.synchronisations(setup, results)
        record = records.of_round(visits, results, transfers, scores, rate, flops, waits)
        record |= records.of_clock(took) | setup.task.record(results, scores)
        record |= {
            "distilled": setup.distilled,
            "event": visits[0].event if len(good) == len(results) else "skipped",
        }
        yield Report(record, transfers, state)


def _is_good(
    result: Outcome, config: RunConfig, state: State, keep: Callable[[State], None]
) -> bool:
    """Whether a visit's result is usable; a diverged one ends the run unless it is to be
    skipped.
    """
    if result.finite or result.visit.event == "lost":
        return result.finite
    if config.on_divergence == "stop":
        keep(state)
        visit = result.visit
        raise Diverged(
            f"visit {visit.turn} (node {visit.node}, layers {', '.join(visit.layers)}) diverged: "
            f"its loss is not "
            "finite; the state before it is kept. Go on from it with --on_divergence=skip, or "
            "lower --learning_rate "
            "or set a --clip_norm in a new --workdir"
        )
    return False


def _advance(
    setup: Setup,
    sizes: Sizes,
    state: State,
    visits: Round,
    results: Sequence[Outcome],
    good: list[Outcome],
) -> tuple[State, list[Transfer]]:
    """The state after a round: transfers made, results merged. A lost or diverged visit hands in
    nothing.
    """
    algorithm, config = setup.algorithm, setup.config
    accepted = [result for result in good if result.visit.event != "lost"]
    params, merge = algorithm.merge(setup.plan, visits, state.params, state.merge, accepted)
    states = state.states
    if config.carry_optimizer_state:
        for result in accepted:
            states = {**states, **result.states}
    net, transfers = state.network, list[Transfer]()
    if algorithm.traffic != "none":
        net, transfers = round_costs.exchange(
            setup, sizes, net, visits, {result.visit for result in accepted}
        )
        sent = round_costs.messages(setup)
        transfers += [t for r in results for t in chains.transfers(sent, r.visit, r.examples)]
    return State(params, states, merge, net, state.rounds + 1, state.clock_s), transfers


def summarise(
    setup: Setup, compiled: Compilations, lines: Sequence[records.Record], executor: Any = None
) -> records.Record:
    """The content of summary.json.

    Args:
      setup: of the run.
      compiled: in all processes of the run.
      lines: all lines of metrics.
      executor: of the run, for what a task measures at its end.
    """
    config = setup.config
    if len(setup.chain) > 1:  # the program holds both sides, so its memory is no node's
        compiled = compiled._replace(peak_bytes=None)
    return {
        **setup.task.summary(setup, executor, lines),
        **records.summary(lines, compiled),
        "divergence": setup.divergence,
        "divergence_measure": config.distill_measure,
        "distilled": setup.distilled,
        "device": f"{jax.devices()[0].platform}:{jax.devices()[0].device_kind}",
        "config": dataclasses.asdict(config),
    }
