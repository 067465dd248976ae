"""The task of the papers' second study: fine-tuning language models, block by block or by adapters.

From a configuration to a checked setup, nothing compiled. (snake_learning_magazine, "Fine-Tuning of
LLMs".)
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax import streams
from snake_jax.algorithms.chain import ON_NODE, Segment
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Outcome
from snake_jax.config import TextConfig
from snake_jax.costs import language_costs
from snake_jax.data.divergence import label_divergence
from snake_jax.data.text import prepare as preparation
from snake_jax.data.text import sources, tokenizers
from snake_jax.engines.build import text_engine
from snake_jax.engines.epochs import VisitSettings
from snake_jax.engines.local import LocalEngine
from snake_jax.engines.text_batches import Shard
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.hub import check_pretrained, load_pretrained, read_architecture
from snake_jax.models.language import LanguageModel, build
from snake_jax.models.layered import resolve_layers
from snake_jax.models.presets import PRESETS, from_preset
from snake_jax.nodes.fleet import of_config
from snake_jax.nodes.ledger import Sizes
from snake_jax.params import Params, num_params, select, without
from snake_jax.runs import records
from snake_jax.runs.setup import (
    Setup,
    Task,
    check_fit,
    check_interruptions,
    make_rule,
    rounds,
    state_like,
)
from snake_jax.train import sharding
from snake_jax.train.image_step import Distillation
from snake_jax.train.text_step import ADAPTERS, ENDS, LanguageStep, own_items
from snake_jax.train.update import proximal

# What the folder of a tokenizer may hold.
TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model", "tok*.bin", "vocab.json", "merges.txt")
_BUCKETS = (
    4  # rows of one text each have a length of max_length over a power of two, down to an eighth
)


class TextTask(NamedTuple):
    """The data of a run, and what its weights come from.

    Attributes:
      data: rows of all nodes, and held-out ones.
      tokenizer: of the data.
      weights: the whole model, pretrained or fresh, on the host; called when a run begins.
      ranks: of each node's adapters; empty: all alike.
      name: of the data, for people.
    """

    data: preparation.TextData
    tokenizer: tokenizers.Tokenizer
    weights: Callable[[], Params]
    ranks: tuple[int, ...]
    name: str


def prepare(config: TextConfig) -> Setup:
    """Checks a configuration, reads model description and data; compiles nothing and reads no
    weights.

    Raises:
      UserError: flags, data, model or layers are wrong.
    """
    algorithm = ALGORITHMS[config.algorithm]
    check_fit(config, algorithm)
    if config.assign != "serpentine":
        raise UserError(
            f"--assign={config.assign}: blocks are alike, so nodes take turns; leave "
            f"--assign=serpentine"
        )
    tokenizer = tokenizers.load_tokenizer(config.tokenizer or tokenizer_beside(config.model))
    model, weights = load_model(config, tokenizer)
    tokenizers.check_fits(tokenizer, model.vocab_size)
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
    corpus = sources.load(
        config.data, test_share=config.test_share, seed=config.seed, limit=config.limit
    )
    rows = preparation.prepare(
        corpus,
        tokenizer,
        nodes=config.nodes,
        kind=config.partition,
        categories_per_node=config.categories_per_node,
        seed=config.seed,
        max_length=config.max_length,
        template=config.template,
        loss_on=config.loss_on,
        packing=config.packing,
        buckets=() if config.packing else tuple(config.max_length >> k for k in range(_BUCKETS)),
    )
    divergence = label_divergence(rows.counts, config.distill_measure)
    wanted = config.distill == "on" or (
        config.distill == "auto" and divergence > config.distill_threshold
    )
    plan = Plan(config, *_trainable(config, model))
    setup = Setup(
        TASK,
        config,
        algorithm,
        TextTask(rows, tokenizer, weights, _ranks(config), corpus.name),
        preparation.report(rows.train_truncation),
        _shards(algorithm.shards, rows.train.nodes),
        divergence,
        wanted and "distill" in algorithm.flags,
        model,
        plan,
        (Segment(ON_NODE, 0, len(model.layer_names)),),  # the plan's layers may be fewer
        (),
        of_config(config),
        own_items(model, True) if config.lora_rank else (),
    )
    jax.eval_shape(lambda: _like(setup))  # a rank above a layer's width is said here
    check_interruptions(setup)
    return setup


def load_model(
    config: TextConfig, tokenizer: tokenizers.Tokenizer
) -> tuple[LanguageModel, Callable[[], Params]]:
    """The model of a folder or preset, and a function that gives its weights, float32 on the
    host.
    """
    if config.model in PRESETS and not Path(config.model).exists():
        # An untrained model has no vocabulary of its own to keep.
        sizes = (
            {"vocab_size": -(-tokenizer.vocab_size // 8) * 8}
            if config.model.startswith("tiny")
            else {}
        )
        model = from_preset(config.model, dropout=config.dropout, **sizes)
        return model, lambda: jax.device_get(model.init(streams.key(config.seed, "key/weights")))
    if not Path(config.model).is_dir():
        known = ", ".join(PRESETS)
        raise UserError(
            f"--model={config.model}: no such folder, and no preset; presets are {known}"
        )
    architecture = read_architecture(Path(config.model))
    model = build(architecture, dropout=config.dropout, name=Path(config.model).resolve().name)
    check_pretrained(config.model, model)
    return model, lambda: load_pretrained(config.model, dropout=config.dropout)[1]


def tokenizer_beside(model: str) -> str:
    """A model's folder where it holds a tokenizer too, else nothing: bytes."""
    return (
        model
        if any(file for pattern in TOKENIZER_FILES for file in Path(model).glob(pattern))
        else ""
    )


def _trainable(config: TextConfig, model: LanguageModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a visit may train, in the model's order, and what every visit does.

    Snake visits train blocks, or their adapters, and the ends that the flag names. The other
    methods train all there is: the whole model, or all adapters.
    """
    items = own_items(model, config.lora_rank > 0)
    ends = resolve_layers("always_train", config.always_train, model.layer_names)
    if blocks := [name for name in ends if name not in ENDS]:
        raise UserError(
            f"--always_train={config.always_train}: {blocks[0]} is a block; say embed, head, both "
            f"or none"
        )
    if config.algorithm != "snake" and not config.lora_rank:
        ends = ENDS
    order = [n for n in ENDS[:1] if n in ends] + [*items] + [n for n in ENDS[1:] if n in ends]
    return tuple(order), ends if config.algorithm == "snake" else ()


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


def _ranks(config: TextConfig) -> tuple[int, ...]:
    """Each node's rank; nodes take the listed ones in turn, or by what they compute: the fastest
    has `lora_rank`.
    """
    if not config.rank:
        return ()
    if not config.lora_rank:
        raise UserError(f"--rank={config.rank}: there are no adapters with --lora_rank=0")
    if config.rank == "capability":
        speeds = [node.flops_per_s for node in of_config(config).nodes]
        return tuple(max(1, round(config.lora_rank * speed / max(speeds))) for speed in speeds)
    words = config.rank.split(",")
    if wrong := [
        w for w in words if not w.strip().isdecimal() or not 0 < int(w) <= config.lora_rank
    ]:
        raise UserError(
            f"--rank={config.rank}: {wrong[0] or 'a gap'} is no rank from 1 to "
            f"--lora_rank={config.lora_rank}"
        )
    return tuple(int(words[node % len(words)]) for node in range(config.nodes))


def _shards(pool: Callable[[Any], Any], rows: Sequence[Shard]) -> list[Shard]:
    """Each node's rows by length, as the method trains on them."""
    lengths = sorted({length for shard in rows for length in shard})
    none = np.zeros(0, np.int32)
    parts = {length: pool([shard.get(length, none) for shard in rows]) for length in lengths}
    count = len(next(iter(parts.values())))
    return [
        {length: part[i] for length, part in parts.items() if len(part[i])} for i in range(count)
    ]


def compute_dtype(config: TextConfig) -> Any:
    """Of activations and of weights while they are computed with."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")


def make_step(setup: Setup) -> LanguageStep:
    """The arithmetic of the setup's visits."""
    config: TextConfig = setup.config
    return LanguageStep(
        model=setup.model,
        rule=make_rule(config),
        clip_norm=config.clip_norm,
        adapted=config.lora_rank > 0,
        adapter_scale=config.lora_scale,
        distillation=Distillation(config.distill_temperature, config.distill_weight)
        if setup.distilled
        else None,
        compute_dtype=compute_dtype(config),
        client=proximal(config.proximal),
        recompute=config.recompute,
        fused=config.frozen_matmul == "fused",
    )


def make_executor(setup: Setup) -> LocalEngine:
    """Nodes emulated one after the other; puts what never trains on the device."""
    task: TextTask = setup.dataset
    step = make_step(setup)._replace(mesh=sharding.make_mesh(setup.config.mesh))
    settings = VisitSettings(
        **{name: getattr(setup.config, name) for name in VisitSettings._fields}
    )
    base = without(task.weights(), setup.plan.layer_names)
    train, test = task.data.train.rows, task.data.test
    return text_engine(step, base, train, test, setup.shards, settings, task.ranks)


def _params(setup: Setup) -> Params:
    """All that may train, at the start: layers as pretrained, adapters fresh."""
    task: TextTask = setup.dataset
    names = setup.plan.layer_names
    weights = select(task.weights(), [name for name in names if not name.endswith(ADAPTERS)])
    return {**weights, **(jax.device_get(_adapters(setup)) if setup.adapters else {})}


def _like(setup: Setup) -> Params:
    names, shapes = setup.plan.layer_names, _shapes(setup)
    weights = {name: shapes[name] for name in names if name in shapes}
    return weights | (jax.eval_shape(functools.partial(_adapters, setup)) if setup.adapters else {})


def _shapes(setup: Setup) -> Params:
    return jax.eval_shape(setup.model.init, jax.random.key(0))


def _adapters(setup: Setup) -> Params:
    """Fresh adapters of every block; a block's depend on the seed and its place alone."""
    names, shapes, key = (
        own_items(setup.model, False),
        _shapes(setup),
        streams.key(setup.config.seed, "key/adapters"),
    )
    # Blocks are alike: one compilation makes the adapters of all.
    fresh = jax.jit(lambda key: lora.init(key, shapes[names[0]], make_lora(setup.config)))
    return {
        name + ADAPTERS: fresh(jax.random.fold_in(key, index)) for index, name in enumerate(names)
    }


def make_lora(config: TextConfig) -> lora.Lora:
    """The adapters that the flags describe."""
    return lora.Lora(config.lora_rank, config.lora_scale, config.lora_pattern)


def _sizes(setup: Setup) -> Sizes:
    config: TextConfig = setup.config
    params, states, _ = state_like(
        setup, setup.plan.layer_names if config.carry_optimizer_state else ()
    )
    return language_costs.transfer_sizes(
        params, without(_shapes(setup), params), config.frozen_dtype, states
    )


def _work(setup: Setup) -> Callable[[Outcome], Mapping[int, int]]:
    step, shapes, like = make_step(setup), _shapes(setup), _like(setup)
    items = own_items(setup.model, step.adapted)
    base = shapes[own_items(setup.model, False)[0]] if step.adapted else {}
    costs = functools.lru_cache(
        lambda length: language_costs.row_costs(step, base, like[items[0]], length)
    )

    def flops(result: Outcome) -> Mapping[int, int]:
        assert result.text is not None, "a visit on a language model counts its text"
        trains = language_costs.trained(items, result.visit.layers)
        return {
            ON_NODE: sum(
                language_costs.passed_flops(step, costs(p.length), trains, p)
                for p in result.text.passed
            )
        }

    return flops


def _record(
    results: Sequence[Outcome], scores: tuple[float | None, float | None]
) -> dict[str, Any]:
    texts = [result.text for result in results if result.text is not None]
    tokens, seconds = sum(t.tokens for t in texts), sum(r.train_s for r in results)
    return {
        "perplexity": None if scores[1] is None else _perplexity(scores[1]),
        "tokens": tokens,
        "target_tokens": sum(t.target_tokens for t in texts),
        "tokens_per_s": tokens / seconds if seconds else None,
    }


def _perplexity(nll: float) -> float | None:
    """None where it is beyond any number worth printing."""
    return math.exp(nll) if nll < 100 else None


def _summary(
    setup: Setup, executor: LocalEngine | None, lines: Sequence[records.Record]
) -> records.Record:
    config: TextConfig = setup.config
    named = (
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
    before = executor.evaluate(_params(setup))[1] if executor else None
    return {
        **{name: getattr(config, name) for name in named},
        "num_params": num_params(_shapes(setup)),
        "trainable_params": num_params(select(_like(setup), largest_visit(setup))),
        "state_bytes": visit_state(setup).total,
        "tokens": sum(line["tokens"] for line in lines),
        "target_tokens": sum(line["target_tokens"] for line in lines),
        "perplexity_before": None if before is None else _perplexity(before),
        **records.of_perplexity(lines, config.target_perplexity),
    }


def largest_visit(setup: Setup) -> tuple[str, ...]:
    """The items of the visit that trains the most."""
    return max((visit.layers for visits in rounds(setup) for visit in visits), key=len)


def visit_state(setup: Setup) -> language_costs.StateBytes:
    """What a node holds through the visit that trains the most, without activations."""
    shapes, like, layers = _shapes(setup), _like(setup), largest_visit(setup)
    return language_costs.visit_state(
        make_step(setup), shapes, like, layers, setup.config.frozen_dtype
    )


TASK = Task(
    params=_params,
    like=_like,
    executor=make_executor,
    work=_work,
    sizes=_sizes,
    record=_record,
    summary=_summary,
)
