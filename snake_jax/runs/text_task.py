"""The task of the papers' second study: fine-tuning language models, block by block or by adapters.

From a configuration to a checked setup, nothing compiled. (snake_learning_magazine, "Fine-Tuning of
LLMs".)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax

from snake_jax import processes, streams
from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.base import Algorithm
from snake_jax.algorithms.chain import Role
from snake_jax.algorithms.schedule import Plan, epochs_of
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import TextConfig
from snake_jax.costs import memory, shapes
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.data.text import chat_template, tokenizers
from snake_jax.engines.build import text_engine
from snake_jax.engines.contract import Engine, Scores
from snake_jax.engines.epochs import settings_of
from snake_jax.engines.local import LocalEngine
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import resolve_layers
from snake_jax.nodes import columns
from snake_jax.nodes.fleet import of_config
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import Params, num_bytes, num_params, select, without
from snake_jax.runs import assigned, records, text_work
from snake_jax.runs.job import (
    Job,
    Reads,
    Task,
    Visitors,
    chosen_algorithm,
    compute_dtype,
    distillation_of,
    exchange_of,
    make_rule,
    outline,
    state_like,
)
from snake_jax.runs.privacy import privacy_of
from snake_jax.runs.setup import Setup, assembled
from snake_jax.runs.text_checks import check_cut, check_model, with_rank
from snake_jax.runs.text_inputs import (
    RunText,
    load_model,
    part_of,
    prepare_data,
    ranks_of,
    template_date,
    tokenizer_beside,
)
from snake_jax.training import sharding
from snake_jax.training.split import cut_gradients
from snake_jax.training.text_cut import text_cuttable
from snake_jax.training.text_step import (
    ADAPTERS,
    ENDS,
    LanguageStep,
    own_items,
    text_gradients,
)
from snake_jax.training.update import Gradients

TextJob = Job[TextConfig, RunText, LanguageModel]
TextSetup = Setup[TextConfig, RunText, LanguageModel]


def prepare(config: TextConfig) -> TextSetup:
    """Checks a configuration, reads model description and data; compiles nothing.

    No weights are read.

    Raises:
      UserError: flags, data, model or layers are wrong.
    """
    # What flags and the model's description can get wrong is said before text is read.
    algorithm = chosen_algorithm(config)
    # All processes of a run write one day, also those that begin after midnight.
    day = processes.text_from_first(chat_template.day_of(config.template_date).isoformat())
    folder = config.tokenizer or tokenizer_beside(config.model)
    tokenizer = tokenizers.load_tokenizer(folder, day)
    config = dataclasses.replace(config, template_date=template_date(config, tokenizer, day))
    model, weights = load_model(config, tokenizer)
    tokenizers.check_fits(tokenizer, model.vocab_size)
    check_model(config, model)
    job = make_job(config, algorithm, model)
    # A rank above a layer's width is said here.
    _like(job)

    data = prepare_data(job.config, algorithm, tokenizer, weights)
    return make_setup(job, data)


def make_setup(job: TextJob, data: RunText) -> TextSetup:
    """The job on this text.

    Raises:
      UserError: a node cannot hold what it is to train, or an interruption makes no sense.
    """
    rows = job.config.batch_size * job.config.accumulate
    steps = []
    for node, shard in enumerate(data.shards):
        # A batch has rows of one length.
        of_epoch = sum(math.ceil(len(held) / rows) for held in shard.values())
        steps.append(of_epoch * epochs_of(job.config, node))
    return assembled(job, data, steps, data.rows.counts, data.ranks, data.rows.of_nodes)


def make_job(config: TextConfig, algorithm: Algorithm, model: LanguageModel) -> TextJob:
    """The job of training this language model; it needs no data and reads no weights.

    Args:
      config: of the run.
      algorithm: its method.
      model: the network.

    Raises:
      UserError: the method wants a head at the node, the cut does not fit, or a flag names what the
        model has not.
    """
    if algorithm.local_losses:
        raise UserError(
            f"--algorithm={config.algorithm}: the node's own loss wants a head there, which for a "
            "language model is another output matrix; say split or splitfed"
        )
    config = with_rank(config, model)
    trainable, always = _trainable(config, algorithm, model)
    plan = Plan(config, trainable, always, order=model.layer_names)
    chain = algorithm.chain(plan)
    check_cut(config, model, chain, trainable)
    return Job(
        config,
        algorithm,
        model,
        TASK,
        plan,
        chain,
        of_config(config),
        adapters=own_items(model, True) if config.lora_rank else (),
        distilled=config.distill == "on" and "distill" in algorithm.flags,
        columns=columns.of_ranks(ranks_of(config), config.lora_rank),
    )


def _visitors(job: TextJob, steps: Sequence[int]) -> Visitors:
    """See `assigned.visitors`."""
    if not assigned.is_asked(job):
        return assigned.alike(job, steps)
    step = make_step(job)
    cost = text_work.visit_cost(job, step, _adapters_of(job))
    return assigned.visitors(job, steps, cost)


def _adapters_of(job: TextJob) -> lora.Lora | None:
    """Those that train in the place of blocks; None: whole layers do."""
    return make_lora(job.config) if job.config.lora_rank else None


def _trainable(
    config: TextConfig, algorithm: Algorithm, model: LanguageModel
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a visit may train, in the model's order, and what every visit does.

    A method with assignments trains blocks, or their adapters, and the ends that the flag names.
    The others train all there is: the whole model, or all adapters.
    """
    ends = resolve_layers("always_train", config.always_train, model.layer_names)
    for name in ends:
        if name not in ENDS:
            raise UserError(
                f"--always_train={config.always_train}: {name} is a block; say embed, head, both "
                "or none"
            )
    if not algorithm.trains_parts and not config.lora_rank:
        ends = ENDS

    # In the model's order, which the schedule goes by.
    trainable = []
    for name in model.layer_names:
        if name not in ENDS:
            trainable.append(name + ADAPTERS if config.lora_rank else name)
        elif name in ends:
            trainable.append(name)
    always = ends if algorithm.trains_parts else ()
    return tuple(trainable), always


def make_step(job: TextJob) -> LanguageStep:
    """The arithmetic of the job's visits."""
    config = job.config
    return LanguageStep(
        model=job.model,
        rule=make_rule(config),
        clip_norm=config.clip_norm,
        adapted=config.lora_rank > 0,
        adapter_scale=config.lora_scale,
        distillation=distillation_of(job),
        compute_dtype=compute_dtype(config),
        client=job.algorithm.client(config),
        recompute=config.recompute,
        fused=config.frozen_matmul == "fused",
        privacy=privacy_of(config),
        gradients=_gradients(job),
        parties=text_work.parties(job),
    )


def _gradients(job: TextJob) -> Callable[[LanguageStep], Gradients]:
    """How the chain's parties come to their gradients."""
    if len(job.chain) > 1:
        return cut_gradients(chains.cuts(job.chain), text_cuttable)
    return text_gradients


def make_engine(setup: TextSetup) -> LocalEngine:
    """The node emulation of this setup; puts what never trains on the device."""
    config = setup.config
    data = setup.data
    step = make_step(setup.job)._replace(mesh=sharding.make_mesh(config.mesh))
    settings = settings_of(config)
    # What may train travels in a visit's order; all else is put in place once.
    base = without(data.weights(), setup.plan.layer_names)
    train, test = data.rows.train.rows, data.rows.test
    more = data.ranks, config.executor, data.packed, data.own
    return text_engine(step, base, train, test, data.shards, settings, *more)


def _params(setup: TextSetup) -> Params:
    """All that may train, at the start: layers as pretrained, adapters fresh."""
    names = [name for name in setup.plan.layer_names if not name.endswith(ADAPTERS)]
    weights = select(setup.data.weights(), names)
    if not setup.job.adapters:
        return weights
    adapters = jax.device_get(_adapters(setup.job))
    return weights | adapters


def _like(job: TextJob) -> Params:
    every = _shapes(job)
    weights = {name: every[name] for name in job.plan.layer_names if name in every}
    if not job.adapters:
        return weights
    make_adapters = functools.partial(_adapters, job)
    return weights | jax.eval_shape(make_adapters)


def _shapes(job: TextJob) -> Params:
    return shapes.model_shapes(job.model)


def _adapters(job: TextJob) -> Params:
    """Fresh adapters of every block; a block's depend on the seed and its place alone."""
    blocks = own_items(job.model, False)
    block = _shapes(job)[blocks[0]]
    settings = make_lora(job.config)
    # Blocks are alike: one compilation makes the adapters of all.
    fresh = jax.jit(functools.partial(lora.init, block=block, lora=settings))
    key = streams.key(job.config.seed, "key/adapters")
    adapters = {}
    for index, name in enumerate(blocks):
        adapters[name + ADAPTERS] = fresh(jax.random.fold_in(key, index))
    return adapters


def make_lora(config: TextConfig) -> lora.Lora:
    """The adapters that the flags describe."""
    return lora.Lora(config.lora_rank, config.lora_scale, config.lora_pattern)


def _sizes(job: TextJob) -> Sizes:
    config = job.config
    with_states = job.plan.layer_names if config.carry_optimizer_state else ()
    params, states, *_ = state_like(job, with_states)
    rest = without(_shapes(job), params)
    own = columns.shapes(job.columns, params)
    own_states = columns.shapes(job.columns, states)
    return transfer_sizes(own, config.frozen_dtype, own_states, base=rest)


def _work(job: TextJob) -> Callable[[Outcome], Mapping[Role, int]]:
    recompute = job.config.recompute
    return functools.partial(text_work.visit_flops, job, _adapters_of(job), recompute)


def _record(outcomes: Sequence[Outcome], scores: Scores | None) -> records.Record:
    texts = [outcome.text for outcome in outcomes if outcome.text is not None]
    tokens = sum(text.tokens for text in texts)
    target_tokens = sum(text.target_tokens for text in texts)
    seconds = sum(outcome.train_s for outcome in outcomes)
    return {
        "perplexity": None if scores is None else _perplexity(scores.loss),
        "exact_match": None if scores is None else scores.exact,
        "tokens": tokens,
        "target_tokens": target_tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        **records.of_nodes(scores, "perplexity", lambda one: _perplexity(one.loss)),
    }


def _perplexity(nll: float) -> float | None:
    """None where it is beyond any number worth printing."""
    return math.exp(nll) if nll < 100 else None


_SUMMARISED = (
    "algorithm",
    "model",
    "data",
    "partition",
    "seed",
    "nodes",
    "cycles",
    "lora_rank",
    "frozen_dtype",
)


def _summary(
    setup: TextSetup, engine: Engine | None, lines: Sequence[records.Record]
) -> records.Record:
    config = setup.config
    job = setup.job
    settings = {name: getattr(config, name) for name in _SUMMARISED}
    # Computed anew at the end: a run that was gone on with has forgotten its first evaluation.
    before = None
    if engine is not None:
        untrained = engine.evaluate(_params(setup))
        before = _perplexity(untrained.loss)
    trained = select(_like(job), largest_visit(job))
    return {
        **settings,
        "num_params": num_params(_shapes(job)),
        "trainable_params": num_params(trained),
        "state_bytes": visit_state(job).total,
        "tokens": sum(line["tokens"] for line in lines),
        "target_tokens": sum(line["target_tokens"] for line in lines),
        "perplexity_before": before,
        **records.of_perplexity(lines, config.target_perplexity),
    }


def largest_visit(job: TextJob) -> tuple[str, ...]:
    """The items of the visit that trains the most."""
    largest: tuple[str, ...] = ()
    for visits in outline(job).kinds:
        for visit in visits:
            if len(visit.layers) > len(largest):
                largest = visit.layers
    return largest


def visit_state(job: TextJob, node: int | None = None) -> memory.StateBytes:
    """What a node holds through the visit that trains the most, without activations.

    Args:
      job: of the run.
      node: which; None: one that trains as many columns of adapters as any.
    """
    # Of a cut model the node holds a part.
    at = exchange_of(job).needed() if len(job.chain) > 1 else None
    config = job.config
    held = config.frozen_dtype, _adapters_of(job), config.batch_size
    rank = columns.greatest(job.columns)
    if node is not None:
        rank = columns.rank_of(job.columns, node)
    return memory.state_bytes(make_step(job), largest_visit(job), *held, at=at, rank=rank)


def _reads(job: TextJob) -> Reads:
    """The head reads the embedding's table where the two are tied."""
    if not job.model.tied:
        return {}
    table = job.model.table(_shapes(job))
    return {"head": {"embed": num_bytes(table)}}


TASK: Task[TextConfig, RunText, LanguageModel] = Task(
    like=_like,
    sizes=_sizes,
    work=_work,
    visitors=_visitors,
    setup=make_setup,
    params=_params,
    engine=make_engine,
    part=part_of,
    record=_record,
    summary=_summary,
    reads=_reads,
)
