"""Turns in a chat template: where each stands in the rendered text, and what the assistant wrote.

Templates are programs: they may trim a content, leave it out or write it elsewhere. So the turns
are rendered a second time with marks around each content. Where that text without its marks is the
first one, the marks tell the places; else nothing is taken for known.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from snake_jax.data.text.chat_template import Messages
from snake_jax.data.text.encoding import Span, special_spans
from snake_jax.data.text.samples import ASSISTANT, Turn
from snake_jax.data.text.tokenizers import Tokenizer
from snake_jax.errors import UserError

# Around a content stand its number and these characters of Unicode's private use area.
_OPENING, _CLOSING = ("\ue000", "\ue001"), ("\ue002", "\ue003")
_MARK = re.compile("\ue000(\\d+)\ue001|\ue002(\\d+)\ue003")


class ChatText(NamedTuple):
    """A conversation as the template writes it.

    Attributes:
      text: all of it.
      turns: as they were given.
      contents: where each turn's content stands in the text, without white space around it; None
        where that is not known.
    """

    text: str
    turns: tuple[Turn, ...]
    contents: tuple[Span | None, ...]


def finished(turns: Sequence[Turn], tokenizer: Tokenizer) -> ChatText:
    """All turns, as they are trained on."""
    return _rendered(tuple(turns), tokenizer, open_answer=False)


def opened(turns: Sequence[Turn], tokenizer: Tokenizer) -> ChatText:
    """The turns and the beginning of the assistant's next one, as a model is asked."""
    return _rendered(tuple(turns), tokenizer, open_answer=True)


def controls(chat: ChatText, tokenizer: Tokenizer, allow_special_tokens: bool) -> list[Span]:
    """The special tokens in the text that are the template's own, or, where they are allowed, all.

    Raises:
      UserError: a content that spells one stands nobody knows where.
    """
    if allow_special_tokens:
        return special_spans(chat.text, tokenizer.special)
    for turn, place in zip(chat.turns, chat.contents, strict=True):
        spelled = special_spans(turn.content, tokenizer.special)
        if spelled and place is None:
            start, stop = spelled[0]
            raise UserError(
                f"--template=chat: the chat template of {tokenizer.name} rewrites a turn that "
                f"spells the special token {turn.content[start:stop]}, so it cannot be told from "
                f"the template's own; use --template=plain or --allow_special_tokens"
            )

    # Between the contents: so none of a template's tokens reaches into a content.
    found = []
    at = 0
    places = [place for place in chat.contents if place is not None]
    for start, stop in sorted(places):
        found += special_spans(chat.text, tokenizer.special, at, start)
        at = stop
    behind_last = special_spans(chat.text, tokenizer.special, at)
    return found + behind_last


def answers(
    chat: ChatText, numbers: Sequence[int], tokenizer: Tokenizer
) -> tuple[list[Span], bool]:
    """What the assistant writes in the turns `numbers`, and whether the last needs an end.

    That is what the template marks as generated, where it marks something. Else a turn's content
    with what the template puts behind it, from where a model that is asked would begin; where the
    template opens a turn otherwise than it writes a finished one (as reasoning models do), from
    where the content begins.

    Raises:
      UserError: a content is not found.
    """
    template = tokenizer.chat_template
    assert template is not None
    if template.generated is not None:
        generated = template.generated(_messages(chat.turns))
        marked = [(start, stop) for start, stop in generated if start < stop]
        # Of a dialogue that is the prompt of a pair the last answer alone trains.
        roles = [turn.role for turn in chat.turns]
        if len(numbers) < roles.count(ASSISTANT):
            marked = marked[-1:]
        return marked, False

    last = numbers[-1]
    spans: list[Span] = []
    previous = 0
    for number in numbers:
        # Where a model that is asked would begin, if the finished text goes on from there.
        asked = None
        if number:
            prompt = template.render(_messages(chat.turns[:number]), True)
            if prompt and chat.text.startswith(prompt):
                asked = len(prompt)
        span = _answer(chat, number, last, asked, previous, tokenizer)
        spans.append(span)
        _, previous = span

    # The template puts nothing behind the last content where the text ends with it.
    closed = chat.text.rstrip()
    place = chat.contents[last]
    if place is not None:
        return spans, place[1] == len(closed)
    return spans, closed.endswith(chat.turns[last].content.rstrip())


def _answer(
    chat: ChatText,
    number: int,
    last: int,
    asked: int | None,
    previous: int,
    tokenizer: Tokenizer,
) -> Span:
    """What the assistant writes in the turn `number`.

    Args:
      chat: the finished conversation.
      number: of the turn.
      last: number of the last turn.
      asked: the character that a model that is asked would begin at; None where the finished text
        does not go on from what it would be asked.
      previous: where the answer before ended.
      tokenizer: with the template.
    """
    # Of the last answer that is known to go on from its prompt, all that the template writes.
    end_of_text = len(chat.text.rstrip())
    if number == last and asked is not None:
        return asked, end_of_text

    # Marks tell the place; without them a content that stands in the rest of the text once does.
    place = chat.contents[number]
    if place is None:
        core = chat.turns[number].content.strip()
        start = previous if asked is None else asked
        if not core or chat.text.count(core, start) != 1:
            raise UserError(
                f"--template=chat: the chat template of {tokenizer.name} does not open the "
                f"assistant's turn as it writes a finished one, so the response cannot be told "
                f"from the prompt; use --template=plain"
            )
        at = chat.text.index(core, start)
        place = (at, at + len(core))

    # From where a model would begin, to behind what the template closes the turn with.
    start, stop = place
    if asked is not None and asked <= start:
        start = asked
    if number == last:
        return start, end_of_text
    closing = _closing(chat, number, last, stop, tokenizer)
    return start, stop + len(closing)


def _closing(chat: ChatText, number: int, last: int, stop: int, tokenizer: Tokenizer) -> str:
    """What the template puts behind the content of a turn that ends at `stop`.

    That is what it puts behind the last one, or else behind this one where it is the last, or the
    special token there.
    """
    candidates = []
    at_last = chat.contents[last]
    if at_last is not None:
        candidates.append(chat.text[at_last[1] :].rstrip())
    alone = finished(chat.turns[: number + 1], tokenizer)
    at_alone = alone.contents[number]
    if at_alone is not None:
        candidates.append(alone.text[at_alone[1] :].rstrip())
    for closing in candidates:
        if closing and chat.text.startswith(closing, stop):
            return closing
    following = special_spans(chat.text, tokenizer.special, stop)
    if following and following[0][0] == stop:
        _, end = following[0]
        return chat.text[stop:end]
    return ""


def _messages(turns: Sequence[Turn]) -> Messages:
    """Turns as templates read them."""
    return [turn._asdict() for turn in turns]


def _rendered(turns: tuple[Turn, ...], tokenizer: Tokenizer, open_answer: bool) -> ChatText:
    """The turns as the template writes them, and where their contents stand."""
    template = tokenizer.chat_template
    assert template is not None
    text = template.render(_messages(turns), open_answer)
    unknown = ChatText(text, turns, (None,) * len(turns))
    try:
        marked = template.render(_messages(_marked(turns)), open_answer)
    except UserError:
        return unknown  # a template that checks what a content looks like

    # The text between the marks, and where in it each mark stood.
    pieces = []
    length = at = 0
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for mark in _MARK.finditer(marked):
        piece = marked[at : mark.start()]
        pieces.append(piece)
        length += len(piece)
        at = mark.end()
        opening, closing = mark.groups()
        if opening is not None:
            begins.setdefault(int(opening), []).append(length)
        else:
            ends.setdefault(int(closing), []).append(length)
    pieces.append(marked[at:])
    if "".join(pieces) != text:
        return unknown

    # A content that is written twice, or half, has no place.
    contents: list[Span | None] = []
    for number in range(len(turns)):
        begin = begins.get(number, [])
        end = ends.get(number, [])
        place = None
        if len(begin) == len(end) == 1 and begin[0] <= end[0]:
            place = (begin[0], end[0])
        contents.append(place)
    return ChatText(text, turns, tuple(contents))


def _marked(turns: Sequence[Turn]) -> list[Turn]:
    """With marks around each content, inside its white space, which templates may trim."""
    marked = []
    for number, turn in enumerate(turns):
        core = turn.content.strip()
        if not core:
            marked.append(turn)
            continue
        before, after = turn.content.split(core, maxsplit=1)
        opening = f"{_OPENING[0]}{number}{_OPENING[1]}"
        closing = f"{_CLOSING[0]}{number}{_CLOSING[1]}"
        marked.append(Turn(turn.role, f"{before}{opening}{core}{closing}{after}"))
    return marked
