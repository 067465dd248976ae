"""From one record (a line of JSON, a row of a hub data set) to a pair: which fields hold what."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from snake_jax.data.text.pair import Pair
from snake_jax.errors import UserError

PROMPTS = ("prompt", "instruction", "question")
CONTEXTS = (
    "input",
    "context",
)  # beside an instruction or a question; added to it after an empty line
RESPONSES = ("response", "chosen", "completion", "output", "answer")
SPLITS = {"train": "train"} | dict.fromkeys(
    ("test", "validation", "valid", "val", "dev", "eval"), "test"
)
_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


class Fields(NamedTuple):
    """Where a data set of known layout keeps its pairs.

    suffix is added to its prompts that lack it; opening is cut off its responses, which repeat it.
    """

    prompt: str
    response: str
    suffix: str = ""
    opening: str = ""


class Record(NamedTuple):
    """A pair and the side it is marked for: "train", "test" or, where there is no mark, ""."""

    pair: Pair
    split: str


def parse(record: Any, where: str, fields: Fields | None = None) -> Record:
    """The pair of a record, with `fields` or with the first of PROMPTS and of RESPONSES that it
    has, or `messages`.

    A prompt or a response may come out empty; callers leave those pairs out. Raises UserError,
    which names `where`, for a record without such fields or with something that is not text in
    them.
    """
    if not isinstance(record, Mapping):
        raise UserError(
            f"{where}: want an object with fields such as prompt and response, not {_shown(record)}"
        )
    split = record.get("split")
    if split is not None and str(split).lower() not in SPLITS:
        raise UserError(
            f"{where}: split {_shown(split)} is unknown; write train or test, or leave the field "
            f"out"
        )
    if "messages" in record and not fields:
        prompt, response = _conversation(record["messages"], where)
    else:
        prompt, response = _prompt_and_response(record, where, fields)
    category = (
        "" if record.get("category") is None else _text(record["category"], "category", where)
    )
    return Record(
        Pair(prompt, response, category), "" if split is None else SPLITS[str(split).lower()]
    )


def _prompt_and_response(
    record: Mapping[str, Any], where: str, fields: Fields | None
) -> tuple[str, str]:
    known = fields or Fields(_first(record, PROMPTS, where), _first(record, RESPONSES, where))
    for name in (known.prompt, known.response):
        if name not in record:
            raise UserError(f"{where}: has no field {name}; it has {_listed(record)}")
    prompt = _text(record[known.prompt], known.prompt, where)
    if not prompt.endswith(known.suffix):
        prompt += known.suffix
    response = (
        _text(record[known.response], known.response, where)
        .strip()
        .removeprefix(known.opening)
        .strip()
    )
    if not fields and known.prompt != "prompt":
        more = [
            _text(record[name], name, where) for name in CONTEXTS if record.get(name) is not None
        ]
        prompt = "\n\n".join([prompt, *(text for text in more if text.strip())])
    return (prompt if prompt.strip() else ""), response


def _conversation(messages: Any, where: str) -> tuple[str, str]:
    """The last turn of the assistant is the response. What is before it is the prompt: the user's
    words where that is one turn, else the turns in the form of the hh-rlhf data (`Human: ...`,
    `Assistant: ...`).
    """
    turns = messages if isinstance(messages, Sequence) and not isinstance(messages, str) else []
    if not turns or not all(
        isinstance(t, Mapping) and {"role", "content"} <= set(t) for t in turns
    ):
        raise UserError(f"{where}: messages must be a list of objects with role and content")
    spoken = [
        (str(turn["role"]), _text(turn["content"], "content", where).strip()) for turn in turns
    ]
    if unknown := [role for role, _ in spoken if role not in ("system", *_SPEAKERS)]:
        raise UserError(f"{where}: role {unknown[0]} is unknown; allowed: system, user, assistant")
    last = max((i for i, (role, _) in enumerate(spoken) if role == "assistant"), default=0)
    if last == 0:
        raise UserError(
            f"{where}: messages hold no answer: a turn of the assistant after one of the user"
        )
    before = spoken[:last]
    if len(before) == 1:
        return before[0][1], spoken[last][1]
    lines = [text if role == "system" else f"{_SPEAKERS[role]}: {text}" for role, text in before]
    return "\n\n".join([*lines, "Assistant:"]), spoken[last][1]


def _first(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    found = next((name for name in names if name in record), "")
    if not found:
        raise UserError(
            f"{where}: has none of the fields {', '.join(names)}; it has {_listed(record)}"
        )
    return found


def _text(value: Any, field: str, where: str) -> str:
    """The value as text that can be encoded: half of a surrogate pair, which JSON can hold, becomes
    a question mark.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: field {field} is not text but {_shown(value)}")
    return value.encode("utf-8", "replace").decode()


def _listed(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record)) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
