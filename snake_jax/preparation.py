"""From a configuration to a checked setup: everything that wrong input can break, and nothing compiled."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snake_jax import accounting, assignment, data, models, nodes, schedule
from snake_jax import chain as chains
from snake_jax.algorithms import ALGORITHMS, Algorithm
from snake_jax.chain import ON_NODE, Chain
from snake_jax.config import Config, pick
from snake_jax.errors import UserError
from snake_jax.layers import Layer, LayeredModel, Params, num_bytes, resolve_layers, select
from snake_jax.network import Sizes
from snake_jax.nodes import Fleet
from snake_jax.optimizers import OptimizerStates, init_states, update_rule
from snake_jax.schedule import Plan, Round
from snake_jax.split import AUXILIARY, local_loss_gradients, split_gradients
from snake_jax.steps import Distillation, Gradients, LocalStep, local_gradients


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
      fleet: what nodes and server can do, for assignments and for the clock.
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
    fleet: Fleet

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's order and the auxiliary layers after it."""
        return self.model.layer_names + tuple(layer.name for layer in self.auxiliary)


def prepare(config: Config) -> Setup:
    """Checks a configuration and loads its data; compiles nothing.

    Raises:
      UserError: flags, data or layers are wrong.
    """
    algorithm = ALGORITHMS[pick("algorithm", config.algorithm, ALGORITHMS)]
    pick("model", config.model, models.MODELS)
    pick("augment", config.augment, data.AUGMENTATIONS)
    _check_fit(config, algorithm)
    dataset, quality = data.clean(data.load(config.dataset), outliers=config.outliers, seed=config.seed)
    part = {name: getattr(config, name) for name in ("train_examples", "validation", "seed")}
    dataset = _scaled(data.subset(dataset, **part), config.pixel_std)
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
    fleet = nodes.of_config(config)
    setup = Setup(
        config,
        algorithm,
        dataset,
        str(quality),
        shards_used,
        divergence,
        distilled,
        model,
        plan,
        chain,
        auxiliary,
        fleet,
    )
    setup = setup._replace(plan=plan._replace(visitors=_visitors(setup)))
    _check_interruptions(setup)
    return setup


def _scaled(dataset: data.Dataset, text: str) -> data.Dataset:
    """The data set with other deviations to divide by, where the flag gives some."""
    if not text:
        return dataset
    channels, example = len(dataset.std), ",".join(f"{value:.4f}" for value in dataset.std)
    try:
        std = tuple(float(word) for word in text.split(","))
    except ValueError:
        std = ()
    if len(std) != channels or not all(0 < value <= 1 for value in std):
        raise UserError(f"--pixel_std={text}: want {channels} numbers in (0, 1], a channel each; the data's: {example}")
    return dataset._replace(std=std)


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
    if config.assign != "serpentine":
        raise UserError(f"--parallel={config.parallel}: nodes side by side take turns; leave --assign=serpentine")
    if config.carry_optimizer_state:
        raise UserError(f"--parallel={config.parallel}: side by side there is no one state to carry on")


def _check_interruptions(setup: Setup) -> None:
    last = rounds(setup)[-1][-1].turn
    if late := [turn for turn in schedule.interruptions(setup.config) if turn > last]:
        raise UserError(f"--interrupt={setup.config.interrupt}: there is no visit {late[0]}; the last is {last}")


def _visitors(setup: Setup) -> dict[tuple[str, ...], int]:
    """`{layers: node}` of a cycle's visits; empty where the nodes take turns.

    Raises:
      UserError: a node cannot hold what it is to train.
    """
    config = setup.config
    if setup.algorithm.name != "snake" or (config.assign == "serpentine" and not config.node_file):
        return {}
    groups = schedule.serpentine(setup.plan, 0)
    problem, hop_bytes = _assignment_problem(setup, groups)
    if config.assign == "serpentine":
        assignment.check(problem, assignment.serpentine(len(groups), config.nodes))
        return {}
    chosen = {
        "proportional": lambda: assignment.proportional(problem),
        "milp": lambda: assignment.milp(problem, config.assign_objective),
        "greedy": lambda: assignment.greedy(problem, *assignment.make_hops(setup.fleet, hop_bytes)),
    }[config.assign]()
    return dict(zip(groups, chosen, strict=True))


def _assignment_problem(setup: Setup, groups: Sequence[tuple[str, ...]]) -> tuple[assignment.Problem, int]:
    """The costs of a cycle's visits at every node, and the bytes of a whole model. Transfers as for nodes without any
    copy; memory as that of parameters, gradients, optimizer states, frozen layers and teacher, without activations.
    """
    config, sizes, step = setup.config, sizes_of(setup), make_step(setup)
    every = setup.layer_names
    state_bytes, traffic = [], []
    for layers in groups:
        trainable, states, frozen, received = accounting.node_state(step, layers, config.frozen_dtype)
        state_bytes.append(2 * num_bytes(trainable) + num_bytes((states, frozen, received)))
        up = sum(sizes.full[n] for n in layers)
        traffic.append((up + sum(sizes.frozen[n] for n in every if n not in layers), up))
    problem = assignment.make_problem(
        accounting.layer_costs(setup.model, config.batch_size),
        groups,
        state_bytes,
        [-(-len(shard) // config.batch_size) * config.local_epochs for shard in setup.shards],
        setup.fleet,
        None if config.assign == "greedy" else traffic,
        teacher=setup.distilled,
        stochastic=setup.model.stochastic,
    )
    return problem, sum(sizes.full[n] for n in every)


def rounds(setup: Setup) -> list[Round]:
    """All rounds of the run, in order."""
    return [r for cycle in range(setup.config.cycles) for r in setup.algorithm.rounds(setup.plan, cycle)]


def init_params(setup: Setup, key: jax.Array) -> Params:
    """Fresh parameters of the model and of auxiliary layers, which sit on the output of the chain's first segment."""
    params = setup.model.init(key)
    x = jax.ShapeDtypeStruct((1, *setup.model.input_shape), np.float32)
    at_cut = jax.eval_shape(lambda params, x: setup.model.apply(params, x, 0, setup.chain[0].stop), params, x)
    first = len(setup.model.layers)
    heads = {
        layer.name: layer.init(jax.random.fold_in(key, first + i), at_cut) for i, layer in enumerate(setup.auxiliary)
    }
    return params | heads


def make_step(setup: Setup) -> LocalStep:
    """The arithmetic of the setup's visits."""
    config, dataset = setup.config, setup.dataset
    return LocalStep(
        model=setup.model,
        rule=make_rule(config),
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


def make_rule(config: Config) -> optax.GradientTransformation:
    """The update rule of the configuration."""
    return update_rule(config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay)


def sizes_of(setup: Setup) -> Sizes:
    """Bytes of everything that may travel."""
    config = setup.config
    names = setup.layer_names if config.carry_optimizer_state else ()
    params, states, _ = state_like(setup, names)
    return accounting.transfer_sizes(params, config.frozen_dtype, states)


def state_like(setup: Setup, layers_with_state: Sequence[str]) -> tuple[Params, OptimizerStates, Any]:
    """The shapes of a state's arrays, `(params, states, merge)`, given which layers have optimizer states."""

    def make() -> tuple[Params, OptimizerStates, Any]:
        params = init_params(setup, jax.random.key(0))
        states = init_states(make_rule(setup.config), params, setup.layer_names)
        return params, select(states, layers_with_state), setup.algorithm.init_merge(setup.config, params)

    return jax.eval_shape(make)
