"""What a run on text reads: the model's description, the tokenizer, the text, the day it writes."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from snake_jax import processes, streams
from snake_jax.algorithms.base import Algorithm
from snake_jax.config import TextConfig
from snake_jax.data.divergence import label_divergence
from snake_jax.data.node_hold_out import held_out
from snake_jax.data.node_quality import table
from snake_jax.data.text import sources, templates, text_data, tokenizers
from snake_jax.data.text.packing import TextRows
from snake_jax.engines.text_batches import Shard, packed_lengths
from snake_jax.errors import UserError
from snake_jax.models.hub import check_pretrained, load_pretrained, read_architecture
from snake_jax.models.language import LanguageModel, build
from snake_jax.models.presets import PRESETS, from_preset
from snake_jax.nodes.fleet import of_config
from snake_jax.params import Params
from snake_jax.runs import storage

# What the folder of a tokenizer may hold.
TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model", "tok*.bin", "vocab.json", "merges.txt")
# Rows of one text each have a length of max_length over a power of two: so many, down to an eighth.
_BUCKETS = 4


class RunText(NamedTuple):
    """The text of a run, and what its weights come from.

    Attributes:
      rows: of all nodes, and held-out ones.
      tokenizer: of the text.
      weights: the whole model, pretrained or fresh, on the host; called when a run begins.
      ranks: of each node's adapters; empty: all alike.
      name: of the text, for people.
      shards: each node's rows by length, as the method trains on them.
      divergence: between the nodes' categories, by `config.distill_measure`.
      quality: what was cut, one line.
      packed: lengths of which some node has rows with several texts, where these are not all nodes'
        rows; else None.
      own: each node's rows by length that it holds out; empty: nothing.
    """

    rows: text_data.TextData
    tokenizer: tokenizers.Tokenizer
    weights: Callable[[], Params]
    ranks: tuple[int, ...]
    name: str
    shards: Sequence[Shard]
    divergence: float
    quality: str
    packed: frozenset[int] | None = None
    own: Sequence[Shard] = ()


def tokenizer_beside(model: str) -> str:
    """A model's folder where it holds a tokenizer too, else nothing: bytes."""
    for pattern in TOKENIZER_FILES:
        if any(Path(model).glob(pattern)):
            return model
    return ""


def load_model(
    config: TextConfig, tokenizer: tokenizers.Tokenizer
) -> tuple[LanguageModel, Callable[[], Params]]:
    """The model of a folder or preset, and a function that gives its weights.

    The weights are float32 and on the host.

    Raises:
      UserError: there is no such model, or it is none that can be trained here.
    """
    # A folder of one's own goes before a preset of the same name.
    folder = Path(config.model)
    if config.model in PRESETS and not folder.exists():
        return _untrained(config, tokenizer)
    if not folder.is_dir():
        known = ", ".join(PRESETS)
        raise UserError(
            f"--model={config.model}: no such folder, and no preset; presets are {known}"
        )
    architecture = read_architecture(folder)
    model = build(architecture, dropout=config.dropout, name=folder.resolve().name)
    check_pretrained(config.model, model)

    # Gigabytes, so they are read when the run begins, not when its flags are looked at.
    def read_weights() -> Params:
        _, weights = load_pretrained(config.model, dropout=config.dropout)
        return weights

    return model, read_weights


def _untrained(
    config: TextConfig, tokenizer: tokenizers.Tokenizer
) -> tuple[LanguageModel, Callable[[], Params]]:
    """A preset with fresh weights."""
    sizes = {}
    if config.model.startswith("tiny"):
        # Nobody knows its vocabulary, so it takes the tokenizer's, rounded up to eights.
        sizes["vocab_size"] = math.ceil(tokenizer.vocab_size / 8) * 8
    model = from_preset(config.model, dropout=config.dropout, **sizes)

    def draw_weights() -> Params:
        key = streams.key(config.seed, "key/weights")
        return jax.device_get(model.init(key))

    return model, draw_weights


def prepare_data(
    config: TextConfig,
    algorithm: Algorithm,
    tokenizer: tokenizers.Tokenizer,
    weights: Callable[[], Params],
) -> RunText:
    """The text of the flags, in rows of tokens, laid out over the nodes.

    Args:
      config: of the run.
      algorithm: its method, which may put all nodes' rows together.
      tokenizer: of the text.
      weights: gives the model's, see `Texts`.

    Raises:
      UserError: there is none, or it cannot be.
    """
    corpus = sources.load_corpus(
        config.data,
        test_share=config.test_share,
        seed=config.seed,
        limit=config.limit,
        skip_bad_rows=config.skip_bad_rows,
    )
    # A row that holds one text is as long as it needs to be, of a few lengths: a program each.
    buckets: tuple[int, ...] = ()
    if not config.packing:
        buckets = tuple(config.max_length >> halvings for halvings in range(_BUCKETS))
    rows = text_data.build_text_data(
        corpus,
        tokenizer,
        nodes=config.nodes,
        kind=config.partition,
        categories_per_node=config.categories_per_node,
        seed=config.seed,
        max_length=config.max_length,
        template=config.template,
        allow_special_tokens=config.allow_special_tokens,
        loss_on=config.loss_on,
        packing=config.packing,
        buckets=buckets,
        cleaning=_cleaning(config),
    )
    own: list[Shard] = []
    train: list[Shard] = []
    for node, shard in enumerate(rows.train.nodes):
        held, rest = _parted(config, node, shard)
        own.append(held)
        train.append(rest)
    return RunText(
        rows,
        tokenizer,
        weights,
        ranks_of(config),
        corpus.name,
        _shards(algorithm.shards, train),
        label_divergence(rows.counts, config.distill_measure),
        _quality(corpus, rows),
        own=own if config.evaluate_nodes else (),
    )


def _cleaning(config: TextConfig) -> text_data.Cleaning | None:
    """What each node drops of its own texts; None: nothing.

    Raises:
      UserError: nobody looks, and something is to be found.
    """
    if config.clean == "each_node":
        return text_data.Cleaning(config.outliers, config.clusters)
    for flag in ("outliers", "clusters", "max_dropped"):
        value = getattr(config, flag)
        if value:
            raise UserError(f"--{flag}={value}: with --clean=none no node looks at its data")
    return None


def _parted(config: TextConfig, node: int, shard: Shard) -> tuple[Shard, Shard]:
    """A node's rows that it holds out, and those that it trains on."""
    count = sum(map(len, shard.values()))
    is_held = held_out(count, config.evaluate_nodes, config.seed, node)
    held, rest = {}, {}
    start = 0
    for length, rows in shard.items():
        chosen = is_held[start : start + len(rows)]
        held[length], rest[length] = rows[chosen], rows[~chosen]
        start += len(rows)
    return held, rest


def part_of(data: RunText, nodes: Sequence[int], held_out: bool) -> RunText:
    """What these nodes hold of the text, and of all others what shapes everybody's programs.

    Args:
      data: of all nodes.
      nodes: whose rows stay.
      held_out: whether the held-out rows do.
    """
    every = data.rows.train.rows
    shards: list[dict[int, np.ndarray]] = [{} for _ in data.shards]
    rows = {}
    for length, some in every.items():
        chosen, start = [np.zeros(0, np.int32)], 0
        for node in nodes:
            own = data.shards[node].get(length) if node < len(data.shards) else None
            if own is None:
                continue
            shards[node][length] = np.arange(start, start + len(own), dtype=own.dtype)
            chosen.append(own)
            start += len(own)
        which = np.concatenate(chosen)
        rows[length] = TextRows(*(array[which] for array in some))
    train = data.rows.train._replace(rows=rows)
    kept = data.rows._replace(train=train, test=data.rows.test if held_out else {})
    return data._replace(rows=kept, shards=shards, packed=packed_lengths(every))


def with_first_day(config: TextConfig, workdir: str) -> TextConfig:
    """With the day that the folder's run began on, where the flag names none.

    A run whose chat template writes a day goes on with the text that it began with.
    """
    # The first process alone reads the folder; it tells the others the day.
    stored: object = None
    if processes.is_first() and not config.template_date:
        file = storage.path_of(workdir, "workdir") / "config.json"
        # What is wrong with the folder is said where it is opened.
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(file.read_text())
    day = ""
    if isinstance(stored, dict):
        named = ("model", "tokenizer", "template")
        if all(stored.get(name) == getattr(config, name) for name in named):
            day = str(stored.get("template_date", ""))
    day = config.template_date or processes.text_from_first(day)
    return dataclasses.replace(config, template_date=day)


def template_date(config: TextConfig, tokenizer: tokenizers.Tokenizer, day: str) -> str:
    """The day that the texts of the run hold, as 2026-01-31; empty where they hold none.

    Args:
      config: of the run.
      tokenizer: whose chat template may write a day.
      day: that it would write.

    Raises:
      UserError: the flag names one all the same.
    """
    if templates.writes_date(config.template, tokenizer):
        return day
    if config.template_date:
        raise UserError(
            f"--template_date={config.template_date}: the texts of this run hold no date; leave it "
            f"out"
        )
    return ""


def _quality(corpus: sources.Corpus, rows: text_data.TextData) -> str:
    """What was left out of the data, what of it is no pair, and what was cut: a line each."""
    lines = (
        *corpus.notes,
        text_data.describe_documents(rows.samples),
        text_data.describe_truncation(rows.train_truncation),
        table(rows.of_nodes) if rows.of_nodes else "",
    )
    return "\n".join(line for line in lines if line)


def ranks_of(config: TextConfig) -> tuple[int, ...]:
    """Each node's rank; empty: all have `lora_rank`.

    Nodes take the listed ones in turn, or by what they compute: the fastest has `lora_rank`.
    """
    if not config.rank:
        return ()
    if not config.lora_rank:
        raise UserError(f"--rank={config.rank}: there are no adapters with --lora_rank=0")
    if config.rank == "capability":
        speeds = [node.flops_per_s for node in of_config(config).nodes]
        fastest = max(speeds)
        return tuple(max(1, round(config.lora_rank * speed / fastest)) for speed in speeds)
    # Smaller ranks are columns of the greatest, so none may be above it.
    listed = []
    for word in config.rank.split(","):
        if not word.strip().isdecimal() or not 0 < int(word) <= config.lora_rank:
            raise UserError(
                f"--rank={config.rank}: {word or 'a gap'} is no rank from 1 to "
                f"--lora_rank={config.lora_rank}"
            )
        listed.append(int(word))
    return tuple(listed[node % len(listed)] for node in range(config.nodes))


def _shards(pool: Callable[[Any], Any], rows: Sequence[Shard]) -> Sequence[Shard]:
    """Each node's rows by length, as the method trains on them.

    Args:
      pool: `shards -> shards` of the method, which may put all nodes' rows together.
      rows: each node's, by length.
    """
    lengths: set[int] = set()
    for shard in rows:
        lengths |= shard.keys()
    none = np.zeros(0, np.int32)

    # A method pools rows of one length at a time. How many shards come out is its affair.
    pooled: list[dict[int, np.ndarray]] = []
    for length in sorted(lengths):
        parts = pool([shard.get(length, none) for shard in rows])
        if not pooled:
            pooled = [{} for _ in parts]
        for shard, part in zip(pooled, parts, strict=True):
            if len(part):
                shard[length] = part
    return pooled
