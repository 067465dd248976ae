"""Runs an algorithm from a configuration: visits, transfers, merges, evaluation, metrics, checkpoints, resume.

`prepare` does everything that can fail on wrong input, before anything is compiled; `train` does the rest.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snake_jax import accounting, data, models, network, records, schedule
from snake_jax import chain as chains
from snake_jax.algorithms import ALGORITHMS, Algorithm
from snake_jax.chain import ON_NODE, Chain
from snake_jax.config import Config, pick
from snake_jax.errors import UserError
from snake_jax.executor import Compilations, Executor, VisitResult, VisitSettings
from snake_jax.layers import Layer, LayeredModel, Params, num_params, resolve_layers, select
from snake_jax.network import Network, Sizes, Transfer
from snake_jax.optimizers import OptimizerStates, init_states, update_rule
from snake_jax.schedule import Plan, Round, Visit
from snake_jax.split import AUXILIARY, local_loss_gradients, split_gradients
from snake_jax.steps import Distillation, Examples, Gradients, LocalStep, local_gradients


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
      chain: where the layers of a visit lie.
      auxiliary: layers that train beside the model's.
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
    chain: Chain
    auxiliary: tuple[Layer, ...]

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order and the auxiliary layers after it."""
        return self.model.layer_names + tuple(layer.name for layer in self.auxiliary)


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
    options = {name: getattr(config, name) for name in ("width", "norm", "dropout", "conv", "init")}
    model = models.build(config.model, dataset.num_classes, dataset.train.images.shape[1:], **options)
    always = resolve_layers("always_train", config.always_train, model.layer_names)
    plan = Plan(config, model.layer_names, always)
    distilled = wanted and "distill" in algorithm.flags
    shards_used = algorithm.shards(shards)
    chain = algorithm.chain(plan)
    auxiliary = (models.linear_head(AUXILIARY, dataset.num_classes),) if algorithm.local_losses else ()
    setup = Setup(
        config, algorithm, dataset, str(quality), shards_used, divergence, distilled, model, plan, chain, auxiliary
    )
    _check_interruptions(setup)
    return setup


def _check_fit(config: Config, algorithm: Algorithm) -> None:
    """Flags that the algorithm has no use for are refused rather than ignored."""
    special = {flag for other in ALGORITHMS.values() for flag in other.flags}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in special - algorithm.flags and value not in (field.default, "off"):
            users = ", ".join(other.name for other in ALGORITHMS.values() if field.name in other.flags)
            raise UserError(f"--{field.name}={value}: {algorithm.name} has no use for it; it is for {users}")
    for flag in ("nodes_per_round", "parallel"):
        if (value := getattr(config, flag)) > config.nodes:
            raise UserError(f"--{flag}={value} is more than --nodes={config.nodes}")
    if config.parallel > 1:
        _check_parallel(config)
    schedule.interruptions(config)


def _check_parallel(config: Config) -> None:
    if config.mode == "peer_to_peer":
        raise UserError(f"--parallel={config.parallel}: the server averages the nodes; leave --mode=client_server")
    if config.interrupt or config.fault_rate:
        raise UserError(f"--parallel={config.parallel}: an idle node can take over for one node; leave --interrupt out")
    if config.carry_optimizer_state:
        raise UserError(f"--parallel={config.parallel}: side by side there is no one state to carry on")


def _check_interruptions(setup: Setup) -> None:
    last = rounds(setup)[-1][-1].turn
    if late := [turn for turn in schedule.interruptions(setup.config) if turn > last]:
        raise UserError(f"--interrupt={setup.config.interrupt}: there is no visit {late[0]}; the last is {last}")


def rounds(setup: Setup) -> list[Round]:
    """All rounds of the run, in order."""
    return [r for cycle in range(setup.config.cycles) for r in setup.algorithm.rounds(setup.plan, cycle)]


def initial_state(setup: Setup) -> State:
    """Fresh parameters from the seed; nothing sent yet."""
    params = jax.jit(functools.partial(_init_params, setup))(jax.random.key(setup.config.seed))
    merge = setup.algorithm.init_merge(setup.config, params)
    return State(params, {}, merge, network.start(setup.layer_names), 0)


def _init_params(setup: Setup, key: jax.Array) -> Params:
    """Of the model and of the auxiliary layers, which sit on the output of the chain's first segment."""
    params = setup.model.init(key)
    x = jax.ShapeDtypeStruct((1, *setup.model.input_shape), np.float32)
    at_cut = jax.eval_shape(lambda params, x: setup.model.apply(params, x, 0, setup.chain[0].stop), params, x)
    first = len(setup.model.layers)
    heads = {
        layer.name: layer.init(jax.random.fold_in(key, first + i), at_cut) for i, layer in enumerate(setup.auxiliary)
    }
    return params | heads


def state_like(setup: Setup, layers_with_state: Sequence[str]) -> tuple[Params, OptimizerStates, Any]:
    """The shapes of a state's arrays, `(params, states, merge)`, given which layers have optimizer states."""

    def make() -> tuple[Params, OptimizerStates, Any]:
        params = _init_params(setup, jax.random.key(0))
        states = init_states(_rule(setup.config), params, setup.layer_names)
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
        proximal=config.proximal,
        gradients=_gradients(setup),
        parties=_parties(setup),
        auxiliary=setup.auxiliary,
    )
    settings = VisitSettings(**{name: getattr(config, name) for name in VisitSettings._fields})
    return Executor(step, _examples(dataset.train), _examples(dataset.test), setup.shards, settings, config.executor)


def _gradients(setup: Setup) -> Gradients:
    """How the chain's parties come to their gradients."""
    if setup.auxiliary:
        return local_loss_gradients(setup.chain[0].stop, setup.auxiliary[0])
    return split_gradients(chains.cuts(setup.chain)) if len(setup.chain) > 1 else local_gradients


def _parties(setup: Setup) -> tuple[tuple[str, ...], ...]:
    """The layers of each place that a chain's visit lies on; a place clips the gradients that it knows."""
    names, chain = setup.model.layer_names, setup.chain
    if len(chain) == 1:
        return ()
    beside = tuple(layer.name for layer in setup.auxiliary)
    return tuple(chains.held(chain, names, role) + (beside if role == ON_NODE else ()) for role in chains.roles(chain))


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
    work, sizes = _step_work(setup), _sizes(setup)
    executor.compile(every, state.params, done=state.rounds)
    for number in range(state.rounds, len(every)):
        visits = every[number]
        rate = schedule.learning_rate(config, visits[0].cycle)
        results = executor.run(visits, state.params, state.states, rate)
        good = [result for result in results if _is_good(result, config, state, keep)]
        state, transfers = _advance(setup, sizes, state, visits, results, good)
        due = (number + 1) % config.eval_every == 0 or number + 1 == len(every)
        scores = executor.evaluate(state.params) if due else (None, None)
        flops = [{role: r.iterations * n for role, n in work(r.visit.layers).items()} for r in results]
        record = records.of_round(visits, results, transfers, scores, rate, flops, _synchronisations(setup, results))
        record |= {"distilled": setup.distilled, "event": visits[0].event if len(good) == len(results) else "skipped"}
        yield Report(record, transfers, state)


def _step_work(setup: Setup) -> Callable[[tuple[str, ...]], Mapping[int, int]]:
    """`layers -> {role: FLOPs of a step that trains them}`."""
    config, model = setup.config, setup.model
    costs = accounting.layer_costs(model, config.batch_size)
    if len(setup.chain) > 1:
        lower = model._replace(layers=model.layers[: setup.chain[0].stop] + setup.auxiliary)
        heads = accounting.layer_costs(lower, config.batch_size)[setup.chain[0].stop :]
        divided = chains.step_flops(setup.chain, costs, heads, not setup.algorithm.local_losses)
        return lambda layers: divided
    flops = functools.partial(accounting.step_flops, costs, teacher=setup.distilled, stochastic=model.stochastic)
    return lambda layers: {ON_NODE: flops(layers)}


def _synchronisations(setup: Setup, results: Sequence[VisitResult]) -> int:
    """How often a party waited for another: for gradients over a cut, and for the slowest node of a round."""
    trips = chains.round_trips(_messages(setup))
    return trips * sum(r.iterations for r in results) + (_merges(setup, [r.visit for r in results]))


def _merges(setup: Setup, visits: Sequence[Visit]) -> bool:
    """Whether the server waits for all nodes of the round and merges what they hand in."""
    return setup.algorithm.traffic == "star" or len(visits) > 1


def _messages(setup: Setup) -> tuple[chains.Message, ...]:
    gradients = not setup.algorithm.local_losses
    return chains.messages(setup.chain, setup.model, setup.config.compute_dtype, gradients)


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
    net, transfers = state.network, []
    if algorithm.traffic != "none":
        net, transfers = _exchange(setup, sizes, net, visits, {result.visit for result in accepted})
        sent = _messages(setup)
        transfers += [t for r in results for t in chains.transfers(sent, r.visit, r.examples)]
    return State(params, states, merge, net, state.rounds + 1), transfers


def _exchange(
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
        return network.visit_chain(net, sizes, visit.turn, segments, cached=config.cached) if returned else (net, [])
    merges = _merges(setup, visits)
    deliver = network.visit_peer_to_peer if config.mode == "peer_to_peer" else network.visit_client_server
    for visit in visits:
        trained = _items(tuple(n for n in visit.layers if n in held), config.carry_optimizer_state)
        back = visit in returned and not merges
        net, sent = deliver(net, sizes, visit.turn, visit.node, trained, cached=config.cached, returns=back, held=held)
        transfers += sent
    if merges:
        for visit in visits:
            if visit in returned:
                trained = tuple(n for n in visit.layers if n in held)
                transfers.append(network.hand_in(sizes, visit.turn, visit.node, trained))
        net = network.aggregated(net, visits[0].layers) if returned else net
    elif returned:
        net = network.aggregated(net, tuple(n for n in visits[0].layers if n not in held))
    return net, transfers


def _held_by_node(setup: Setup) -> tuple[str, ...]:
    """The layers that a visiting node has, frozen ones included."""
    beside = tuple(layer.name for layer in setup.auxiliary)
    return chains.held(setup.chain, setup.model.layer_names, ON_NODE) + beside


def _items(layers: tuple[str, ...], with_states: bool) -> tuple[str, ...]:
    return layers + tuple(network.optimizer_item(name) for name in layers) if with_states else layers


def _sizes(setup: Setup) -> Sizes:
    config = setup.config
    names = setup.layer_names if config.carry_optimizer_state else ()
    params, states, _ = state_like(setup, names)
    return accounting.transfer_sizes(params, config.frozen_dtype, states)


def summarise(setup: Setup, compiled: Compilations, lines: Sequence[records.Record]) -> records.Record:
    """The content of summary.json.

    Args:
      setup: of the run.
      compiled: in all processes of the run.
      lines: all lines of metrics.
    """
    config, (params, _, _) = setup.config, state_like(setup, ())
    named = ("algorithm", "model", "dataset", "partition", "alpha", "seed", "nodes", "cycles")
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
