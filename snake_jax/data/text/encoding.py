"""From a text to ids with offsets, and the ids of special tokens only where they are told.

A text is encoded whole, never in parts: at a border of parts there would be other ids
(SentencePiece puts a space before every text). Which ids belong to a part, offsets say. And a text
that happens to spell a special token ("</s>") stays text: the ids of special tokens stand at the
given spans alone.
"""

import functools
import json
import operator
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Span = tuple[int, int]
"""The characters of a text from `start` to before `stop`."""


class Encoding(NamedTuple):
    """A text as L ids, and the characters that each stands for.

    Ids of parts of one character share it; an id that stands for no character has an empty span.

    Attributes:
      ids: L of them.
      starts: int `[L]`, the first character of each.
      stops: int `[L]`, the one after its last.
    """

    ids: list[int]
    starts: np.ndarray
    stops: np.ndarray


Encode = Callable[[str, Sequence[Span], Sequence[int]], Encoding]
"""(text, spans of special tokens in it, in order and apart, characters at which the offsets have to
be exact) -> Encoding."""


def covering(encoding: Encoding, spans: Sequence[Span]) -> np.ndarray:
    """`[len(ids)]` bool: the ids that stand for some character of the spans, or for none within."""
    inside = np.zeros(len(encoding.ids), bool)
    for start, stop in spans:
        # An empty span lies inside where it begins; it has no end after the start.
        begins_before_end = encoding.starts < stop
        ends_after_start = (encoding.stops > start) | (encoding.starts >= start)
        inside |= begins_before_end & ends_after_start
    return inside


def joined(parts: Sequence[tuple[int, Encoding]]) -> Encoding:
    """The encodings of parts of a text, each with the character that it begins at."""
    # An empty array first, since nothing cannot be concatenated.
    ids: list[int] = []
    starts = [np.zeros(0, int)]
    stops = [np.zeros(0, int)]
    for at, part in parts:
        ids += part.ids
        starts.append(part.starts + at)
        stops.append(part.stops + at)
    return Encoding(ids, np.concatenate(starts), np.concatenate(stops))


def single_id(number: int, length: int) -> Encoding:
    """One id that stands for all of so many characters."""
    return Encoding([number], np.array([0]), np.array([length]))


def between(text: str, controls: Sequence[Span]) -> list[tuple[Span, bool]]:
    """The spans that make up the text, and whether each is a control token; empty ones left out."""
    parts = []
    at = 0
    for start, stop in controls:
        if start > at:
            parts.append(((at, start), False))
        parts.append(((start, stop), True))
        at = stop
    if at < len(text):
        parts.append(((at, len(text)), False))
    return parts


def special_spans(
    text: str, special: Mapping[str, int], start: int = 0, stop: int | None = None
) -> list[Span]:
    """Where the text spells names of special tokens: the longest of those that begin at one place.

    Args:
      text: to look in.
      special: ids of the tokens by name; only the names are read.
      start: the first character to look at.
      stop: the one after the last; None: to the end.
    """
    if not special:
        return []
    if stop is None:
        stop = len(text)
    pattern = _any_of(tuple(special))
    return [found.span() for found in pattern.finditer(text, start, stop)]


@functools.lru_cache(maxsize=8)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    # Of alternatives a regular expression takes the first that fits.
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def bytes_encode(text: str, controls: Sequence[Span], edges: Sequence[int]) -> Encoding:
    """The bytes of UTF-8; there are no special tokens to spell."""
    assert not controls
    # All bytes of a character but its first are 10xxxxxx.
    data = np.frombuffer(text.encode(), np.uint8)
    begins_character = (data & 0b1100_0000) != 0b1000_0000
    character = np.cumsum(begins_character) - 1
    return Encoding(data.tolist(), character, character + 1)


def library_encode(library: Any, special: Mapping[str, int]) -> Encode:
    """Encodes with a tokenizer of the package tokenizers.

    The library looks for its special tokens in every text. Here a copy of the tokenizer does, in
    which they have names that nobody can spell; at `controls` these names are put into the text.
    All else that the library does at special tokens stays so (spaces beside them, cutting the text
    there before it is normalised), thus a text without words like them has the library's own ids.

    Args:
      library: a `tokenizers.Tokenizer`.
      special: ids of the tokens that no text may spell, by their name.
    """
    secret = secrets.token_hex(8)
    names = {text: f"\ue000{secret}.{number}\ue001" for text, number in special.items()}
    spec = json.loads(library.to_str())
    renamed = _with_names(spec, names, special)
    copy = type(library).from_str(json.dumps(renamed))
    copy.no_truncation()
    copy.no_padding()

    def encode(text: str, controls: Sequence[Span], edges: Sequence[int]) -> Encoding:
        # `origin[i]`: the character of `text` at character i of what the copy reads.
        pieces = []
        origin = []
        for (start, stop), is_control in between(text, controls):
            piece = text[start:stop]
            places = np.arange(start, stop)
            if is_control:
                piece = names[piece]
                places = np.full(len(piece), start)
            pieces.append(piece)
            origin.append(places)
        read = "".join(pieces)
        encoded = copy.encode(read, add_special_tokens=False)

        # Offsets in what the copy reads as offsets in the text; an end may lie behind its last.
        end = np.array([len(text)])
        place = np.concatenate([*origin, end]).astype(int)
        offsets = np.array(encoded.offsets, int).reshape(-1, 2)
        starts, stops = place[offsets].T
        return Encoding(encoded.ids, starts, stops)

    return encode


def _with_names(
    spec: dict[str, Any], names: Mapping[str, str], special: Mapping[str, int]
) -> dict[str, Any]:
    """A tokenizer.json with other names for its special tokens, as tokens and in the vocabulary.

    Args:
      spec: the file's content, which is changed.
      names: the new name of each special token by its old one.
      special: their ids by the old names.
    """
    added = spec.get("added_tokens") or []
    for token in added:
        token["content"] = names.get(token["content"], token["content"])

    # A special token that is only in the vocabulary is never found in a text: here it must be.
    listed = {token["id"] for token in added}
    for text, number in special.items():
        if number not in listed:
            token = {
                "id": number,
                "content": names[text],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            added.append(token)
    spec["added_tokens"] = sorted(added, key=operator.itemgetter("id"))

    # A vocabulary is {text: id}, or in id's order [text, score].
    model = spec["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): i for text, i in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # It only adds tokens, which nobody asks for here, and cuts spaces off the offsets.
    spec["post_processor"] = None
    return spec


def slow_encode(
    whole: Callable[[str], list[int]],
    as_text: Callable[[str], list[int]],
    special: Mapping[str, int],
) -> Encode:
    """Encodes with a tokenizer that gives no offsets.

    Where a text spells special tokens beside `controls`, it is cut at the controls, and what is
    between them is encoded as text.

    Args:
      whole: text -> ids, special tokens too.
      as_text: text -> ids, where special tokens are text.
      special: ids of the special tokens by name.
    """

    def encode(text: str, controls: Sequence[Span], edges: Sequence[int]) -> Encoding:
        # The library finds just the special tokens that are meant: the text can stay whole.
        if special_spans(text, special) == list(controls):
            return _with_offsets(text, whole, edges)

        # It would find others too.
        parts = []
        for (start, stop), is_control in between(text, controls):
            piece = text[start:stop]
            if is_control:
                part = single_id(special[piece], stop - start)
            else:
                inside = [edge - start for edge in edges if start < edge < stop]
                part = _with_offsets(piece, as_text, inside)
            parts.append((start, part))
        return joined(parts)

    return encode


def _with_offsets(text: str, encode: Callable[[str], list[int]], edges: Sequence[int]) -> Encoding:
    """Offsets that are exact at `edges` alone.

    The ids that the text before an edge has in common with the whole lie before it; where the next
    of its ids is another, one id lies on both sides.
    """
    ids = encode(text)
    starts = np.zeros(len(ids), int)
    stops = np.full(len(ids), len(text))
    commons = []
    for edge in sorted(edges):
        count, is_border = _common(encode(text[:edge]), ids)
        commons.append((edge, count, is_border))

    # Forwards the last edge before an id stays its start, backwards the first behind it its stop.
    for edge, count, is_border in commons:
        first_behind = count if is_border else count + 1
        starts[first_behind:] = edge
    for edge, count, _ in reversed(commons):
        stops[:count] = edge
    return Encoding(ids, starts, stops)


def _common(beginning: list[int], ids: list[int]) -> tuple[int, bool]:
    """How many ids both begin with, and whether those are all of `beginning`."""
    count = 0
    for own, whole in zip(beginning, ids, strict=False):
        if own != whole:
            break
        count += 1
    return count, count == len(beginning)
