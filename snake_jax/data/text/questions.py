"""Questions on texts, in the JSON format of SQuAD v1.1: reading, checking, writing.

"SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv 1606.05250). The file holds
articles of paragraphs of questions: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"id",
"question", "answers": [{"text", "answer_start"}]}]}]}]}`. One addition: `answer_start` is -1 where
an answer does not stand in its context.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snake_jax.errors import UserError

NOWHERE = -1
"""Where an answer begins that does not stand in its context."""
_GZIP = b"\x1f\x8b"


class Answer(NamedTuple):
    """A right answer.

    Attributes:
      text: what it says.
      start: the character of the context at which it begins; NOWHERE: it is not in the context.
    """

    text: str
    start: int


class Question(NamedTuple):
    """A question on a text.

    Attributes:
      id: of its own in the data set.
      title: of the article.
      context: the text.
      question: what is asked.
      answers: right ones, each as good as the other; at least one.
    """

    id: str
    title: str
    context: str
    question: str
    answers: tuple[Answer, ...]


def read(path: str | Path) -> list[Question]:
    """The questions of a file in SQuAD's format, plain or gzip, in its order.

    Raises:
      UserError: there is no such file, it is no JSON or not in that format, an id stands twice, or
        an answer is not where it should be; the line names the place.
    """
    path = Path(path)
    content = _content(path)
    questions = list(_questions(path, content))
    if not questions:
        raise UserError(f"{path}: no question in it; want SQuAD's format, version 1.1")
    seen = set[str]()
    for question in questions:
        if question.id in seen:
            raise UserError(f"{path}: the id {question.id} stands twice: give each its own")
        seen.add(question.id)
    return questions


def content_of(questions: Sequence[Question]) -> dict[str, Any]:
    """The questions as the JSON of a file; those of one title, and of one context, together."""
    articles: dict[str, dict[str, list[Question]]] = {}
    for question in questions:
        paragraphs = articles.setdefault(question.title, {})
        paragraphs.setdefault(question.context, []).append(question)
    data = []
    for title, paragraphs in articles.items():
        written = []
        for context, asked in paragraphs.items():
            written.append({"context": context, "qas": [_entry(one) for one in asked]})
        data.append({"title": title, "paragraphs": written})
    return {"version": "1.1", "data": data}


def _entry(question: Question) -> dict[str, Any]:
    answers = [{"text": one.text, "answer_start": one.start} for one in question.answers]
    return {"id": question.id, "question": question.question, "answers": answers}


def _content(path: Path) -> Mapping[str, Any]:
    """The JSON object that a file holds."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        plain = gzip.decompress(packed) if packed.startswith(_GZIP) else packed
        content = json.loads(plain.decode("utf-8-sig"))  # with a byte order mark or not
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is no JSON, plain or gzip: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: want SQuAD's format, an object with data; this is no object")
    return content


def _questions(path: Path, content: Mapping[str, Any]) -> Iterator[Question]:
    """All questions of a file, each with what stands around it."""
    articles = _field(content, "data", list, f"{path}")
    for number, article in enumerate(articles):
        where = f"{path}: data[{number}]"
        title = _field(article, "title", str, where)
        for index, paragraph in enumerate(_field(article, "paragraphs", list, where)):
            here = f"{where}.paragraphs[{index}]"
            context = _field(paragraph, "context", str, here)
            for place, entry in enumerate(_field(paragraph, "qas", list, here)):
                yield _question(entry, title, context, f"{here}.qas[{place}]")


def _question(entry: object, title: str, context: str, where: str) -> Question:
    """One question, its answers checked against the context."""
    answers = []
    for index, given in enumerate(_field(entry, "answers", list, where)):
        here = f"{where}.answers[{index}]"
        answer = Answer(_field(given, "text", str, here), _field(given, "answer_start", int, here))
        stop = answer.start + len(answer.text)
        if answer.start != NOWHERE and context[max(answer.start, 0) : stop] != answer.text:
            raise UserError(
                f"{here}: {answer.text!r} does not stand at character {answer.start} of its "
                f"context; -1 where it is not in it"
            )
        answers.append(answer)
    if not answers:
        raise UserError(f"{where}.answers is empty: give at least one right answer")
    identity = _field(entry, "id", str, where)
    question = _field(entry, "question", str, where)
    return Question(identity, title, context, question, tuple(answers))


def _field(holder: object, name: str, kind: type, where: str) -> Any:
    """What an object holds under this name."""
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {list: "an array", str: "a string", int: "a whole number"}
        raise UserError(f"{where}: want {name}, {words[kind]}, as in SQuAD's format")
    return value
