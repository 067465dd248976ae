"""Runs an algorithm from a configuration: visits, transfers, merges, evaluation, metrics, checkpoints, resume.

`prepare` does everything that can fail on wrong input, before anything is compiled; `train` does the rest.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snake_jax import accounting, data, models, network, schedule
from snake_jax.algorithms import ALGORITHMS, Algorithm
from snake_jax.config import Config, pick
from snake_jax.errors import UserError
from snake_jax.executor import Executor, VisitResult, VisitSettings
from snake_jax.layers import LayeredModel, Params, num_params, resolve_layers, select
from snake_jax.network import Network, Sizes, Transfer
from snake_jax.optimizers import OptimizerStates, init_states, update_rule
from snake_jax.schedule import Plan, Round
from snake_jax.steps import Distillation, Examples, LocalStep


class Diverged(RuntimeError):
    """A visit's loss or parameters are not finite; the message names the visit."""


class Setup(NamedTuple):
    """A checked configuration with its data, network and plan.

    Attributes:
      config: as given.
      algorithm: the method.
      dataset: cleaned.
      quality: what cleaning did, one line.
      shards: each node's indices into the training examples, as the method trains on them.
      divergence: between the nodes' label distributions, by `config.distill_measure`.
      distilled: whether visits distill.
      model: the network.
      plan: what the schedule depends on.
    """

    config: Config
    algorithm: Algorithm
    dataset: data.Dataset
    quality: str
    shards: Sequence[np.ndarray]
    divergence: float
    distilled: bool
    model: LayeredModel
    plan: Plan


class State(NamedTuple):
    """All that a run carries from round to round.

    Attributes:
      params: the model in full precision.
      states: optimizer states by layer, where they travel.
      merge: what the algorithm's merge remembers.
      network: who holds what.
      rounds: finished so far.
    """

    params: Params
    states: OptimizerStates
    merge: Any
    network: Network
    rounds: int


class Report(NamedTuple):
    """A finished round: one line of metrics, its transfers, and the state after it."""

    record: dict[str, Any]
    transfers: list[Transfer]
    state: State


def prepare(config: Config) -> Setup:
    """Checks a configuration and loads its data; compiles nothing.

    Raises:
      UserError: flags, data or layers are wrong.
    """
    algorithm = ALGORITHMS[pick("algorithm", config.algorithm, ALGORITHMS)]
    pick("model", config.model, models.MODELS)
    pick("partition", config.partition, data.PARTITIONS)
    pick("augment", config.augment, data.AUGMENTATIONS)
    _check_fit(config, algorithm)
    dataset, quality = data.clean(data.load(config.dataset), outliers=config.outliers, seed=config.seed)
    shards = data.partition(config.partition, dataset.train.labels, config.nodes, config.alpha, config.seed)
    counts = data.label_counts(shards, dataset.train.labels, dataset.num_classes)
    divergence = data.label_divergence(counts, config.distill_measure)
    wanted = config.distill == "on" or (config.distill == "auto" and divergence > config.distill_threshold)
    options = {name: getattr(config, name) for name in ("width", "norm", "dropout", "conv")}
    model = models.build(config.model, dataset.num_classes, dataset.train.images.shape[1:], **options)
    always = resolve_layers("always_train", config.always_train, model.layer_names)
    plan = Plan(config, model.layer_names, always)
    distilled = wanted and algorithm.distills
    return Setup(config, algorithm, dataset, str(quality), algorithm.shards(shards), divergence, distilled, model, plan)


def _check_fit(config: Config, algorithm: Algorithm) -> None:
    """Flags that the algorithm has no use for are refused rather than ignored."""
    schedule.interruptions(config)
    if (config.interrupt or config.fault_rate) and not algorithm.interruptible:
        raise UserError(f"--interrupt and --fault_rate: {algorithm.name} has no takeover; use snake or sequential")
    if config.carry_optimizer_state and not algorithm.carries_states:
        raise UserError(f"--carry_optimizer_state: the nodes of {algorithm.name} train side by side; leave it out")
    if config.distill == "on" and not algorithm.distills:
        raise UserError(f"--distill=on: {algorithm.name} does not distill; use snake or sequential")
    if algorithm.traffic == "star" and config.mode == "peer_to_peer":
        raise UserError(f"--mode=peer_to_peer: {algorithm.name} needs the server; use client_server")
    if algorithm.name != "fedavg" and (config.nodes_per_round or config.server_momentum):
        raise UserError(f"--nodes_per_round and --server_momentum are fedavg's; {algorithm.name} has no use for them")
    if config.nodes_per_round > config.nodes:
        raise UserError(f"--nodes_per_round={config.nodes_per_round} is more than --nodes={config.nodes}")


def rounds(setup: Setup) -> list[Round]:
    """All rounds of the run, in order."""
    return [r for cycle in range(setup.config.cycles) for r in setup.algorithm.rounds(setup.plan, cycle)]


def initial_state(setup: Setup) -> State:
    """Fresh parameters from the seed; nothing sent yet."""
    params = jax.jit(setup.model.init)(jax.random.key(setup.config.seed))
    merge = setup.algorithm.init_merge(setup.config, params)
    return State(params, {}, merge, network.start(setup.model.layer_names), 0)


def state_like(setup: Setup, layers_with_state: Sequence[str]) -> tuple[Params, OptimizerStates, Any]:
    """The shapes of a state's arrays, `(params, states, merge)`, given which layers have optimizer states."""

    def make() -> tuple[Params, OptimizerStates, Any]:
        params = setup.model.init(jax.random.key(0))
        states = init_states(_rule(setup.config), params, setup.model.layer_names)
        return params, select(states, layers_with_state), setup.algorithm.init_merge(setup.config, params)

    return jax.eval_shape(make)


def make_executor(setup: Setup) -> Executor:
    """The node emulation of this setup; puts the data on the device."""
    config, dataset = setup.config, setup.dataset
    step = LocalStep(
        model=setup.model,
        rule=_rule(config),
        clip_norm=config.clip_norm,
        normalise=lambda images: data.normalise(images, dataset.mean, dataset.std),
        augment=None if config.augment == "none" else lambda key, x: data.augment(config.augment, key, x),
        distillation=Distillation(config.distill_temperature, config.distill_weight) if setup.distilled else None,
        compute_dtype=jnp.dtype(config.compute_dtype),
    )
    settings = VisitSettings(**{name: getattr(config, name) for name in VisitSettings._fields})
    return Executor(step, _examples(dataset.train), _examples(dataset.test), setup.shards, settings)


def _examples(split: data.Split) -> Examples:
    return Examples(jnp.asarray(split.images), jnp.asarray(split.labels))


def _rule(config: Config) -> optax.GradientTransformation:
    return update_rule(config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay)


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
    costs = accounting.layer_costs(setup.model, config.batch_size)
    sizes = _sizes(setup)
    for number in range(state.rounds, len(every)):
        visits = every[number]
        rate = schedule.learning_rate(config, visits[0].cycle)
        results = executor.run(visits, state.params, state.states, rate)
        good = [result for result in results if _is_good(result, config, state, keep)]
        state, transfers = _advance(setup, sizes, state, visits, good)
        due = (number + 1) % config.eval_every == 0 or number + 1 == len(every)
        scores = executor.evaluate(state.params) if due else (None, None)
        flops = sum(
            r.iterations * accounting.step_flops(costs, r.visit.layers, teacher=setup.distilled) for r in results
        )
        yield Report(_record(setup, visits, results, good, transfers, rate, flops, scores), transfers, state)


def _is_good(result: VisitResult, config: Config, state: State, keep: Callable[[State], None]) -> bool:
    """Whether a visit's result is usable; a diverged one ends the run unless it is to be skipped."""
    if result.finite or result.visit.event == "lost":
        return result.finite
    if config.on_divergence == "stop":
        keep(state)
        visit = result.visit
        raise Diverged(
            f"visit {visit.turn} (node {visit.node}, layers {', '.join(visit.layers)}) diverged: its loss is not "
            "finite; the state before it is kept. Go on with --on_divergence=skip, or lower --learning_rate or --clip_norm "
            "in another --workdir"
        )
    return False


def _advance(
    setup: Setup, sizes: Sizes, state: State, visits: Round, good: list[VisitResult]
) -> tuple[State, list[Transfer]]:
    """The state after a round: transfers made, results merged. A lost or diverged visit hands in nothing."""
    algorithm, config = setup.algorithm, setup.config
    accepted = [result for result in good if result.visit.event != "lost"]
    returned = {result.visit.node for result in accepted}
    params, merge = algorithm.merge(config, state.params, state.merge, accepted)
    states = state.states
    if config.carry_optimizer_state:
        for result in accepted:
            states = {**states, **result.states}
    net, transfers = state.network, []
    if algorithm.traffic != "none":
        exchange = network.visit_peer_to_peer if config.mode == "peer_to_peer" else network.visit_client_server
        for visit in visits:
            net, sent = exchange(
                net,
                sizes,
                visit.turn,
                visit.node,
                _items(visit.layers, config.carry_optimizer_state),
                cached=config.cached,
                returns=visit.node in returned,
            )
            transfers += sent
    if algorithm.traffic == "star":
        net = network.aggregated(net, setup.model.layer_names)
    return State(params, states, merge, net, state.rounds + 1), transfers


def _items(layers: tuple[str, ...], with_states: bool) -> tuple[str, ...]:
    return layers + tuple(network.optimizer_item(name) for name in layers) if with_states else layers


def _sizes(setup: Setup) -> Sizes:
    config = setup.config
    names = setup.model.layer_names if config.carry_optimizer_state else ()
    params, states, _ = state_like(setup, names)
    return accounting.transfer_sizes(params, config.frozen_dtype, states)


def _record(
    setup: Setup,
    visits: Round,
    results: list[VisitResult],
    good: list[VisitResult],
    transfers: list[Transfer],
    rate: float,
    flops: int,
    scores: tuple[float | None, float | None],
) -> dict[str, Any]:
    """A line of metrics.jsonl: what this round took and where the model stands after it."""
    first = visits[0]
    losses = [(r.loss, r.examples) for r in results if math.isfinite(r.loss)]
    examples = sum(n for _, n in losses)
    up, down = network.bytes_up_down(transfers)
    return {
        "visit": first.turn,
        "cycle": first.cycle,
        "node": first.node if setup.algorithm.traffic != "star" else [visit.node for visit in visits],
        "layers": list(first.layers),
        "iterations": sum(r.iterations for r in results),
        "examples": sum(r.examples for r in results),
        "bytes_up": up,
        "bytes_down": down,
        "train_flops": flops,
        "train_s": sum(r.train_s for r in results),
        "loss": sum(loss * n for loss, n in losses) / examples if examples else None,
        "accuracy": scores[0],
        "test_loss": scores[1] if scores[1] is None or math.isfinite(scores[1]) else None,
        "learning_rate": rate,
        "distilled": setup.distilled,
        "event": first.event if len(good) == len(results) else "skipped",
    }


def summarise(setup: Setup, executor: Executor, records: Sequence[dict[str, Any]], earlier: dict) -> dict[str, Any]:
    """The numbers of summary.json, from all records of the run.

    Args:
      setup: of the run.
      executor: for what was compiled.
      records: all lines of metrics.
      earlier: `compile_s` and `num_compilations` of processes before a resume.
    """
    config, compiled = setup.config, executor.compilations
    accuracies = [r["accuracy"] for r in records if r["accuracy"] is not None]
    totals = {k: sum(r[k] for r in records) for k in _SUMMED}
    params, _, _ = state_like(setup, ())
    return {
        "algorithm": config.algorithm,
        "model": config.model,
        "dataset": config.dataset,
        "partition": config.partition,
        "alpha": config.alpha,
        "seed": config.seed,
        "nodes": config.nodes,
        "cycles": config.cycles,
        "num_params": num_params(params),
        "final_accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        **totals,
        "target_accuracy": config.target_accuracy,
        **{f"{key}_to_target": value for key, value in _to_target(records, config.target_accuracy).items()},
        "peak_train_bytes": compiled.peak_bytes,
        "compile_s": compiled.seconds + earlier.get("compile_s", 0.0),
        "num_compilations": compiled.programs + earlier.get("num_compilations", 0),
        "divergence": setup.divergence,
        "divergence_measure": config.distill_measure,
        "distilled": setup.distilled,
        "device": f"{jax.devices()[0].platform}:{jax.devices()[0].device_kind}",
        "config": dataclasses.asdict(config),
    }


_SUMMED = ("iterations", "examples", "bytes_up", "bytes_down", "train_flops", "train_s")


def _to_target(records: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    """What it took until the accuracy was first at least `target`; None where it never was."""
    reached = next((i for i, r in enumerate(records) if (r["accuracy"] or 0.0) >= target), None)
    upto = () if reached is None else records[: reached + 1]
    return {key: sum(r[key] for r in upto) if upto else None for key in _SUMMED}
