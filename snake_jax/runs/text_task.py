"""The task of the papers' second study: fine-tuning language models, block by block or by adapters.

From a configuration to a checked setup, nothing compiled. (snake_learning_magazine, "Fine-Tuning of
LLMs".)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snake_jax import processes, streams
from snake_jax.algorithms.base import Algorithm, whole_model
from snake_jax.algorithms.chain import ON_NODE, Segment
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import TextConfig
from snake_jax.costs import memory
from snake_jax.costs.flops import passed_flops
from snake_jax.costs.layers import row_costs
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.data.text import chat_template, tokenizers
from snake_jax.engines.build import check as check_emulation
from snake_jax.engines.build import text_engine
from snake_jax.engines.contract import Engine, Scores
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.local import LocalEngine
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.language import LanguageModel
from snake_jax.models.layered import resolve_layers
from snake_jax.nodes.fleet import of_config
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import Params, num_params, select, without
from snake_jax.runs import records
from snake_jax.runs.job import (
    Job,
    Task,
    Visitors,
    chosen_algorithm,
    distillation_of,
    make_rule,
    planned,
    state_like,
)
from snake_jax.runs.setup import Setup, assembled
from snake_jax.runs.text_inputs import (
    Texts,
    load_model,
    part_of,
    prepare_data,
    template_date,
    tokenizer_beside,
)
from snake_jax.training import sharding
from snake_jax.training.text_step import ADAPTERS, ENDS, LanguageStep, own_items

TextJob = Job[TextConfig, Texts, LanguageModel]
TextSetup = Setup[TextConfig, Texts, LanguageModel]


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
    jax.eval_shape(lambda: _like(job))  # a rank above a layer's width is said here

    data = prepare_data(config, algorithm, tokenizer, weights)
    return make_setup(job, data)


def make_setup(job: TextJob, data: Texts) -> TextSetup:
    """The job on this text.

    Raises:
      UserError: an interruption makes no sense.
    """
    return assembled(job, data, data.divergence, ())


def check_model(config: TextConfig, model: LanguageModel) -> None:
    """Refuses rows, meshes and kernels that the model or each other cannot take.

    Raises:
      UserError: there is one.
    """
    if config.max_length > model.max_positions:
        raise UserError(
            f"--max_length={config.max_length}: {model.name} has {model.max_positions} positions"
        )
    heads = model.architecture.num_attention_heads, model.architecture.num_key_value_heads
    sharding.check(config.mesh, config.batch_size, *heads)
    if config.mesh and config.cache_prefix == "device":
        raise UserError(
            "--cache_prefix=device is for one device; with --mesh say --cache_prefix=host"
        )
    check_products(config)
    check_emulation(config.executor, bool(config.mesh), bool(config.rank), config.cache_prefix)


def make_job(config: TextConfig, algorithm: Algorithm, model: LanguageModel) -> TextJob:
    """The job of training this language model; it needs no data and reads no weights.

    Raises:
      UserError: the method cuts models, or a flag names what the model has not.
    """
    if algorithm.chain is not whole_model:
        whole = [name for name, other in ALGORITHMS.items() if other.chain is whole_model]
        raise UserError(
            f"--algorithm={config.algorithm} cuts models, which language models cannot be yet; "
            f"say {', '.join(whole)}"
        )
    if config.assign != "serpentine":
        raise UserError(
            f"--assign={config.assign}: blocks are alike, so nodes take turns; leave "
            "--assign=serpentine"
        )
    return Job(
        config,
        algorithm,
        model,
        TASK,
        Plan(config, *_trainable(config, algorithm, model)),
        (Segment(ON_NODE, 0, len(model.layer_names)),),  # the plan's layers may be fewer
        of_config(config),
        adapters=own_items(model, True) if config.lora_rank else (),
        distilled=config.distill == "on" and "distill" in algorithm.flags,
    )


def _visitors(job: TextJob, steps: Sequence[int]) -> Visitors:
    """Blocks are alike, so nodes take turns."""
    del job, steps
    return {}, {}


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
    order = []
    for name in model.layer_names:
        if name not in ENDS:
            order.append(name + ADAPTERS if config.lora_rank else name)
        elif name in ends:
            order.append(name)
    return tuple(order), ends if algorithm.trains_parts else ()


def check_products(config: TextConfig) -> None:
    """Refuses kernels for what is not stored in codes on one device.

    Raises:
      UserError: the configuration asks for that.
    """
    if config.frozen_matmul == "dequantize":
        return
    if config.mesh:
        raise UserError(
            "--frozen_matmul=fused is for one device; with --mesh say --frozen_matmul=dequantize"
        )
    if config.frozen_dtype not in ("int8", "nf4"):
        raise UserError(
            f"--frozen_matmul=fused: --frozen_dtype={config.frozen_dtype} has no codes; say int8 "
            f"or nf4"
        )


def compute_dtype(config: TextConfig) -> Any:
    """Of activations and of weights while they are computed with."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")


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
    )


def make_engine(setup: TextSetup) -> LocalEngine:
    """Nodes emulated one after the other; puts what never trains on the device."""
    config, data = setup.config, setup.data
    step = make_step(setup.job)._replace(mesh=sharding.make_mesh(config.mesh))
    settings = VisitSettings(**{name: getattr(config, name) for name in VisitSettings._fields})
    base = without(data.weights(), setup.plan.layer_names)
    train, test = data.rows.train.rows, data.rows.test
    ranks, packed = data.ranks, data.packed
    return text_engine(
        step, base, train, test, data.shards, settings, ranks, config.executor, packed
    )


def _params(setup: TextSetup) -> Params:
    """All that may train, at the start: layers as pretrained, adapters fresh."""
    names = [name for name in setup.plan.layer_names if not name.endswith(ADAPTERS)]
    weights = select(setup.data.weights(), names)
    if not setup.job.adapters:
        return weights
    return {**weights, **jax.device_get(_adapters(setup.job))}


def _like(job: TextJob) -> Params:
    shapes = _shapes(job)
    weights = {name: shapes[name] for name in job.plan.layer_names if name in shapes}
    if not job.adapters:
        return weights
    return weights | jax.eval_shape(functools.partial(_adapters, job))


def _shapes(job: TextJob) -> Params:
    return jax.eval_shape(job.model.init, jax.random.key(0))


def _adapters(job: TextJob) -> Params:
    """Fresh adapters of every block; a block's depend on the seed and its place alone."""
    blocks = own_items(job.model, False)
    block = _shapes(job)[blocks[0]]
    settings, key = make_lora(job.config), streams.key(job.config.seed, "key/adapters")
    # Blocks are alike: one compilation makes the adapters of all.
    fresh = jax.jit(lambda key: lora.init(key, block, settings))
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
    return transfer_sizes(params, config.frozen_dtype, states, base=rest)


def _work(job: TextJob) -> Callable[[Outcome], Mapping[int, int]]:
    step = make_step(job)
    adapters = make_lora(job.config) if step.adapted else None
    draws = {"teacher": job.distilled, "stochastic": job.model.stochastic}

    def flops(outcome: Outcome) -> Mapping[int, int]:
        assert outcome.text is not None, "a visit on a language model counts its text"
        total = 0
        for passed in outcome.text.passed:
            costs = row_costs(job.model, adapters, step.recompute, passed.length)
            total += passed_flops(costs, outcome.visit.layers, passed, **draws)
        return {ON_NODE: total}

    return flops


def _record(outcomes: Sequence[Outcome], scores: Scores | None) -> records.Record:
    texts = [outcome.text for outcome in outcomes if outcome.text is not None]
    tokens = sum(text.tokens for text in texts)
    seconds = sum(outcome.train_s for outcome in outcomes)
    return {
        "perplexity": None if scores is None else _perplexity(scores.loss),
        "tokens": tokens,
        "target_tokens": sum(text.target_tokens for text in texts),
        "tokens_per_s": tokens / seconds if seconds else None,
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
    config, job = setup.config, setup.job
    before = None
    if engine is not None:
        before = _perplexity(engine.evaluate(_params(setup)).loss)
    return {
        **{name: getattr(config, name) for name in _SUMMARISED},
        "num_params": num_params(_shapes(job)),
        "trainable_params": num_params(select(_like(job), largest_visit(job))),
        "state_bytes": visit_state(job).total,
        "tokens": sum(line["tokens"] for line in lines),
        "target_tokens": sum(line["target_tokens"] for line in lines),
        "perplexity_before": before,
        **records.of_perplexity(lines, config.target_perplexity),
    }


def largest_visit(job: TextJob) -> tuple[str, ...]:
    """The items of the visit that trains the most."""
    every = [visit.layers for visits in planned(job) for visit in visits]
    return max(every, key=len)


def visit_state(job: TextJob) -> memory.StateBytes:
    """What a node holds through the visit that trains the most, without activations."""
    step, config = make_step(job), job.config
    adapters = make_lora(config) if step.adapted else None
    return memory.state_bytes(step, largest_visit(job), config.frozen_dtype, adapters)


TASK: Task[TextConfig, Texts, LanguageModel] = Task(
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
)
