"""Questions as arrays: what each of the two models reads, and the answers.

A text is the question and its context, padded at the end. The large model that generates reads the
context first, so that the question is nearest to the answer; all else reads the question first, as
BERT is trained to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.data.text.questions import NOWHERE, Answer, Question
from snake_jax.data.text.tokenizers import Tokenizer
from snake_jax.errors import UserError

_MULTIPLE = 8  # of the width of arrays, so that there are few shapes


class PaddedTexts(NamedTuple):
    """M texts as one model reads them.

    Attributes:
      ids: `[M, P]` int32.
      lengths: `[M]` int32.
      types: `[M, P]` int32, 1 where a token is of the second part.
      context: `[M, P]` bool, tokens of the context.
      starts: `[M, P]` int32, the context's character that a token of it begins at.
      stops: `[M, P]` int32, the one after its last.
      first: `[M]` int32, the answer's first token, 0 where it is none of them.
      last: `[M]` int32, its last.
      found: `[M]` float32, 1 where the answer's tokens are there.
    """

    ids: np.ndarray
    lengths: np.ndarray
    types: np.ndarray
    context: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    first: np.ndarray
    last: np.ndarray
    found: np.ndarray


class Words(NamedTuple):
    """M answers as the large model writes them: inputs, targets and weights, `[M, A]` each."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class DeviceExamples(NamedTuple):
    """Questions of one device, all for one purpose.

    Attributes:
      questions: M of them.
      small: as the small model reads them.
      large: as the large one does.
      answers: of the large one.
    """

    questions: tuple[Question, ...]
    small: PaddedTexts
    large: PaddedTexts
    answers: Words


class Reader(NamedTuple):
    """How a model reads questions.

    Attributes:
      tokenizer: its own.
      length: tokens at most; what is too long loses the end of its context.
      context_first: whether the question stands last.
    """

    tokenizer: Tokenizer
    length: int
    context_first: bool = False


def encode(
    questions: Sequence[Question], small: Reader, large: Reader, max_answer: int, end: str = ""
) -> DeviceExamples:
    """Questions as both models read them, and answers that end as `end_id` says."""
    return DeviceExamples(
        tuple(questions),
        read(questions, small),
        read(questions, large),
        _answers(questions, large.tokenizer, max_answer, end_id(large.tokenizer, end)),
    )


def read(questions: Sequence[Question], reader: Reader) -> PaddedTexts:
    """All questions' texts."""
    width = -(-reader.length // _MULTIPLE) * _MULTIPLE
    count = len(questions)
    texts = PaddedTexts(
        ids=np.full((count, width), reader.tokenizer.pad_id, np.int32),
        lengths=np.zeros(count, np.int32),
        types=np.zeros((count, width), np.int32),
        context=np.zeros((count, width), bool),
        starts=np.zeros((count, width), np.int32),
        stops=np.zeros((count, width), np.int32),
        first=np.zeros(count, np.int32),
        last=np.zeros(count, np.int32),
        found=np.zeros(count, np.float32),
    )
    for row, question in enumerate(questions):
        _write(texts, row, question, reader)
    return texts


def start_id(tokenizer: Tokenizer) -> int:
    """The token that an answer begins after."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def end_id(tokenizer: Tokenizer, end: str) -> int:
    """The token that ends an answer: the last of this text, or the end of text where it is empty.

    Raises:
      UserError: the text has no token.
    """
    if not end:
        return tokenizer.eos_id
    ids = tokenizer.encode(end)
    if not ids:
        raise UserError(f"--answer_end={end}: has no token; give a full stop, or leave it empty")
    return ids[-1]


def _write(texts: PaddedTexts, row: int, question: Question, reader: Reader) -> None:
    """One question's row."""
    tokenizer, answer = reader.tokenizer, question.answers[0]
    exact = [] if answer.start == NOWHERE else [answer.start, answer.start + len(answer.text)]
    encoded = tokenizer.encode_spans(question.context, (), exact)
    asked = tokenizer.encode(question.question)

    # Begin, one part, end, the other part, end; a long context gives way.
    room = max(reader.length - len(asked) - 3, 0)
    told = encoded.ids[:room]
    begin, end = start_id(tokenizer), tokenizer.eos_id
    parts = (told, asked) if reader.context_first else (asked, told)
    ids = [begin, *parts[0], end, *parts[1], end][: reader.length]
    texts.ids[row, : len(ids)] = ids
    texts.lengths[row] = len(ids)
    second = len(parts[0]) + 2
    texts.types[row, second : len(ids)] = 1

    # Where the context's tokens are, and which of them are the answer's.
    at = 1 if reader.context_first else second
    stop = min(at + len(told), len(ids))
    texts.context[row, at:stop] = True
    texts.starts[row, at:stop] = encoded.starts[: stop - at]
    texts.stops[row, at:stop] = encoded.stops[: stop - at]
    _mark(texts, row, answer, at, stop)


def _mark(texts: PaddedTexts, row: int, answer: Answer, at: int, stop: int) -> None:
    """The answer's tokens among those from `at` to `stop`."""
    if answer.start == NOWHERE:
        return
    begins, ends = answer.start, answer.start + len(answer.text)
    overlaps = (texts.starts[row, at:stop] < ends) & (texts.stops[row, at:stop] > begins)
    (inside,) = np.nonzero(overlaps)
    if inside.size and texts.stops[row, at + inside[-1]] >= ends:
        texts.first[row] = at + inside[0]
        texts.last[row] = at + inside[-1]
        texts.found[row] = 1


def _answers(questions: Sequence[Question], tokenizer: Tokenizer, longest: int, end: int) -> Words:
    """Right answers; one of more than `longest` tokens, its end among them, is cut."""
    shape = (len(questions), longest)
    inputs = np.full(shape, tokenizer.pad_id, np.int32)
    targets = np.full(shape, tokenizer.pad_id, np.int32)
    weights = np.zeros(shape, np.float32)
    for row, question in enumerate(questions):
        ids = [*tokenizer.encode(question.answers[0].text), end][:longest]
        targets[row, : len(ids)] = ids
        inputs[row, : len(ids)] = [start_id(tokenizer), *ids[:-1]]
        weights[row, : len(ids)] = 1
    return Words(inputs, targets, weights)
