"""The task of the papers' first study: networks for images.

From a configuration to a checked setup; what it reads is in `image_inputs`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.chain import ON_NODE, Role
from snake_jax.algorithms.schedule import Plan, epochs_of
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import ImageConfig, pick
from snake_jax.costs import memory, shapes
from snake_jax.costs.flops import chain_step_flops, step_flops
from snake_jax.costs.layers import auxiliary_costs, layer_costs
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.data.drawn import shard_sizes
from snake_jax.data.images import augmentation, sources
from snake_jax.data.images.dataset import Split, normalise
from snake_jax.engines.build import image_engine
from snake_jax.engines.contract import Engine, Scores
from snake_jax.engines.epochs import settings_of
from snake_jax.engines.local import LocalEngine
from snake_jax.models import layered, registry
from snake_jax.models.layered import Layer, LayeredModel, resolve_layers
from snake_jax.nodes.fleet import of_config
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import LayerNames, Params, num_params, select
from snake_jax.runs import assigned, records
from snake_jax.runs.image_inputs import Images, named_by_content, part_of, prepare_data
from snake_jax.runs.job import (
    Job,
    Reads,
    Task,
    Visitors,
    chosen_algorithm,
    distillation_of,
    make_rule,
    state_like,
)
from snake_jax.runs.privacy import privacy_of
from snake_jax.runs.setup import Setup, assembled
from snake_jax.training.image_step import Examples, LocalStep, local_gradients
from snake_jax.training.split import AUXILIARY, local_loss_gradients, split_gradients
from snake_jax.training.update import Gradients

ANY_MEAN = (0.5, 0.5, 0.5)
ANY_STD = (0.25, 0.25, 0.25)

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
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
    model = registry.build(
        config.model,
        data.dataset.num_classes,
        data.dataset.train.images.shape[1:],
        width=config.width,
        norm=config.norm,
        dropout=config.dropout,
        conv=config.conv,
        init=config.init,
    )
    job = make_job(config, algorithm, model)
    return make_setup(job, data)


def make_job(config: ImageConfig, algorithm: Algorithm, model: LayeredModel) -> ImageJob:
    """The job of training this network; it needs no data.

    Args:
      config: of the run.
      algorithm: its method.
      model: the network, by the configuration's name for it or one's own.

    Raises:
      UserError: cuts or layers that the model has not, or a wrong node file.
    """
    augmentation.check(config.augment, model.input_shape)
    always = resolve_layers("always_train", config.always_train, model.layer_names)
    plan = Plan(config, model.layer_names, always)
    # A node that has a loss of its own needs a head for it.
    auxiliary: tuple[Layer, ...] = ()
    if algorithm.local_losses:
        head = registry.linear_head(AUXILIARY, _num_outputs(model))
        auxiliary = (head,)
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


def _num_outputs(model: LayeredModel) -> int:
    """How many classes a network tells apart."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *model.input_shape), np.float32)
    outputs = jax.eval_shape(model.apply, params, x)
    return outputs.shape[-1]


def make_setup(job: ImageJob, data: Images) -> ImageSetup:
    """The job on this data.

    Raises:
      UserError: a node cannot hold what it is to train, or an interruption makes no sense.
    """
    config = named_by_content(job.config, data.dataset)
    plan = job.plan._replace(config=config)
    job = job._replace(config=config, plan=plan)
    steps = []
    for node, size in enumerate(shard_sizes(data.shards)):
        steps_per_epoch = math.ceil(size / _step_examples(config))
        steps.append(steps_per_epoch * epochs_of(config, node))
    return assembled(job, data, steps, data.counts, quality=data.of_nodes)


def _step_examples(config: ImageConfig) -> int:
    """Examples of a whole step: `accumulate` parts of `batch_size`."""
    return config.batch_size * config.accumulate


def _visitors(job: ImageJob, steps: Sequence[int]) -> Visitors:
    """See `assigned.visitors`."""
    if not assigned.is_asked(job):
        return assigned.alike(job, steps)
    step = make_step(job)
    costs = layer_costs(job.model, _step_examples(job.config))

    def cost(layers: LayerNames, node: int) -> assigned.VisitCost:
        del node  # networks for images have no adapters: all nodes are alike
        state = memory.state_bytes(
            step, layers, job.config.frozen_dtype, examples=job.config.batch_size
        )
        flops = step_flops(costs, layers, teacher=job.distilled, stochastic=job.model.stochastic)
        return assigned.VisitCost(state.total, flops)

    return assigned.visitors(job, steps, cost)


def init_params(job: ImageJob, key: jax.Array) -> Params:
    """Fresh parameters of the model and of auxiliary layers.

    Auxiliary layers sit on the output of the chain's first segment.
    """
    return _with_heads(job, key, job.model.init(key))


def _with_heads(job: ImageJob, key: jax.Array, params: Params) -> Params:
    """The model's parameters, and fresh ones of auxiliary layers."""
    if not job.auxiliary:
        return params
    x = jax.ShapeDtypeStruct((1, *job.model.input_shape), np.float32)
    first_segment = functools.partial(job.model.apply, start=0, stop=job.chain[0].stop)
    at_cut = jax.eval_shape(first_segment, params, x)
    heads = {}
    # Keys go on where those of the model's layers end.
    for number, layer in enumerate(job.auxiliary, start=len(job.model.layers)):
        heads[layer.name] = layer.init(jax.random.fold_in(key, number), at_cut)
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
        counts_hits=config.visit_accuracy > 0,
        compute_dtype=jnp.dtype(config.compute_dtype),
        client=job.algorithm.client(config),
        gradients=_gradients(job),
        parties=_parties(job),
        auxiliary=job.auxiliary,
        privacy=privacy_of(config),
    )


def _augmentation(config: ImageConfig) -> Augmentation | None:
    if config.augment == "none":
        return None
    return functools.partial(augmentation.augment, config.augment)


def _gradients(job: ImageJob) -> Callable[[LocalStep], Gradients]:
    """How the chain's parties come to their gradients."""
    if job.auxiliary:
        return local_loss_gradients(job.chain[0].stop, job.auxiliary[0])
    if len(job.chain) > 1:
        return split_gradients(chains.cuts(job.chain))
    return local_gradients


def _parties(job: ImageJob) -> tuple[tuple[str, ...], ...]:
    """The layers of each place that a chain's visit lies on; empty for one that is not cut.

    A place clips the gradients that it knows.
    """
    chain = job.chain
    if len(chain) == 1:
        return ()
    names = job.model.layer_names
    return tuple(chains.owned(chain, names, job.layer_names, role) for role in chains.roles(chain))


def sizes_of(job: ImageJob) -> Sizes:
    """Bytes of everything that may travel."""
    config = job.config
    names = job.layer_names if config.carry_optimizer_state else ()
    params, states, *_ = state_like(job, names)
    return transfer_sizes(params, config.frozen_dtype, states)


def step_work(job: ImageJob) -> Callable[[Outcome], Mapping[Role, int]]:
    """`outcome -> {role: FLOPs}`: the steps of a visit times the FLOPs of one of a full batch."""
    model = job.model
    examples = _step_examples(job.config)
    costs = layer_costs(model, examples)

    # A cut model trains all its layers in every visit, so one count serves all.
    by_role: Mapping[Role, int] = {}
    if len(job.chain) > 1:
        heads = auxiliary_costs(model, job.chain, job.auxiliary, examples)
        gradients = not job.algorithm.local_losses
        by_role = chain_step_flops(job.chain, costs, heads, gradients)

    def visit_flops(outcome: Outcome) -> Mapping[Role, int]:
        per_step = by_role
        if not per_step:
            layers = outcome.visit.layers
            flops = step_flops(costs, layers, teacher=job.distilled, stochastic=model.stochastic)
            per_step = {ON_NODE: flops}
        return {role: outcome.iterations * flops for role, flops in per_step.items()}

    return visit_flops


def make_engine(setup: ImageSetup) -> LocalEngine:
    """The node emulation of this setup; puts the data on the device."""
    config = setup.config
    dataset = setup.data.dataset
    settings = settings_of(config)
    step = make_step(setup.job, dataset.mean, dataset.std)
    train, test = _examples(dataset.train), _examples(dataset.test)
    shards, largest = setup.data.shards, setup.data.largest
    own = setup.data.own
    return image_engine(step, train, test, shards, settings, config.executor, largest, own)


def _examples(split: Split) -> Examples:
    return Examples(jnp.asarray(split.images), jnp.asarray(split.labels))


def _fresh(setup: ImageSetup) -> Params:
    key = streams.key(setup.config.seed, "key/weights")
    # Our own networks are drawn in pieces, of which one is compiled (`models.drawing`).
    if setup.config.model in registry.MODELS:
        return _with_heads(setup.job, key, layered.drawn(setup.job.model, key))
    # One of the user's is one program. It runs once, so the compiler is to take little time over
    # it; other compilers than that of CPUs do not know the option.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    make = jax.jit(functools.partial(init_params, setup.job), compiler_options=options)
    return make(key)


def _like(job: ImageJob) -> Params:
    heads = functools.partial(_with_heads, job)
    return jax.eval_shape(heads, jax.random.key(0), shapes.model_shapes(job.model))


def _record(outcomes: Sequence[Outcome], scores: Scores | None) -> records.Record:
    del outcomes
    return records.of_nodes(scores, "accuracy", lambda one: one.accuracy)


_SUMMARISED = ("algorithm", "model", "dataset", "partition", "alpha", "seed", "nodes", "cycles")


def _summary(
    setup: ImageSetup, engine: Engine | None, lines: Sequence[records.Record]
) -> records.Record:
    del engine
    config = setup.config
    settings = {name: getattr(config, name) for name in _SUMMARISED}
    # Auxiliary layers train, but are no part of the model that is left in the end.
    params = select(_like(setup.job), setup.model.layer_names)
    return {
        **settings,
        "num_params": num_params(params),
        **records.of_accuracy(lines, config.target_accuracy),
    }


def _reads(job: ImageJob) -> Reads:
    """No layer reads another's weights."""
    del job
    return {}


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
    reads=_reads,
)
