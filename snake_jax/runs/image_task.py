"""The task of the papers' first study: networks for images. From a configuration to a checked
setup.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.algorithms import assignment, schedule
from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.chain import ON_NODE
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import ImageConfig, pick
from snake_jax.costs import memory
from snake_jax.costs.flops import chain_step_flops, step_flops
from snake_jax.costs.layers import auxiliary_costs, layer_costs
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.data import partition
from snake_jax.data.divergence import label_divergence
from snake_jax.data.images import augmentation, sources, subsets
from snake_jax.data.images.dataset import Dataset, Split, normalise, take
from snake_jax.data.images.quality import clean
from snake_jax.engines.build import image_engine
from snake_jax.engines.contract import Engine, Scores
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.local import LocalEngine
from snake_jax.errors import UserError
from snake_jax.models import registry
from snake_jax.models.layered import Layer, LayeredModel, resolve_layers
from snake_jax.nodes.fleet import of_config
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import Params, num_params, select
from snake_jax.runs import records
from snake_jax.runs.job import (
    Job,
    Task,
    Visitors,
    chosen_algorithm,
    distillation_of,
    make_rule,
    state_like,
)
from snake_jax.runs.setup import Setup, assembled
from snake_jax.training.image_step import Examples, LocalStep, local_gradients
from snake_jax.training.split import AUXILIARY, local_loss_gradients, split_gradients
from snake_jax.training.update import Gradients

ANY_MEAN, ANY_STD = (0.5,) * 3, (0.25,) * 3
ARRAYS = "arrays"
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


class Images(NamedTuple):
    """The images of a run.

    Attributes:
      dataset: cleaned, with the statistics to normalise by.
      shards: each node's indices into the training examples, as the method trains on them.
      divergence: between the nodes' label distributions, by `config.distill_measure`.
      quality: what cleaning did, one line.
      largest: how many examples the largest of all nodes holds, where these are not all nodes'
        images; else 0.
    """

    dataset: Dataset
    shards: Sequence[np.ndarray]
    divergence: float
    quality: str
    largest: int = 0


ImageJob = Job[ImageConfig, Images, LayeredModel]
ImageSetup = Setup[ImageConfig, Images, LayeredModel]


def prepare(config: ImageConfig) -> ImageSetup:
    """Checks a configuration and loads its data; compiles nothing.

    Raises:
      UserError: flags, data or layers are wrong.
    """
    # What flags alone can get wrong is said before a data set is fetched.
    algorithm = chosen_algorithm(config)
    pick("augment", config.augment, augmentation.AUGMENTATIONS)
    registry.find(config.model)
    loaded = sources.load_dataset(config.dataset, test_share=config.test_share, seed=config.seed)
    data = prepare_data(config, algorithm, loaded)
    options = {name: getattr(config, name) for name in ("width", "norm", "dropout", "conv", "init")}
    shape = data.dataset.train.images.shape[1:]
    model = registry.build(config.model, data.dataset.num_classes, shape, **options)
    return make_setup(make_job(config, algorithm, model), data)


def prepare_data(config: ImageConfig, algorithm: Algorithm, loaded: Dataset) -> Images:
    """The data set cleaned, cut down, normalised and laid out over the nodes as the flags say.

    Raises:
      UserError: it cannot be.
    """
    note = loaded.note
    dataset, quality = clean(loaded, outliers=config.outliers, seed=config.seed)
    dataset = subsets.subsample(
        dataset,
        train_examples=config.train_examples,
        validation=config.validation,
        seed=config.seed,
    )
    dataset = _scaled(dataset, config.pixel_std)
    labels = dataset.train.labels
    shards = partition.split_over_nodes(
        config.partition, labels, config.nodes, config.alpha, config.seed
    )
    counts = partition.label_counts(shards, labels, dataset.num_classes)
    divergence = label_divergence(counts, config.distill_measure)
    done = f"{note}\n{quality}" if note else str(quality)
    return Images(dataset, algorithm.shards(shards), divergence, done)


def make_job(config: ImageConfig, algorithm: Algorithm, model: LayeredModel) -> ImageJob:
    """The job of training this network; it needs no data.

    Raises:
      UserError: cuts or layers that the model has not, or a wrong node file.
    """
    always = resolve_layers("always_train", config.always_train, model.layer_names)
    plan = Plan(config, model.layer_names, always)
    auxiliary: tuple[Layer, ...] = ()
    if algorithm.local_losses:
        auxiliary = (registry.linear_head(AUXILIARY, _num_outputs(model)),)
    return Job(
        config,
        algorithm,
        model,
        TASK,
        plan,
        algorithm.chain(plan),
        of_config(config),
        auxiliary,
        distilled=config.distill == "on" and "distill" in algorithm.flags,
    )


def make_setup(job: ImageJob, data: Images) -> ImageSetup:
    """The job on this data.

    Raises:
      UserError: a node cannot hold what it is to train, or an interruption makes no sense.
    """
    config, steps = _named(job.config, data.dataset), []
    job = job._replace(config=config, plan=job.plan._replace(config=config))
    for shard in data.shards:
        steps.append(math.ceil(len(shard) / _step_examples(config)) * config.local_epochs)
    return assembled(job, data, data.divergence, steps)


def _step_examples(config: ImageConfig) -> int:
    """Examples of a whole step: `accumulate` parts of `batch_size`."""
    return config.batch_size * config.accumulate


def _named(config: ImageConfig, dataset: Dataset) -> ImageConfig:
    """The configuration with arrays of one's own named by what they hold.

    So a run that goes on with other arrays is refused, as one with another data set is.
    """
    if config.dataset != ARRAYS:
        return config
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        for array in split:
            digest.update(np.ascontiguousarray(array).data)
    return dataclasses.replace(config, dataset=f"{ARRAYS}:{digest.hexdigest()[:16]}")


def _num_outputs(model: LayeredModel) -> int:
    """How many classes a network tells apart."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    return jax.eval_shape(model.apply, params, x).shape[-1]


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


def _visitors(job: ImageJob, steps: Sequence[int]) -> Visitors:
    """Which node takes which visit of a cycle, and which can; both empty where nobody asked.

    Raises:
      UserError: a node cannot hold what it is to train.
    """
    config = job.config
    asked = config.assign != "serpentine" or bool(config.node_file)
    if not asked or "assign" not in job.algorithm.flags:
        return {}, {}
    groups = schedule.serpentine(job.plan, 0)
    problem, hop_bytes = _assignment_problem(job, groups, steps)
    able = {}
    for index, layers in enumerate(groups):
        holds = np.flatnonzero(problem.bytes[index] <= problem.memory_bytes)
        able[layers] = tuple(holds.tolist())
    if config.assign == "serpentine":
        assignment.check(problem, assignment.serpentine(len(groups), config.nodes))
        return {}, able
    if config.assign == "proportional":
        nodes = assignment.proportional(problem)
    elif config.assign == "milp":
        nodes = assignment.milp(problem, config.assign_objective)
    else:
        nodes = assignment.greedy(problem, *assignment.make_hops(job.fleet, hop_bytes))
    return dict(zip(groups, nodes, strict=True)), able


def _assignment_problem(
    job: ImageJob, groups: Sequence[tuple[str, ...]], steps: Sequence[int]
) -> tuple[assignment.Problem, int]:
    """The costs of a cycle's visits at every node, and the bytes of a whole model.

    Transfers are those of nodes without any copy; memory is that of parameters, gradients,
    optimizer states, frozen layers and teacher, without activations.
    """
    config, sizes, step = job.config, sizes_of(job), make_step(job)
    costs = layer_costs(job.model, _step_examples(config))
    state_bytes, traffic, flops = [], [], []
    for layers in groups:
        state = memory.state_bytes(step, layers, config.frozen_dtype)
        state_bytes.append(state.total)
        up = sum(sizes.full[name] for name in layers)
        rest = sum(sizes.frozen[name] for name in job.layer_names if name not in layers)
        traffic.append((up + rest, up))
        flops.append(
            step_flops(costs, layers, teacher=job.distilled, stochastic=job.model.stochastic)
        )
    transfers = None if config.assign == "greedy" else traffic
    problem = assignment.make_problem(groups, flops, state_bytes, steps, job.fleet, transfers)
    return problem, sum(sizes.full[name] for name in job.layer_names)


def init_params(job: ImageJob, key: jax.Array) -> Params:
    """Fresh parameters of the model and of auxiliary layers, which sit on the output of the chain's
    first segment.
    """
    params = job.model.init(key)
    x = jax.ShapeDtypeStruct((1, *job.model.input_shape), np.float32)
    at_cut = jax.eval_shape(
        lambda params, x: job.model.apply(params, x, 0, job.chain[0].stop), params, x
    )
    first = len(job.model.layers)
    heads = {
        layer.name: layer.init(jax.random.fold_in(key, first + i), at_cut)
        for i, layer in enumerate(job.auxiliary)
    }
    return params | heads


def make_step(
    job: ImageJob, mean: tuple[float, ...] = ANY_MEAN, std: tuple[float, ...] = ANY_STD
) -> LocalStep:
    """The arithmetic of the job's visits.

    Args:
      job: of the run.
      mean: of each channel, to normalise by; which numbers does not change what a step costs.
      std: likewise.
    """
    config = job.config
    return LocalStep(
        model=job.model,
        rule=make_rule(config),
        clip_norm=config.clip_norm,
        normalise=functools.partial(normalise, mean=mean, std=std),
        augment=_augmentation(config),
        distillation=distillation_of(job),
        compute_dtype=jnp.dtype(config.compute_dtype),
        client=job.algorithm.client(config),
        gradients=_gradients(job),
        parties=_parties(job),
        auxiliary=job.auxiliary,
    )


def _augmentation(config: ImageConfig) -> Augmentation | None:
    if config.augment == "none":
        return None
    return functools.partial(augmentation.augment, config.augment)


def _gradients(job: ImageJob) -> Callable[[LocalStep], Gradients]:
    """How the chain's parties come to their gradients."""
    if job.auxiliary:
        return local_loss_gradients(job.chain[0].stop, job.auxiliary[0])
    return split_gradients(chains.cuts(job.chain)) if len(job.chain) > 1 else local_gradients


def _parties(job: ImageJob) -> tuple[tuple[str, ...], ...]:
    """The layers of each place that a chain's visit lies on; a place clips the gradients that it
    knows.
    """
    names, chain = job.model.layer_names, job.chain
    if len(chain) == 1:
        return ()
    beside = tuple(layer.name for layer in job.auxiliary)
    return tuple(
        chains.held(chain, names, role) + (beside if role == ON_NODE else ())
        for role in chains.roles(chain)
    )


def sizes_of(job: ImageJob) -> Sizes:
    """Bytes of everything that may travel."""
    config = job.config
    names = job.layer_names if config.carry_optimizer_state else ()
    params, states, *_ = state_like(job, names)
    return transfer_sizes(params, config.frozen_dtype, states)


def step_work(job: ImageJob) -> Callable[[Outcome], Mapping[int, int]]:
    """`visit -> {role: FLOPs}`: its steps times those of one, which are counted for full
    batches.
    """
    config, model = job.config, job.model
    costs = layer_costs(model, _step_examples(config))
    if len(job.chain) > 1:
        heads = auxiliary_costs(model, job.chain, job.auxiliary, _step_examples(config))
        divided = chain_step_flops(job.chain, costs, heads, not job.algorithm.local_losses)
        return lambda result: {role: result.iterations * flops for role, flops in divided.items()}
    step = functools.partial(step_flops, costs, teacher=job.distilled, stochastic=model.stochastic)
    return lambda result: {ON_NODE: result.iterations * step(result.visit.layers)}


def make_engine(setup: ImageSetup) -> LocalEngine:
    """The node emulation of this setup; puts the data on the device."""
    config, dataset = setup.config, setup.data.dataset
    settings = VisitSettings(
        config.local_epochs,
        config.batch_size,
        config.frozen_dtype,
        config.early_stop,
        config.seed,
        config.carry_optimizer_state,
        config.accumulate,
    )
    step = make_step(setup.job, dataset.mean, dataset.std)
    train, test = _examples(dataset.train), _examples(dataset.test)
    shards, largest = setup.data.shards, setup.data.largest
    return image_engine(step, train, test, shards, settings, config.executor, largest)


def part_of(data: Images, nodes: Sequence[int], held_out: bool) -> Images:
    """What these nodes hold of the data, and of all others what shapes everybody's batches.

    Args:
      data: of all nodes.
      nodes: whose images stay.
      held_out: whether the held-out images do.
    """
    shards, chosen, start = [], [np.zeros(0, np.int64)], 0
    for node, shard in enumerate(data.shards):
        count = len(shard) if node in nodes else 0
        shards.append(np.arange(start, start + count, dtype=shard.dtype))
        chosen.append(shard[:count])
        start += count
    dataset = data.dataset._replace(train=take(data.dataset.train, np.concatenate(chosen)))
    if not held_out:
        dataset = dataset._replace(test=take(dataset.test, np.zeros(0, np.int64)))
    return data._replace(dataset=dataset, shards=shards, largest=max(map(len, data.shards)))


def _examples(split: Split) -> Examples:
    return Examples(jnp.asarray(split.images), jnp.asarray(split.labels))


def _fresh(setup: ImageSetup) -> Params:
    key = streams.key(setup.config.seed, "key/weights")
    return jax.jit(functools.partial(init_params, setup.job))(key)


def _like(job: ImageJob) -> Params:
    return jax.eval_shape(functools.partial(init_params, job), jax.random.key(0))


def _record(outcomes: Sequence[Outcome], scores: Scores | None) -> records.Record:
    del outcomes, scores
    return {}


def _summary(
    setup: ImageSetup, engine: Engine | None, lines: Sequence[records.Record]
) -> records.Record:
    del engine
    config = setup.config
    named = ("algorithm", "model", "dataset", "partition", "alpha", "seed", "nodes", "cycles")
    return {
        **{name: getattr(config, name) for name in named},
        "num_params": num_params(select(_like(setup.job), setup.model.layer_names)),
        **records.of_accuracy(lines, config.target_accuracy),
    }


TASK: Task[ImageConfig, Images, LayeredModel] = Task(
    like=_like,
    sizes=sizes_of,
    work=step_work,
    visitors=_visitors,
    setup=make_setup,
    params=_fresh,
    engine=make_engine,
    part=part_of,
    record=_record,
    summary=_summary,
)
