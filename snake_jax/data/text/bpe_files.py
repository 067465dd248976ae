"""Files with a vocabulary for `snake_jax.data.text.scored_bpe`, of two kinds.

`.bin`, the format of llama2.c, which small pretrained models ship with. Little-endian: uint32, the
bytes of the longest piece; then for every id 0, 1, ... to the end of the file: float32 score,
uint32 length in bytes, and the piece in UTF-8. Ids 0, 1, 2 are unknown, begin and end; pieces
`<0x00>` to `<0xFF>` are bytes, for what no piece covers; a space is a space, and one is put before
every text.

`.model`, SentencePiece's own (a protocol buffer): pieces with score and type, and what the model
does to a text first. Only models that change nothing but spaces are read (Llama 1 and 2, Mistral);
others raise UserError.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from snake_jax.data.text.scored_bpe import Pieces
from snake_jax.errors import UserError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# SentencePiece's types of pieces, and its model_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE_TYPE = 1, 2, 3, 4, 6
_BPE = 2
# How a protocol buffer writes a value; those of a fixed size with that size in bytes.
_VARINT, _BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


def read_bin(path: Path) -> Pieces:
    """The vocabulary of a llama2.c tokenizer file.

    Raises:
      UserError: it is none, or damaged.
    """
    data = path.read_bytes()
    try:
        entries = list(_bin_entries(data))
    except (struct.error, UnicodeDecodeError):
        raise UserError(
            f"{path}: is not a llama2.c tokenizer (score, length, piece for each id), or damaged"
        ) from None

    # All of these files have a piece for every byte: what has not is another format.
    byte_ids = {}
    for number, (text, _) in enumerate(entries):
        match = _BYTE.fullmatch(text)
        if match:
            byte_ids[int(match[1], 16)] = number
    if len(entries) < 4 or len(byte_ids) != 256:
        raise UserError(
            f"{path}: is not a llama2.c tokenizer: it has {len(byte_ids)} of 256 byte pieces"
        )

    # Unknown, begin, end and bytes stand for no text.
    silent = {0, 1, 2, *byte_ids.values()}
    texts = []
    for number, (text, _) in enumerate(entries):
        texts.append("" if number in silent else text)
    scores = _scores(texts, [score for _, score in entries])
    return Pieces(
        texts=tuple(texts),
        scores=scores,
        byte_ids=byte_ids,
        bos_id=1,
        eos_id=2,
        unknown_id=0,
        space_first=True,
        control={"<s>": 1, "</s>": 2},
    )


def _bin_entries(data: bytes) -> Iterator[tuple[str, float]]:
    """(piece, score) of every id; see the head of the file for the format."""
    (longest,) = struct.unpack_from("<I", data)
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fI", data, at)
        # A length above the longest is damage: no more is read for it.
        size = min(length, longest)
        (piece,) = struct.unpack_from(f"<{size}s", data, at + 8)
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
    """The vocabulary of a SentencePiece BPE model.

    Raises:
      UserError: it is another kind of model, or none.
    """
    entries, trainer, normalizer = _model_parts(path)

    # Each piece by its kind and text, and what text it stands for: of normal pieces alone.
    by_kind: dict[int, dict[str, int]] = {}
    texts = []
    for number, (text, _, kind) in enumerate(entries):
        of_kind = by_kind.setdefault(kind, {})
        of_kind[text] = number
        written = text.replace("▁", " ")
        texts.append(written if kind == _NORMAL else "")

    # A table of characters to replace, or extra spaces to remove, would change a text.
    changes = normalizer.get(2) or normalizer.get(4, 1)
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

    # A byte's piece is `<0x41>`.
    byte_ids = {}
    for text, number in by_kind.get(_BYTE_TYPE, {}).items():
        byte_ids[int(text[3:5], 16)] = number
    unknown = by_kind.get(_UNKNOWN, {"": 0})
    return Pieces(
        texts=tuple(texts),
        scores=_scores(texts, [score for _, score, _ in entries]),
        byte_ids=byte_ids,
        bos_id=control.get("<s>"),
        eos_id=control["</s>"],
        unknown_id=min(unknown.values()),
        space_first=bool(normalizer.get(3, 1)),
        control=control,
    )


_Piece = tuple[str, float, int]  # text, score, type
_Fields = dict[int, bytes | int]  # of a message, by number


def _model_parts(path: Path) -> tuple[list[_Piece], _Fields, _Fields]:
    """A SentencePiece model's pieces, the fields of its trainer, and those of its normalizer.

    Raises:
      UserError: it cannot be read as one.
    """
    # The model's fields: 1, a piece, many times; 2, how it was trained; 3, what it does to a text.
    pieces = []
    parts: dict[int, bytes] = {}
    trainer: _Fields = {}
    normalizer: _Fields = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                pieces.append(_piece(value))
            parts.setdefault(number, value)
        trainer = dict(_fields(parts.get(2, b"")))
        normalizer = dict(_fields(parts.get(3, b"")))
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, TypeError):
        pieces = []
    if not pieces:
        raise UserError(
            f"{path}: is not a SentencePiece model, or damaged; give a folder with the model's "
            f"tokenizer.json"
        )
    return pieces, trainer, normalizer


def _piece(message: bytes) -> _Piece:
    """(text, score, type) of a piece's message."""
    fields = dict(_fields(message))
    text = fields[1]
    score = fields.get(2, bytes(4))
    kind = fields.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError(fields)
    (number,) = struct.unpack("<f", score)
    return text.decode(), number, kind


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of a protocol buffer's fields: integers, or the bytes of everything else.

    Raises:
      IndexError: the message ends within a field.
      TypeError: a field is of a kind that there is not.
    """
    at = 0
    while at < len(message):
        # A tag is the field's number and, in its lowest three bits, how its value is written.
        tag, at = _varint(message, at)
        number = tag >> 3
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise TypeError(kind)
        stop = at + size
        if stop > len(message):
            raise IndexError(at)
        yield number, message[at:stop]
        at = stop


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first, and where it ends.

    The eighth bit of a byte says that another group follows.
    """
    value = 0
    shift = 0
    while message[at] & 128:
        group = message[at] & 127
        value |= group << shift
        shift += 7
        at += 1
    last = message[at] << shift
    return value | last, at + 1
