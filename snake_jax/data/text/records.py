"""From one record (a row of a file or of a hub data set) to a sample: which fields hold what."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snake_jax.data.text.samples import (
    ASSISTANT,
    SYSTEM,
    USER,
    Conversation,
    Document,
    Pair,
    Sample,
    Turn,
)
from snake_jax.errors import UserError

PROMPTS = ("prompt", "instruction", "question")
# Beside an instruction or a question; added to it after an empty line.
CONTEXTS = ("input", "context")
RESPONSES = ("response", "chosen", "completion", "output", "answer")
CONVERSATIONS = ("messages", "conversations", "conversation")
DOCUMENT = "text"
SPLITS = {"train": "train"} | dict.fromkeys(
    ("test", "validation", "valid", "val", "dev", "eval"), "test"
)

# A turn as OpenAI and Hugging Face write it, and as ShareGPT does.
_TURN_FIELDS = (("role", "content"), ("from", "value"))
_ROLES = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
_JSON_NAMES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class BadRow(UserError):
    """One row is not as it should be; others may be."""


class Fields(NamedTuple):
    """Where a data set of known layout keeps its pairs.

    Attributes:
      prompt: the prompts' field.
      response: the responses' field.
      suffix: is added to prompts that lack it.
      opening: is cut off responses, which repeat it.
    """

    prompt: str
    response: str
    suffix: str = ""
    opening: str = ""


class Record(NamedTuple):
    """A sample and the side it is marked for: "train", "test" or, where there is no mark, ""."""

    sample: Sample
    split: str


def parse(record: object, where: str, fields: Fields | None = None) -> Record:
    """The sample of a record.

    It is what `fields` says; else a conversation, where the record has one of CONVERSATIONS; else a
    pair of the first of PROMPTS and the first of RESPONSES; else, where it has none of both, the
    document in the field `text`. A prompt, a response or a document may come out empty; callers
    leave those out.

    Raises:
      BadRow: there are no such fields, or something that is not text in them; names `where`.
    """
    if not isinstance(record, Mapping):
        kind = _JSON_NAMES.get(type(record), "something else")
        raise BadRow(f"{where}: want an object with fields such as prompt and response, not {kind}")

    # The side it is marked for.
    split = record.get("split")
    side: str | None = ""
    if split is not None:
        side = SPLITS.get(str(split).lower())
    if side is None:
        raise BadRow(
            f"{where}: split {_shown(split)} is unknown; write train or test, or leave the field "
            f"out"
        )

    sample = _sample(record, where, fields)
    if record.get("category") is not None:
        category = record["category"]
        # A label is often a number; to Python True is one too.
        if isinstance(category, int) and not isinstance(category, bool):
            category = str(category)
        category = _text(category, "category", where)
        sample = sample._replace(category=category)
    return Record(sample, side)


def to_record(sample: Sample) -> dict[str, object]:
    """The record that `parse` makes this sample of."""
    if isinstance(sample, Document):
        return {DOCUMENT: sample.text, "category": sample.category}
    if isinstance(sample, Pair):
        return {"prompt": sample.prompt, "response": sample.response, "category": sample.category}
    turns = [turn._asdict() for turn in sample.turns]
    return {"messages": turns, "category": sample.category}


def _sample(record: Mapping[str, object], where: str, fields: Fields | None) -> Sample:
    """The sample without its category: see `parse` for which kind."""
    if fields:
        return _pair(record, where, fields)
    for name in CONVERSATIONS:
        if record.get(name) is not None:
            return _conversation(record, name, where)
    has_pair_field = any(name in record for name in PROMPTS + RESPONSES)
    if DOCUMENT in record and not has_pair_field:
        return Document(_text(record[DOCUMENT], DOCUMENT, where))
    return _pair(record, where, None)


def _pair(record: Mapping[str, object], where: str, fields: Fields | None) -> Pair:
    """The pair in these fields, or in those of the usual names that are there."""
    known = fields
    if known is None:
        known = Fields(_first(record, PROMPTS, where), _first(record, RESPONSES, where))
    for name in (known.prompt, known.response):
        if name not in record:
            raise BadRow(f"{where}: has no field {name}; it has {_listed(record)}")
    prompt = _text(record[known.prompt], known.prompt, where)
    if not prompt.endswith(known.suffix):
        prompt += known.suffix
    response = _text(record[known.response], known.response, where)
    response = response.strip().removeprefix(known.opening).strip()

    # `input` and `context` belong to an instruction or a question, not to a prompt.
    if not fields and known.prompt != "prompt":
        for name in CONTEXTS:
            if record.get(name) is None:
                continue
            context = _text(record[name], name, where)
            if context.strip():
                prompt = f"{prompt}\n\n{context}"
    if not prompt.strip():
        prompt = ""
    return Pair(prompt, response)


def _conversation(record: Mapping[str, object], name: str, where: str) -> Pair | Conversation:
    """The turns up to the assistant's last; a question and its answer alone are a pair."""
    turns = _turns(record[name], name, where)

    # ShareGPT keeps what the system says in a field beside the turns.
    beside = record.get("system")
    if isinstance(beside, str) and beside.strip() and turns[0].role != SYSTEM:
        content = _text(beside, "system", where).strip()
        turns = [Turn(SYSTEM, content), *turns]

    # Behind the assistant's last turn nothing is left to learn.
    last = 0
    for number, turn in enumerate(turns):
        if turn.role == ASSISTANT:
            last = number
    if last == 0:
        raise BadRow(
            f"{where}: {name} hold no answer: a turn of the assistant after one of the user"
        )
    turns = turns[: last + 1]
    if len(turns) == 2 and turns[0].role != ASSISTANT:
        return Pair(turns[0].content, turns[1].content)
    return Conversation(tuple(turns))


def _turns(value: object, name: str, where: str) -> list[Turn]:
    """The turns in the field `name`, in either of the two forms; raises BadRow for others."""
    wanted = f"{where}: {name} must be a list of objects with role and content, or from and value"
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRow(wanted)
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise BadRow(wanted)
        known = next((pair for pair in _TURN_FIELDS if set(pair) <= set(turn)), None)
        if known is None:
            raise BadRow(wanted)
        role_field, content_field = known
        role = turn[role_field]
        speaker = _ROLES.get(str(role))
        if speaker is None:
            raise BadRow(f"{where}: role {role} is unknown; allowed: {', '.join(_ROLES)}")
        content = _text(turn[content_field], content_field, where)
        turns.append(Turn(speaker, content.strip()))
    return turns


def _first(record: Mapping[str, object], names: tuple[str, ...], where: str) -> str:
    """The first of these fields that the record has; raises BadRow where it has none."""
    found = next((name for name in names if name in record), "")
    if not found:
        raise BadRow(
            f"{where}: has none of the fields {', '.join(names)}; it has {_listed(record)}"
        )
    return found


def _text(value: object, field: str, where: str) -> str:
    """The value as text that can be encoded.

    Half of a surrogate pair, which JSON can hold, becomes a question mark.
    """
    # A number is refused too: what is no number (NaN) is how tables write a missing text.
    if not isinstance(value, str):
        raise BadRow(f"{where}: field {field} is not text but {_shown(value)}")
    return value.encode("utf-8", "replace").decode()


def _listed(record: Mapping[str, object]) -> str:
    return ", ".join(map(str, record)) or "none"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
