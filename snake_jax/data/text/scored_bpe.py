"""Byte-pair encoding by scores, as SentencePiece's BPE models do it: of all neighbours that join to
a piece, those of the highest score are joined first, the leftmost of equals. It serves two kinds of
file.

`.bin`, the format of llama2.c, which small pretrained models ship with. Little-endian: uint32, the
bytes of the longest piece; then for every id 0, 1, ... to the end of the file: float32 score,
uint32 length in bytes, and the piece in UTF-8. Ids 0, 1, 2 are unknown, begin and end; pieces
`<0x00>` to `<0xFF>` are bytes, for what no piece covers; a space is a space, and one is put before
every text.

`.model`, SentencePiece's own (a protocol buffer): pieces with score and type, and what the model
does to a text first. Only models that change nothing but spaces are read (Llama 1 and 2, Mistral);
others raise UserError.
"""

import functools
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snake_jax.data.text.encoding import Encode, Encoding, Span, between, joined
from snake_jax.errors import UserError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# SentencePiece's types of pieces, and its model_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE_TYPE = 1, 2, 3, 4, 6
_BPE = 2


class Pieces(NamedTuple):
    """A vocabulary. texts `[V]`: by id, with spaces as spaces, "" for what stands for no text;
    byte_ids: id of every byte that has one; scores: of the texts; space_first: whether a space is
      put before every text; control: ids of begin and end by the name that a template writes.
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
            starts += [at + start for start in own_starts]
            stops += [at + stop for stop in own_stops]
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
    parts = []
    for (start, stop), is_control in between(text, controls):
        if is_control:
            number = [pieces.control[text[start:stop]]]
            part = Encoding(number, np.array([0]), np.array([stop - start]))
        elif start == 0 and pieces.space_first:
            # The space is no character of the text, whose own come one later here.
            part = of_text(f" {text[:stop]}")
            starts, stops = np.maximum(part.starts - 1, 0), np.maximum(part.stops - 1, 0)
            part = Encoding(part.ids, starts, stops)
        else:
            part = of_text(text[start:stop])
        parts.append((start, part))
    return joined(parts)


def decoder(pieces: Pieces) -> Callable[[Sequence[int]], str]:
    """ids -> text; ids that stand for no text (begin, end, beyond the vocabulary) are left out."""
    spelled = {i: text.encode() for i, text in enumerate(pieces.texts) if text}
    spelled |= {i: bytes([byte]) for byte, i in pieces.byte_ids.items()}

    def decode(ids: Sequence[int]) -> str:
        text = b"".join(spelled.get(int(i), b"") for i in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if pieces.space_first else text

    return decode


def merge_symbols(text: str, scores: dict[str, float]) -> list[str]:
    """The symbols that `text` comes to, from its characters: O(n log n), with a heap of the
    joinable neighbours.
    """
    # A symbol lies at its first character; the places of those joined to it are empty. `left` and
    # `right` are the places of the neighbours, -1 and n beyond the ends.
    n = len(text)
    symbols = list(text)
    left = list(range(-1, n - 1))
    right = list(range(1, n + 1))
    heap: list[tuple[float, int, str]] = []
    for i, pair in enumerate(map("".join, pairwise(symbols))):
        if pair in scores:
            heap.append((-scores[pair], i, pair))
    heapify(heap)
    while heap:
        # The best pair, the leftmost of equals, unless one of the two has joined another since.
        _, i, pair = heappop(heap)
        j = right[i]
        if not symbols[i] or j == n or symbols[i] + symbols[j] != pair:
            continue
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
    """Cuts where no piece can reach across, before the spaces of a word and around line ends, so
    that chunks repeat and can be remembered; a vocabulary that has such pieces gets every text
    whole.
    """
    if any(re.search(r"[^ ] |\n.|.\n", text, re.DOTALL) for text in texts):
        return lambda text: [text] if text else []
    return re.compile(r"\n| *[^ \n]+| +").findall


def read_bin(path: Path) -> Pieces:
    """The vocabulary of a llama2.c tokenizer file. Raises UserError where it is none."""
    data = path.read_bytes()
    try:
        entries = list(_bin_entries(data))
    except (struct.error, UnicodeDecodeError):
        raise UserError(
            f"{path}: is not a llama2.c tokenizer (score, length, piece for each id), or damaged"
        ) from None
    byte_ids = {}
    for number, (text, _) in enumerate(entries):
        if match := _BYTE.fullmatch(text):
            byte_ids[int(match[1], 16)] = number
    if len(entries) < 4 or len(byte_ids) != 256:
        raise UserError(
            f"{path}: is not a llama2.c tokenizer: it has {len(byte_ids)} of 256 byte pieces"
        )
    silent = {0, 1, 2, *byte_ids.values()}
    texts = tuple("" if i in silent else text for i, (text, _) in enumerate(entries))
    scores = _scores(texts, [score for _, score in entries])
    control = {"<s>": 1, "</s>": 2}
    return Pieces(texts, scores, byte_ids, 1, 2, 0, space_first=True, control=control)


def _bin_entries(data: bytes) -> Iterator[tuple[str, float]]:
    """(piece, score) of every id."""
    (longest,) = struct.unpack_from("<I", data)
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fI", data, at)
        (piece,) = struct.unpack_from(f"<{min(length, longest)}s", data, at + 8)
        yield piece.decode(), score
        at += 8 + length


def _scores(texts: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Of a text that several ids stand for, the score of the first."""
    found: dict[str, float] = {}
    for text, score in zip(texts, scores, strict=True):
        if text:
            found.setdefault(text, score)
    return found


def read_model(path: Path) -> Pieces:
    """The vocabulary of a SentencePiece BPE model. Raises UserError for other models, and for what
    is none.
    """
    # The model's fields: 1, a piece, many times; 2, how it was trained; 3, what it does to a text.
    entries: list[tuple[str, float, int]] = []
    parts: dict[int, bytes] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                entries.append(_piece(value))
            parts.setdefault(number, value)
        trainer = dict(_fields(parts.get(2, b"")))
        normalizer = dict(_fields(parts.get(3, b"")))
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, TypeError):
        entries = []
    if not entries:
        raise UserError(
            f"{path}: is not a SentencePiece model, or damaged; give a folder with the model's "
            f"tokenizer.json"
        )
    # A table of characters to replace, or extra spaces to remove, would change a text.
    changes = normalizer.get(2) or normalizer.get(4, 1)
    by_kind: dict[int, dict[str, int]] = {}
    texts = []
    for number, (text, _, kind) in enumerate(entries):
        by_kind.setdefault(kind, {})[text] = number
        texts.append(text.replace("▁", " ") if kind == _NORMAL else "")
    if trainer.get(3, 1) != _BPE or changes or _USER_DEFINED in by_kind:
        raise UserError(
            f"{path}: a SentencePiece model of a kind not read here; give a folder with its "
            f"tokenizer.json"
        )
    control = by_kind.get(_CONTROL, {})
    if "</s>" not in control:
        raise UserError(
            f"{path}: has no end of text </s>; give a folder with the model's tokenizer.json"
        )
    byte_ids = {int(text[3:5], 16): i for text, i in by_kind.get(_BYTE_TYPE, {}).items()}
    return Pieces(
        texts=tuple(texts),
        scores=_scores(texts, [score for _, score, _ in entries]),
        byte_ids=byte_ids,
        bos_id=control.get("<s>"),
        eos_id=control["</s>"],
        unknown_id=min(by_kind.get(_UNKNOWN, {"": 0}).values()),
        space_first=bool(normalizer.get(3, 1)),
        control=control,
    )


def _piece(message: bytes) -> tuple[str, float, int]:
    """(text, score, type) of a piece's message."""
    fields = dict(_fields(message))
    text, score, kind = fields[1], fields.get(2, bytes(4)), fields.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError(fields)
    return text.decode(), struct.unpack("<f", score)[0], kind


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of the fields of a protocol buffer: integers, or the bytes of everything
    else.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise TypeError(kind)
        if kind == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}[kind]
        if at + size > len(message):
            raise IndexError(at)
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first, and where it ends."""
    value = shift = 0
    while message[at] & 128:
        value |= (message[at] & 127) << shift
        shift += 7
        at += 1
    return value | message[at] << shift, at + 1
