"""Runs an algorithm from a configuration: visits, transfers, merges, evaluation, metrics, checkpoints, resume.

`prepare` does everything that can fail on wrong input, before anything is compiled; `train` does the rest.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snake_jax import chain as chains
from snake_jax import costs, data, network, records, schedule
from snake_jax.config import Config
from snake_jax.executor import Compilations, Executor, VisitResult, VisitSettings
from snake_jax.layers import Params, num_params, select
from snake_jax.network import Network, Sizes, Transfer
from snake_jax.optimizers import OptimizerStates
from snake_jax.preparation import Setup, init_params, make_step, prepare, rounds, sizes_of, state_like
from snake_jax.schedule import Round
from snake_jax.steps import Examples

__all__ = ["Diverged", "Report", "Setup", "State", "initial_state", "make_executor", "prepare", "rounds", "state_like"]
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


def initial_state(setup: Setup) -> State:
    """Fresh parameters from the seed; nothing sent yet."""
    params = jax.jit(functools.partial(init_params, setup))(jax.random.key(setup.config.seed))
    merge = setup.algorithm.init_merge(setup.config, params)
    return State(params, {}, merge, network.start(setup.layer_names), 0)


def make_executor(setup: Setup) -> Executor:
    """The node emulation of this setup; puts the data on the device."""
    config, dataset = setup.config, setup.dataset
    step = make_step(setup)
    settings = VisitSettings(**{name: getattr(config, name) for name in VisitSettings._fields})
    train, test = _examples(dataset.train), _examples(dataset.test)
    return Executor(step, train, test, setup.shards, settings, config.executor)


def _examples(split: data.Split) -> Examples:
    return Examples(jnp.asarray(split.images), jnp.asarray(split.labels))


def train(setup: Setup, executor: Executor, state: State, keep: Callable[[State], None]) -> Iterator[Report]:
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
    work, sizes = costs.step_work(setup), sizes_of(setup)
    executor.compile(every, state.params, done=state.rounds)
    for number in range(state.rounds, len(every)):
        visits = every[number]
        rate = schedule.learning_rate(config, visits[0].cycle)
        results = executor.run(visits, state.params, state.states, rate)
        good = [result for result in results if _is_good(result, config, state, keep)]
        flops = [{role: r.iterations * n for role, n in work(r.visit.layers).items()} for r in results]
        state, transfers = _advance(setup, sizes, state, visits, results, good)
        took = costs.elapsed(setup, state.clock_s, results, transfers, flops)
        state = state._replace(clock_s=state.clock_s + took.seconds)
        due = (number + 1) % config.eval_every == 0 or number + 1 == len(every)
        scores = executor.evaluate(state.params) if due else (None, None)
        waits = costs.synchronisations(setup, results)
        record = records.of_round(visits, results, transfers, scores, rate, flops, waits)
        record |= records.of_clock(took)
        record |= {"distilled": setup.distilled, "event": visits[0].event if len(good) == len(results) else "skipped"}
        yield Report(record, transfers, state)


def _is_good(result: VisitResult, config: Config, state: State, keep: Callable[[State], None]) -> bool:
    """Whether a visit's result is usable; a diverged one ends the run unless it is to be skipped."""
    if result.finite or result.visit.event == "lost":
        return result.finite
    if config.on_divergence == "stop":
        keep(state)
        visit = result.visit
        raise Diverged(
            f"visit {visit.turn} (node {visit.node}, layers {', '.join(visit.layers)}) diverged: its loss is not "
            "finite; the state before it is kept. Go on from it with --on_divergence=skip, or lower --learning_rate "
            "or set a --clip_norm in a new --workdir"
        )
    return False


def _advance(
    setup: Setup,
    sizes: Sizes,
    state: State,
    visits: Round,
    results: Sequence[VisitResult],
    good: list[VisitResult],
) -> tuple[State, list[Transfer]]:
    """The state after a round: transfers made, results merged. A lost or diverged visit hands in nothing."""
    algorithm, config = setup.algorithm, setup.config
    accepted = [result for result in good if result.visit.event != "lost"]
    params, merge = algorithm.merge(setup.plan, visits, state.params, state.merge, accepted)
    states = state.states
    if config.carry_optimizer_state:
        for result in accepted:
            states = {**states, **result.states}
    net, transfers = state.network, list[Transfer]()
    if algorithm.traffic != "none":
        net, transfers = costs.exchange(setup, sizes, net, visits, {result.visit for result in accepted})
        sent = costs.messages(setup)
        transfers += [t for r in results for t in chains.transfers(sent, r.visit, r.examples)]
    return State(params, states, merge, net, state.rounds + 1, state.clock_s), transfers


def summarise(setup: Setup, compiled: Compilations, lines: Sequence[records.Record]) -> records.Record:
    """The content of summary.json.

    Args:
      setup: of the run.
      compiled: in all processes of the run.
      lines: all lines of metrics.
    """
    config, (params, _, _) = setup.config, state_like(setup, ())
    named = ("algorithm", "model", "dataset", "partition", "alpha", "seed", "nodes", "cycles")
    if len(setup.chain) > 1:  # the program holds both sides, so its memory is no node's
        compiled = compiled._replace(peak_bytes=None)
    return {
        **{name: getattr(config, name) for name in named},
        "num_params": num_params(select(params, setup.model.layer_names)),
        **records.summary(lines, compiled, config.target_accuracy),
        "divergence": setup.divergence,
        "divergence_measure": config.distill_measure,
        "distilled": setup.distilled,
        "device": f"{jax.devices()[0].platform}:{jax.devices()[0].device_kind}",
        "config": dataclasses.asdict(config),
    }
