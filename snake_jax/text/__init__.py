"""Text for fine-tuning: pairs of prompt and response, tokenizers, templates, packed rows, partitions over nodes."""

from snake_jax.text.packing import LOSSES, Example, Rows, Truncation, fill, pack, pad, target_tokens, truncate
from snake_jax.text.pair import Pair
from snake_jax.text.partition import PARTITIONS, by_category, category_counts, describe, partition
from snake_jax.text.prepare import NodeRows, TextData, node_rows, prepare, report
from snake_jax.text.sources import HUB, Corpus, load
from snake_jax.text.templates import TEMPLATES, render, render_prompt
from snake_jax.text.tokenizers import Tokenizer, byte_tokenizer, check_fits, load_tokenizer

__all__ = [
    "HUB",
    "LOSSES",
    "PARTITIONS",
    "TEMPLATES",
    "Corpus",
    "Example",
    "NodeRows",
    "Pair",
    "Rows",
    "TextData",
    "Tokenizer",
    "Truncation",
    "by_category",
    "byte_tokenizer",
    "category_counts",
    "check_fits",
    "describe",
    "fill",
    "load",
    "load_tokenizer",
    "node_rows",
    "pack",
    "pad",
    "partition",
    "prepare",
    "render",
    "render_prompt",
    "report",
    "target_tokens",
    "truncate",
]
