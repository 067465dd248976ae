"""Byte-pair encoding by scores, as SentencePiece's BPE models do it.

Of all neighbours that join to a piece, those of the highest score are joined first, the leftmost of
equals. Vocabularies are read from files by `snake_jax.data.text.bpe_files`.
"""

import functools
import re
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from snake_jax.data.text.encoding import Encode, Encoding, Span, between, joined, single_id


class Pieces(NamedTuple):
    """A vocabulary of V pieces.

    Attributes:
      texts: `[V]`, by id, with spaces as spaces, "" for what stands for no text.
      scores: of the texts.
      byte_ids: the id of every byte that has one.
      bos_id: of begin, or None.
      eos_id: of end.
      unknown_id: for what no piece and no byte covers.
      space_first: whether a space is put before every text.
      control: ids of begin and end by the name that a template writes.
    """

    texts: tuple[str, ...]
    scores: dict[str, float]
    byte_ids: dict[int, int]
    bos_id: int | None
    eos_id: int
    unknown_id: int
    space_first: bool
    control: dict[str, int]


def encoder(pieces: Pieces) -> Encode:
    """text -> ids with offsets, without begin and end.

    A text is cut at the special tokens' spans. What is between them is encoded alone; the space
    that some vocabularies put first comes before the whole text only.
    """
    # Of a text that several ids stand for, the first.
    ids: dict[str, int] = {}
    for number, text in enumerate(pieces.texts):
        if text:
            ids.setdefault(text, number)

    def ids_of(symbol: str) -> list[int]:
        if symbol in ids:
            return [ids[symbol]]
        if pieces.byte_ids:
            return [pieces.byte_ids[byte] for byte in symbol.encode()]
        return [pieces.unknown_id]

    # Words repeat: what a chunk comes to is remembered. (ids, first characters, ends) within it.
    @functools.lru_cache(maxsize=1 << 16)
    def of_chunk(chunk: str) -> tuple[list[int], list[int], list[int]]:
        numbers: list[int] = []
        starts: list[int] = []
        stops: list[int] = []
        at = 0
        for symbol in merge_symbols(chunk, pieces.scores):
            spelled = ids_of(symbol)
            numbers += spelled
            starts += [at] * len(spelled)
            at += len(symbol)
            stops += [at] * len(spelled)
        return numbers, starts, stops

    chunks = _chunker(pieces.texts)

    def of_text(text: str) -> Encoding:
        numbers: list[int] = []
        starts: list[int] = []
        stops: list[int] = []
        at = 0
        for chunk in chunks(text):
            own, own_starts, own_stops = of_chunk(chunk)
            numbers += own
            # Places within the chunk as places in the text.
            for start, stop in zip(own_starts, own_stops, strict=True):
                starts.append(at + start)
                stops.append(at + stop)
            at += len(chunk)
        return Encoding(numbers, np.array(starts, int), np.array(stops, int))

    return functools.partial(_encode, pieces, of_text)


def _encode(
    pieces: Pieces,
    of_text: Callable[[str], Encoding],
    text: str,
    controls: Sequence[Span],
    edges: Sequence[int],
) -> Encoding:
    """An `Encode`, given a vocabulary and what encodes a text without control tokens."""
    parts = []
    for (start, stop), is_control in between(text, controls):
        if is_control:
            name = text[start:stop]
            part = single_id(pieces.control[name], stop - start)
        elif start == 0 and pieces.space_first:
            # The space is no character of the text, whose own come one later here.
            part = of_text(f" {text[:stop]}")
            starts = np.maximum(part.starts - 1, 0)
            stops = np.maximum(part.stops - 1, 0)
            part = Encoding(part.ids, starts, stops)
        else:
            part = of_text(text[start:stop])
        parts.append((start, part))
    return joined(parts)


def decoder(pieces: Pieces) -> Callable[[Sequence[int]], str]:
    """ids -> text; ids that stand for no text (begin, end, beyond the vocabulary) are left out."""
    spelled: dict[int, bytes] = {}
    for number, text in enumerate(pieces.texts):
        if text:
            spelled[number] = text.encode()
    for byte, number in pieces.byte_ids.items():
        spelled[number] = bytes([byte])

    def decode(ids: Sequence[int]) -> str:
        # Joined as bytes: a character may be spelled by several ids.
        written = b"".join(spelled.get(int(number), b"") for number in ids)
        text = written.decode("utf-8", "replace")
        if pieces.space_first:
            return text.removeprefix(" ")
        return text

    return decode


def merge_symbols(text: str, scores: dict[str, float]) -> list[str]:
    """The symbols that `text` comes to, from its n characters.

    With a heap of the neighbours that can be joined it takes O(n log n).
    """
    # A symbol lies at its first character; the places of those joined to it are empty. `left` and
    # `right` are the places of the neighbours, -1 and n beyond the ends.
    n = len(text)
    symbols = list(text)
    left = list(range(-1, n - 1))
    right = list(range(1, n + 1))

    # A heap gives its smallest entry: the highest score, then the leftmost place.
    heap: list[tuple[float, int, str]] = []
    for i, (first_symbol, second_symbol) in enumerate(pairwise(symbols)):
        pair = first_symbol + second_symbol
        if pair in scores:
            heap.append((-scores[pair], i, pair))
    heapify(heap)

    while heap:
        # The best pair, the leftmost of equals, unless one of the two has joined another since.
        _, i, pair = heappop(heap)
        j = right[i]
        if not symbols[i] or j == n or symbols[i] + symbols[j] != pair:
            continue

        # The right one joins the left one, and its place becomes empty.
        symbols[i] = pair
        symbols[j] = ""
        right[i] = right[j]
        if right[i] < n:
            left[right[i]] = i

        # What the new symbol can join on either side.
        for first, second in ((left[i], i), (i, right[i])):
            if first < 0 or second == n:
                continue
            new = symbols[first] + symbols[second]
            if new in scores:
                heappush(heap, (-scores[new], first, new))
    return [symbol for symbol in symbols if symbol]


def _chunker(texts: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Cuts a text where no piece can reach across, so that chunks repeat and can be remembered.

    That is before the spaces of a word and around line ends. A vocabulary that has pieces which
    reach across gets every text whole.
    """

    def whole(text: str) -> list[str]:
        return [text] if text else []

    reaches_across = re.compile(r"[^ ] |\n.|.\n", re.DOTALL)
    if any(reaches_across.search(text) for text in texts):
        return whole
    return re.compile(r"\n| *[^ \n]+| +").findall
