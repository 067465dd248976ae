"""Rows as a person reads them: the text that the model sees, with the tokens that train marked."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.data.text.packing import TextRows
from snake_jax.data.text.tokenizers import Tokenizer

BEGIN, END = "⟦", "⟧"
"""Around what trains."""


class Token(NamedTuple):
    """One token of a text, and whether the loss counts how well it is foretold."""

    id: int
    trains: bool


def show(rows: Mapping[int, TextRows], tokenizer: Tokenizer, count: int) -> str:
    """The first texts of the rows, a paragraph each.

    Args:
      rows: `[N, T]` by their length T.
      tokenizer: of their ids.
      count: how many texts.
    """
    paragraphs = list[str]()
    for length, part in rows.items():
        for number in range(len(part.ids)):
            for segment in range(1, int(part.segments[number].max()) + 1):
                if len(paragraphs) == count:
                    return "\n\n".join(paragraphs)
                tokens = text_tokens(part, number, segment)
                trained = sum(token.trains for token in tokens)
                where = f"row {number} of length {length}, text {segment}"
                head = f"{where}: {len(tokens)} tokens, {trained} of them train {BEGIN}so{END}"
                paragraphs.append(f"{head}\n{marked(tokens, tokenizer)}")
    return "\n\n".join(paragraphs)


def text_tokens(rows: TextRows, number: int, segment: int) -> list[Token]:
    """The tokens of one text of a row.

    A column holds a token and the one to foretell after it, so a text is its first token and then
    what every column is to foretell; what follows its last column is no part of it unless it
    trains.
    """
    (columns,) = np.nonzero(rows.segments[number] == segment)
    tokens = [Token(int(rows.ids[number, columns[0]]), False)]
    for column in columns:
        trains = bool(rows.weight[number, column] > 0)
        if column != columns[-1] or trains:
            tokens.append(Token(int(rows.targets[number, column]), trains))
    return tokens


def marked(tokens: Sequence[Token], tokenizer: Tokenizer) -> str:
    """The text of these tokens: what trains between marks, special tokens by their names.

    Neighbours are decoded together, since a character may be of several tokens.
    """
    names = {number: name for name, number in tokenizer.special.items()}
    names.setdefault(tokenizer.eos_id, "<end>")
    if tokenizer.bos_id is not None:
        names.setdefault(tokenizer.bos_id, "<begin>")

    text, waiting, is_open = "", list[int](), False
    for token in tokens:
        is_name = token.id in names
        if is_name or token.trains != is_open:
            text += tokenizer.decode(waiting) if waiting else ""
            waiting = []
        if token.trains != is_open:
            text += BEGIN if token.trains else END
            is_open = token.trains
        if is_name:
            text += names[token.id]
        else:
            waiting.append(token.id)
    text += tokenizer.decode(waiting) if waiting else ""
    return text + END if is_open else text
