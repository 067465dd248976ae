"""From a corpus to what an executor trains on: the rows of all nodes by their length, and which
rows are whose.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.data.text.by_category import category_counts, partition
from snake_jax.data.text.packing import (
    Example,
    Rows,
    Truncation,
    fill,
    pack,
    pad,
    target_tokens,
    truncate,
)
from snake_jax.data.text.pair import Pair
from snake_jax.data.text.sources import Corpus
from snake_jax.data.text.templates import render
from snake_jax.data.text.tokenizers import Tokenizer
from snake_jax.errors import UserError


class NodeRows(NamedTuple):
    """rows: by length T, the rows `[N_T, T]` of all nodes; packed texts have one length, that of a
    row.

    nodes: for every node, by length, the numbers `[n]` int32 of its rows in `rows[T]`; lengths it
      has none of are left
    out. target_tokens `[nodes]` int64: how many targets count in its rows.
    """

    rows: dict[int, Rows]
    nodes: list[dict[int, np.ndarray]]
    target_tokens: np.ndarray


class TextData(NamedTuple):
    """A corpus ready for training: the nodes' rows, and the held-out text in the same form.

    shards: for every node, the numbers of its pairs in `pairs`. counts `[nodes, categories]`: how
      many of each
    category. fill: the share of the training rows' columns that hold text.
    """

    train: NodeRows
    test: dict[int, Rows]
    pairs: tuple[Pair, ...]
    shards: list[np.ndarray]
    categories: tuple[str, ...]
    counts: np.ndarray
    fill: float
    train_truncation: Truncation
    test_truncation: Truncation


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    nodes: int = 1,
    kind: str = "iid",
    categories_per_node: int = 2,
    seed: int = 0,
    max_length: int = 512,
    template: str = "auto",
    loss_on: str = "completion",
    packing: bool = True,
    buckets: Sequence[int] = (),
) -> TextData:
    """Renders, truncates, divides over the nodes, and lays in rows.

    Args:
      corpus: of `snake_jax.text.load`.
      tokenizer: whose ids the rows hold.
      nodes, kind, categories_per_node, seed: of `snake_jax.text.partition`.
      max_length: columns of the longest row.
      template: of `snake_jax.text.render`.
      loss_on: "completion", or "all" for the prompts' tokens too.
      packing: several texts to a row; rows never mix nodes. Otherwise one text to a row.
      buckets: lengths of rows without packing, beside max_length; shorter texts then cost less.

    Raises:
      UserError: wrong flags, no text is left, or every training response was cut.
    """
    lengths = _lengths(max_length, packing, buckets)
    examples, kept, cut = _examples(corpus.train, tokenizer, template, max_length)
    pairs = tuple(corpus.train[i] for i in kept)
    if cut.cut_responses == len(examples):
        raise UserError(
            f"--max_length={max_length} cuts every response; raise it (the longest text has "
            f"{cut.longest} tokens)"
        )
    held_out, _, held_out_cut = _examples(corpus.test, tokenizer, template, max_length)
    categories = [pair.category for pair in pairs]
    shards = partition(kind, categories, nodes, seed, categories_per_node)
    per_node = [[examples[i] for i in shard] for shard in shards]
    train = node_rows(per_node, lengths, tokenizer.pad_id, packing=packing, loss_on=loss_on)
    test = node_rows([held_out], lengths, tokenizer.pad_id, packing=packing, loss_on=loss_on).rows
    names, counts = category_counts(shards, categories)
    return TextData(
        train, test, pairs, shards, names, counts, total_fill(train.rows), cut, held_out_cut
    )


def node_rows(
    per_node: Sequence[Sequence[Example]],
    lengths: Sequence[int],
    pad_id: int,
    *,
    packing: bool = True,
    loss_on: str = "completion",
) -> NodeRows:
    """The rows of every node's texts, put together, and which are whose. Packed rows have the
    largest of `lengths`.
    """
    laid = [_laid(examples, lengths, pad_id, packing, loss_on) for examples in per_node]
    tables = {
        length: [rows[length] for rows in laid if length in rows]
        for length in sorted(set().union(*laid))
    }
    rows = {
        length: Rows(*map(np.concatenate, zip(*parts, strict=True)))
        for length, parts in tables.items()
    }
    starts, nodes = dict.fromkeys(rows, 0), []
    for own in laid:
        sizes = {length: len(part.ids) for length, part in own.items()}
        nodes.append(
            {
                length: np.arange(size, dtype=np.int32) + starts[length]
                for length, size in sizes.items()
            }
        )
        starts |= {length: starts[length] + size for length, size in sizes.items()}
    tokens = [sum(target_tokens(part) for part in own.values()) for own in laid]
    return NodeRows(rows, nodes, np.array(tokens, np.int64))


def total_fill(rows: dict[int, Rows]) -> float:
    """The share of the columns of all rows that hold text."""
    columns = [part.segments.size for part in rows.values()]
    return float(np.average([fill(part) for part in rows.values()], weights=columns))


def report(truncation: Truncation) -> str:
    """One line for printing: what was cut; empty where nothing was."""
    said = {
        "prompts cut at the left": truncation.cut_prompts,
        "responses cut at the right": truncation.cut_responses,
        "texts without a prompt or a response left out": truncation.dropped,
    }
    parts = [f"{count} {what}" for what, count in said.items() if count]
    return f"{', '.join(parts)} (the longest text has {truncation.longest} tokens)" if parts else ""


def _laid(
    examples: Sequence[Example], lengths: Sequence[int], pad_id: int, packing: bool, loss_on: str
) -> dict[int, Rows]:
    if packing:
        return {max(lengths): pack(examples, max(lengths), pad_id, loss_on)}
    return pad(examples, lengths, pad_id, loss_on)


def _examples(
    pairs: Sequence[Pair], tokenizer: Tokenizer, template: str, max_length: int
) -> tuple[list[Example], np.ndarray, Truncation]:
    return truncate(
        [render(pair, tokenizer, template) for pair in pairs], max_length, tokenizer.bos_id
    )


def _lengths(max_length: int, packing: bool, buckets: Sequence[int]) -> tuple[int, ...]:
    if buckets and packing:
        raise UserError(
            "--buckets are for --packing=false: packed rows all have --max_length columns"
        )
    if wrong := [length for length in buckets if not 0 < length <= max_length]:
        raise UserError(f"--buckets: {wrong[0]} is not between 1 and --max_length={max_length}")
    return (*sorted(set(buckets) - {max_length}), max_length)
