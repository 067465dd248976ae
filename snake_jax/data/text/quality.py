"""What a node finds wrong with its own texts: empty ones, repeated ones, and what is no text."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from snake_jax.data.node_quality import NodeQuality, consistent, first_of_each
from snake_jax.data.text.packing import Example
from snake_jax.data.text.samples import Document, Pair, Sample

# A text of which more is control, unassigned or private characters, or those that stand for what
# could not be decoded, is none: letters of all scripts, marks, digits, symbols and spaces are.
_MOST_FOREIGN = 0.1
_FOREIGN = ("Cc", "Cn", "Co", "Cs")
_SPACES = "\t\n\r\f\v"
_UNDECODED = "�"
_WIDTH = 128  # token ids are folded to so many columns


def clean_texts(
    samples: Sequence[Sample],
    examples: Sequence[Example],
    *,
    outliers: float,
    clusters: int,
    seed: int,
    node: int,
) -> tuple[np.ndarray, NodeQuality]:
    """Which of a node's texts it trains on, and what is wrong with the others.

    Args:
      samples: of the node; a document once for each of its parts.
      examples: what becomes of each, in tokens.
      outliers: share of the texts to drop as such; 0: none.
      clusters: groups of alike texts to look for; 0: none.
      seed: of the search for both.
      node: which node, from 0.

    Returns:
      `[N]` bool, and what was found.
    """
    texts = [_written(sample) for sample in samples]
    is_filled = np.array([_is_seen(text) for text in texts], bool)
    is_text = np.array([is_readable(text) for text in texts], bool)

    # Equal in tokens: parts of one document are different texts.
    keys = [example.ids.tobytes() + example.trained.tobytes() for example in examples]
    is_first = first_of_each(keys)
    is_kept = is_filled & is_text & is_first
    dropped = {
        "empty": int((~is_filled).sum()),
        "non-text": int((is_filled & ~is_text).sum()),
        "repeated": int((is_filled & is_text & ~is_first).sum()),
        "outliers": 0,
    }

    sizes: tuple[int, ...] = ()
    if (outliers or clusters) and is_kept.any():
        features = _features([examples[index] for index in np.flatnonzero(is_kept).tolist()])
        agrees, sizes = consistent(features, outliers, clusters, seed, node)
        dropped["outliers"] = int((~agrees).sum())
        is_kept[np.flatnonzero(is_kept)[~agrees]] = False
    return is_kept, NodeQuality(len(samples), dropped, sizes)


def is_readable(text: str) -> bool:
    """Whether a text is one, in whatever script, and not what a decoder made of other bytes."""
    foreign = 0
    for character in text:
        is_control = unicodedata.category(character) in _FOREIGN and character not in _SPACES
        foreign += is_control or character == _UNDECODED
    return foreign <= _MOST_FOREIGN * len(text)


def _is_seen(text: str) -> bool:
    """Whether something of it can be seen: no space, and nothing of no width."""
    for character in text:
        if not character.isspace() and unicodedata.category(character) != "Cf":
            return True
    return False


def _written(sample: Sample) -> str:
    """What the model is to learn to write: the last answer, or the whole of a document."""
    if isinstance(sample, Pair):
        return sample.response
    if isinstance(sample, Document):
        return sample.text
    return sample.turns[-1].content


def _features(examples: Sequence[Example]) -> np.ndarray:
    """`[N, 128]`: how often each token occurs, folded to a few columns and of unit length."""
    counts = []
    for example in examples:
        folded = np.bincount(example.ids % _WIDTH, minlength=_WIDTH)
        counts.append(folded / np.linalg.norm(folded))
    return np.stack(counts)
