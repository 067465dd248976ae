"""What text data is made of: pairs, conversations and whole texts, each of a category."""

from typing import NamedTuple

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class Turn(NamedTuple):
    """What one speaker says: `role` is SYSTEM, USER or ASSISTANT."""

    role: str
    content: str


class Pair(NamedTuple):
    """The model reads `prompt` and is to write `response`."""

    prompt: str
    response: str
    category: str = ""


class Conversation(NamedTuple):
    """The model is to write every turn of the assistant; the last turn is one of those."""

    turns: tuple[Turn, ...]
    category: str = ""


class Document(NamedTuple):
    """The model is to write all of `text` (continued pre-training)."""

    text: str
    category: str = ""


Sample = Pair | Conversation | Document
"""One training or test example."""


def question(sample: Sample) -> str:
    """What decides on which side of the hold-out a sample lies, with single spaces.

    The prompt of a pair; of a conversation all that comes before its first answer, since every
    answer trains; a document itself.
    """
    if isinstance(sample, Pair):
        text = sample.prompt
    elif isinstance(sample, Document):
        text = sample.text
    else:
        spoken: list[str] = []
        for turn in sample.turns:
            if turn.role == ASSISTANT and spoken:
                break
            spoken.append(turn.content)
        text = " ".join(spoken)
    return " ".join(text.split())


def has_text(sample: Sample) -> bool:
    """Whether there is something to read and something to write."""
    if isinstance(sample, Pair):
        return bool(sample.prompt.strip()) and bool(sample.response.strip())
    if isinstance(sample, Document):
        return bool(sample.text.strip())
    return bool(sample.turns[-1].content.strip())
