"""From a corpus to what an engine trains on: rows by their length, and which are whose."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.data.node_quality import NodeQuality, said
from snake_jax.data.text.packing import (
    Example,
    TextRows,
    Truncation,
    divide,
    fill,
    pack,
    pad,
    target_tokens,
    truncate,
)
from snake_jax.data.text.quality import clean_texts
from snake_jax.data.text.samples import Document, Sample
from snake_jax.data.text.sources import Corpus
from snake_jax.data.text.templates import render
from snake_jax.data.text.text_partition import category_counts, partition_texts
from snake_jax.data.text.tokenizers import Tokenizer
from snake_jax.errors import UserError


class NodeRows(NamedTuple):
    """The rows of all nodes.

    Attributes:
      rows: by length T, `[N_T, T]` of all nodes; packed texts have one length, that of a row.
      nodes: for every node, by length, the numbers `[n]` int32 of its rows in `rows[T]`; lengths it
        has none of are left out.
      target_tokens: `[nodes]` int64, how many targets count in its rows.
    """

    rows: dict[int, TextRows]
    nodes: list[dict[int, np.ndarray]]
    target_tokens: np.ndarray


class TextData(NamedTuple):
    """A corpus ready for training.

    Attributes:
      train: the nodes' rows.
      test: the held-out text's rows, by length.
      samples: what trains; a document that is longer than a row is there once for each of its
        parts.
      shards: for every node, the numbers of its samples in `samples`.
      categories: their names.
      counts: `[nodes, categories]`, how many of each category.
      fill: the share of the training rows' columns that hold text, from 0 to 1.
      train_truncation: what of the training text did not fit.
      test_truncation: and of the held-out text.
      of_nodes: what each node found its own texts to be; empty: none looked.
    """

    train: NodeRows
    test: dict[int, TextRows]
    samples: tuple[Sample, ...]
    shards: list[np.ndarray]
    categories: tuple[str, ...]
    counts: np.ndarray
    fill: float
    train_truncation: Truncation
    test_truncation: Truncation
    of_nodes: tuple[NodeQuality, ...] = ()


class Cleaning(NamedTuple):
    """What each node is to drop of its own texts, beside what is unsound; see `quality`."""

    outliers: float = 0.0
    clusters: int = 0


def build_text_data(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    nodes: int = 1,
    kind: str = "iid",
    categories_per_node: int = 2,
    seed: int = 0,
    max_length: int = 512,
    template: str = "auto",
    allow_special_tokens: bool = False,
    loss_on: str = "completion",
    packing: bool = True,
    buckets: Sequence[int] = (),
    cleaning: Cleaning | None = None,
) -> TextData:
    """Renders, truncates, divides over the nodes, and lays in rows.

    Args:
      corpus: of `sources.load_corpus`.
      tokenizer: whose ids the rows hold.
      nodes, kind, categories_per_node, seed: of `text_partition.partition_texts`.
      max_length: columns of the longest row.
      template, allow_special_tokens: of `templates.render`.
      loss_on: "completion", or "all" for the prompts' tokens too.
      packing: several texts to a row; rows never mix nodes. Otherwise one text to a row.
      buckets: lengths of rows without packing, beside max_length; shorter texts then cost less.
      cleaning: of each node's own texts; None: what was read is trained on.

    Raises:
      UserError: wrong flags, no text is left, or every training response was cut.
    """
    lengths = _lengths(max_length, packing, buckets)
    form = (tokenizer, template, allow_special_tokens, max_length)
    examples, kept, cut = _examples(corpus.train, *form)
    _check_some_whole(cut, len(examples), max_length)
    held_out, _, held_out_cut = _examples(corpus.test, *form)

    # Who holds which text.
    samples = tuple(corpus.train[i] for i in kept)
    categories = [sample.category for sample in samples]
    shards = partition_texts(kind, categories, nodes, seed, categories_per_node)
    of_nodes: tuple[NodeQuality, ...] = ()
    if cleaning is not None:
        shards, of_nodes = _cleaned(samples, examples, shards, cleaning, seed)
    names, counts = category_counts(shards, categories)

    # Rows of each node's own texts; the held-out ones as if one node held them.
    per_node = [_chosen(examples, shard) for shard in shards]
    train = node_rows(per_node, lengths, tokenizer.pad_id, packing=packing, loss_on=loss_on)
    test = node_rows([held_out], lengths, tokenizer.pad_id, packing=packing, loss_on=loss_on)
    return TextData(
        train=train,
        test=test.rows,
        samples=samples,
        shards=shards,
        categories=names,
        counts=counts,
        fill=total_fill(train.rows),
        train_truncation=cut,
        test_truncation=held_out_cut,
        of_nodes=of_nodes,
    )


def _cleaned(
    samples: Sequence[Sample],
    examples: Sequence[Example],
    shards: Sequence[np.ndarray],
    cleaning: Cleaning,
    seed: int,
) -> tuple[list[np.ndarray], tuple[NodeQuality, ...]]:
    """The nodes' shards without what each drops of its own, and what each found.

    Raises:
      UserError: a node has nothing left.
    """
    kept, found = [], []
    for node, shard in enumerate(shards):
        is_kept, quality = clean_texts(
            [samples[index] for index in shard],
            _chosen(examples, shard),
            outliers=cleaning.outliers,
            clusters=cleaning.clusters,
            seed=seed,
            node=node,
        )
        if not is_kept.any():
            raise UserError(
                f"node {node} has no sound text: it {said(quality)} of {quality.held}; say "
                "--clean=none, or fewer --nodes"
            )
        kept.append(shard[is_kept])
        found.append(quality)
    return kept, tuple(found)


def node_rows(
    per_node: Sequence[Sequence[Example]],
    lengths: Sequence[int],
    pad_id: int,
    *,
    packing: bool = True,
    loss_on: str = "completion",
) -> NodeRows:
    """The rows of every node's texts, put together, and which are whose.

    Packed rows have the largest of `lengths`.
    """
    # By length, the parts that the nodes have, one after the other, and where the next begins.
    parts: dict[int, list[TextRows]] = {}
    starts: dict[int, int] = {}
    nodes = []
    tokens = []
    for examples in per_node:
        if packing:
            own = {max(lengths): pack(examples, max(lengths), pad_id, loss_on)}
        else:
            own = pad(examples, lengths, pad_id, loss_on)
        numbers = {}
        num_targets = 0
        for length, part in own.items():
            start = starts.get(length, 0)
            numbers[length] = np.arange(len(part.ids), dtype=np.int32) + start
            starts[length] = start + len(part.ids)
            parts.setdefault(length, []).append(part)
            num_targets += target_tokens(part)
        nodes.append(numbers)
        tokens.append(num_targets)

    # All parts of a length as one, field by field.
    rows = {}
    for length in sorted(parts):
        fields = zip(*parts[length], strict=True)
        rows[length] = TextRows(*map(np.concatenate, fields))
    return NodeRows(rows, nodes, np.array(tokens, np.int64))


def total_fill(rows: dict[int, TextRows]) -> float:
    """The share of the columns of all rows that hold text."""
    columns = [part.segments.size for part in rows.values()]
    shares = [fill(part) for part in rows.values()]
    return float(np.average(shares, weights=columns))


def describe_truncation(truncation: Truncation) -> str:
    """One line for printing: what was cut; empty where nothing was."""
    said = {
        "prompts cut at the left": truncation.cut_prompts,
        "responses cut at the right": truncation.cut_responses,
        "texts without a prompt or a response left out": truncation.dropped,
    }
    parts = [f"{count} {what}" for what, count in said.items() if count]
    if not parts:
        return ""
    return f"{', '.join(parts)} (the longest text has {truncation.longest} tokens)"


def describe_documents(samples: Sequence[Sample]) -> str:
    """One line for printing: which samples have no prompt, and what that means.

    It is empty where all have one.
    """
    documents = [sample for sample in samples if isinstance(sample, Document)]
    if not documents:
        return ""
    count = len(set(documents))
    parts = ""
    if len(documents) > count:
        parts = f", in {len(documents)} parts of at most a row"
    return (
        f"continued pre-training on {count} texts{parts}: in no template, the loss is of all their "
        f"tokens"
    )


def _check_some_whole(cut: Truncation, count: int, max_length: int) -> None:
    """Raises UserError where the response of each of these examples was cut."""
    if cut.cut_responses == count:
        raise UserError(
            f"--max_length={max_length} cuts every response; raise it (the longest text has "
            f"{cut.longest} tokens)"
        )


def _chosen(examples: Sequence[Example], numbers: np.ndarray) -> list[Example]:
    """Those of these numbers, in their order."""
    return [examples[i] for i in numbers]


def _examples(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    template: str,
    allow_special_tokens: bool,
    max_length: int,
) -> tuple[list[Example], np.ndarray, Truncation]:
    """The examples; for each the number of its sample; what was cut."""
    rendered = []
    numbers = []
    for number, sample in enumerate(samples):
        one = render(sample, tokenizer, template, allow_special_tokens)
        # A document has no prompt to shorten and no answer to keep whole: nothing of it is cut off.
        parts: list[tuple[Sequence[int], np.ndarray]] = [(one.ids, one.trained)]
        if isinstance(sample, Document) and max_length >= 1:
            parts = divide(one.ids, one.trained, max_length)
        rendered += parts
        numbers += [number] * len(parts)
    examples, kept, cut = truncate(rendered, max_length, tokenizer.bos_id)
    return examples, np.array(numbers, np.int32)[kept], cut


def _lengths(max_length: int, packing: bool, buckets: Sequence[int]) -> tuple[int, ...]:
    """The lengths that rows may have, ascending; raises UserError for wrong flags."""
    if buckets and packing:
        raise UserError(
            "--buckets are for --packing=false: packed rows all have --max_length columns"
        )
    for length in buckets:
        if not 0 < length <= max_length:
            raise UserError(f"--buckets: {length} is not between 1 and --max_length={max_length}")
    return tuple(sorted({*buckets, max_length}))
