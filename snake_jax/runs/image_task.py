"""The task of the papers' first study: networks for images. From a configuration to a checked
setup.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.algorithms import assignment, schedule
from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_NODE
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import ImageConfig, pick
from snake_jax.costs import accounting
from snake_jax.data import partition
from snake_jax.data.divergence import label_divergence
from snake_jax.data.images import augmentation, dataset, sources, subsets
from snake_jax.data.images.dataset import Dataset, normalise
from snake_jax.data.images.quality import clean
from snake_jax.engines.build import image_engine
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.local import LocalEngine
from snake_jax.errors import UserError
from snake_jax.models import registry
from snake_jax.models.layered import resolve_layers
from snake_jax.nodes.fleet import of_config
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import Params, num_bytes, num_params, select
from snake_jax.runs import records
from snake_jax.runs.setup import Setup, Task, check_fit, check_interruptions, make_rule, state_like
from snake_jax.train.image_step import Distillation, Examples, LocalStep, local_gradients
from snake_jax.train.split import AUXILIARY, local_loss_gradients, split_gradients
from snake_jax.train.update import Gradients, proximal


def prepare(config: ImageConfig) -> Setup:
    """Checks a configuration and loads its data; compiles nothing.

    Raises:
      UserError: flags, data or layers are wrong.
    """
    algorithm = ALGORITHMS[pick("algorithm", config.algorithm, ALGORITHMS)]
    pick("model", config.model, registry.MODELS)
    pick("augment", config.augment, augmentation.AUGMENTATIONS)
    check_fit(config, algorithm)
    dataset, quality = clean(
        sources.load(config.dataset), outliers=config.outliers, seed=config.seed
    )
    part = {name: getattr(config, name) for name in ("train_examples", "validation", "seed")}
    dataset = _scaled(subsets.subset(dataset, **part), config.pixel_std)
    shards = partition.partition(
        config.partition, dataset.train.labels, config.nodes, config.alpha, config.seed
    )
    counts = partition.label_counts(shards, dataset.train.labels, dataset.num_classes)
    divergence = label_divergence(counts, config.distill_measure)
    wanted = config.distill == "on" or (
        config.distill == "auto" and divergence > config.distill_threshold
    )
    options = {name: getattr(config, name) for name in ("width", "norm", "dropout", "conv", "init")}
    model = registry.build(
        config.model, dataset.num_classes, dataset.train.images.shape[1:], **options
    )
    always = resolve_layers("always_train", config.always_train, model.layer_names)
    plan = Plan(config, model.layer_names, always)
    distilled = wanted and "distill" in algorithm.flags
    shards_used = algorithm.shards(shards)
    chain = algorithm.chain(plan)
    auxiliary = (
        (registry.linear_head(AUXILIARY, dataset.num_classes),) if algorithm.local_losses else ()
    )
    fleet = of_config(config)
    setup = Setup(
        TASK,
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
    check_interruptions(setup)
    return setup


def _scaled(dataset: Dataset, text: str) -> Dataset:
    """The data set with other deviations to divide by, where the flag gives some."""
    if not text:
        return dataset
    channels, example = len(dataset.std), ",".join(f"{value:.4f}" for value in dataset.std)
    try:
        std = tuple(float(word) for word in text.split(","))
    except ValueError:
        std = ()
    if len(std) != channels or not all(0 < value <= 1 for value in std):
        raise UserError(
            f"--pixel_std={text}: want {channels} numbers in (0, 1], a channel each; the data's: "
            f"{example}"
        )
    return dataset._replace(std=std)


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


def _assignment_problem(
    setup: Setup, groups: Sequence[tuple[str, ...]]
) -> tuple[assignment.Problem, int]:
    """The costs of a cycle's visits at every node, and the bytes of a whole model. Transfers as for
    nodes without any copy; memory as that of parameters, gradients, optimizer states, frozen layers
    and teacher, without activations.
    """
    config, sizes, step = setup.config, sizes_of(setup), make_step(setup)
    every = setup.layer_names
    state_bytes, traffic = [], []
    for layers in groups:
        trainable, states, frozen, received = accounting.node_state(
            step, layers, config.frozen_dtype
        )
        state_bytes.append(2 * num_bytes(trainable) + num_bytes((states, frozen, received)))
        up = sum(sizes.full[n] for n in layers)
        traffic.append((up + sum(sizes.frozen[n] for n in every if n not in layers), up))
    costs = accounting.layer_costs(setup.model, config.batch_size)
    draws = {"teacher": setup.distilled, "stochastic": setup.model.stochastic}
    problem = assignment.make_problem(
        groups,
        [accounting.step_flops(costs, layers, **draws) for layers in groups],
        state_bytes,
        [-(-len(shard) // config.batch_size) * config.local_epochs for shard in setup.shards],
        setup.fleet,
        None if config.assign == "greedy" else traffic,
    )
    return problem, sum(sizes.full[n] for n in every)


def init_params(setup: Setup, key: jax.Array) -> Params:
    """Fresh parameters of the model and of auxiliary layers, which sit on the output of the chain's
    first segment.
    """
    params = setup.model.init(key)
    x = jax.ShapeDtypeStruct((1, *setup.model.input_shape), np.float32)
    at_cut = jax.eval_shape(
        lambda params, x: setup.model.apply(params, x, 0, setup.chain[0].stop), params, x
    )
    first = len(setup.model.layers)
    heads = {
        layer.name: layer.init(jax.random.fold_in(key, first + i), at_cut)
        for i, layer in enumerate(setup.auxiliary)
    }
    return params | heads


def make_step(setup: Setup) -> LocalStep:
    """The arithmetic of the setup's visits."""
    config, dataset = setup.config, setup.dataset
    return LocalStep(
        model=setup.model,
        rule=make_rule(config),
        clip_norm=config.clip_norm,
        normalise=lambda images: normalise(images, dataset.mean, dataset.std),
        augment=None
        if config.augment == "none"
        else lambda key, x: augmentation.augment(config.augment, key, x),
        distillation=Distillation(config.distill_temperature, config.distill_weight)
        if setup.distilled
        else None,
        compute_dtype=jnp.dtype(config.compute_dtype),
        client=proximal(config.proximal),
        gradients=_gradients(setup),
        parties=_parties(setup),
        auxiliary=setup.auxiliary,
    )


def _gradients(setup: Setup) -> Callable[[LocalStep], Gradients]:
    """How the chain's parties come to their gradients."""
    if setup.auxiliary:
        return local_loss_gradients(setup.chain[0].stop, setup.auxiliary[0])
    return split_gradients(chains.cuts(setup.chain)) if len(setup.chain) > 1 else local_gradients


def _parties(setup: Setup) -> tuple[tuple[str, ...], ...]:
    """The layers of each place that a chain's visit lies on; a place clips the gradients that it
    knows.
    """
    names, chain = setup.model.layer_names, setup.chain
    if len(chain) == 1:
        return ()
    beside = tuple(layer.name for layer in setup.auxiliary)
    return tuple(
        chains.held(chain, names, role) + (beside if role == ON_NODE else ())
        for role in chains.roles(chain)
    )


def sizes_of(setup: Setup) -> Sizes:
    """Bytes of everything that may travel."""
    config = setup.config
    names = setup.layer_names if config.carry_optimizer_state else ()
    params, states, _ = state_like(setup, names)
    return accounting.transfer_sizes(params, config.frozen_dtype, states)


def step_work(setup: Setup) -> Callable[[Outcome], Mapping[int, int]]:
    """`visit -> {role: FLOPs}`: its steps times those of one, which are counted for full
    batches.
    """
    config, model = setup.config, setup.model
    costs = accounting.layer_costs(model, config.batch_size)
    if len(setup.chain) > 1:
        lower = model._replace(layers=model.layers[: setup.chain[0].stop] + setup.auxiliary)
        heads = accounting.layer_costs(lower, config.batch_size)[setup.chain[0].stop :]
        divided = accounting.chain_step_flops(
            setup.chain, costs, heads, not setup.algorithm.local_losses
        )
        return lambda result: {role: result.iterations * flops for role, flops in divided.items()}
    step = functools.partial(
        accounting.step_flops, costs, teacher=setup.distilled, stochastic=model.stochastic
    )
    return lambda result: {ON_NODE: result.iterations * step(result.visit.layers)}


def make_executor(setup: Setup) -> LocalEngine:
    """The node emulation of this setup; puts the data on the device."""
    config, dataset = setup.config, setup.dataset
    settings = VisitSettings(
        config.local_epochs,
        config.batch_size,
        config.frozen_dtype,
        config.early_stop,
        config.seed,
        config.carry_optimizer_state,
    )
    train, test = _examples(dataset.train), _examples(dataset.test)
    return image_engine(make_step(setup), train, test, setup.shards, settings, config.executor)


def _examples(split: dataset.Split) -> Examples:
    return Examples(jnp.asarray(split.images), jnp.asarray(split.labels))


def _fresh(setup: Setup) -> Params:
    return jax.jit(functools.partial(init_params, setup))(
        streams.key(setup.config.seed, "key/weights")
    )


def _like(setup: Setup) -> Params:
    return jax.eval_shape(lambda: init_params(setup, jax.random.key(0)))


def _summary(
    setup: Setup, executor: LocalEngine | None, lines: Sequence[records.Record]
) -> records.Record:
    del executor
    config = setup.config
    named = ("algorithm", "model", "dataset", "partition", "alpha", "seed", "nodes", "cycles")
    return {
        **{name: getattr(config, name) for name in named},
        "num_params": num_params(select(_like(setup), setup.model.layer_names)),
        **records.of_accuracy(lines, config.target_accuracy),
    }


TASK = Task(
    params=_fresh,
    like=_like,
    executor=make_executor,
    work=step_work,
    sizes=sizes_of,
    record=lambda results, scores: {},
    summary=_summary,
)
