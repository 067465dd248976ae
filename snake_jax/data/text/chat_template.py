"""The chat template of a tokenizer's folder: from messages to the text that the model was made for.

A template is a program in Jinja, which the package transformers runs. Some write the day's date
(Llama 3: "Today Date"), through a function `strftime_now`: here that is a given day, so that the
text of a run does not change at midnight.
"""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from snake_jax.data.text.encoding import Span
from snake_jax.errors import UserError

Messages = Sequence[Mapping[str, str]]
"""Turns, each with `role` and `content`."""

_CLOCK = "strftime_now"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STRING = re.compile(r"'([^'\n]*%[^'\n]*)'|\"([^\"\n]*%[^\"\n]*)\"")
# Put before a template that asks for the time. The line end behind it is the block's, not text.
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}"
    "{{ dates[format] if format in dates else "
    "raise_exception('the form of the date is not spelled out: ' ~ format) }}"
    "{% endmacro %}\n"
)


class ChatTemplate(NamedTuple):
    """A tokenizer's chat template, on one day.

    Attributes:
      render: (messages, whether the assistant's turn is to be opened) -> text.
      generated: messages -> spans of the rendered text that the template marks as the assistant's
        (`{% generation %}`); None where it marks nothing.
      writes_date: whether the text depends on the day.
    """

    render: Callable[[Messages, bool], str]
    generated: Callable[[Messages], list[Span]] | None = None
    writes_date: bool = False


def day_of(date: str) -> datetime.date:
    """The day that `--template_date` names; empty: today.

    Raises:
      UserError: it names none.
    """
    if not date:
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(date)
    except ValueError:
        raise UserError(
            f"--template_date={date} is no day; write it as 2026-01-31, or leave it out for today"
        ) from None


def read_chat_template(loaded: Any, folder: str, date: str) -> ChatTemplate | None:
    """The template that belongs to a tokenizer of transformers, or None where it has none.

    What the template refuses (roles, the order of turns) becomes a UserError of one line.

    Args:
      loaded: the tokenizer.
      folder: where it is from.
      date: of which day, as 2026-01-31; empty: today.
    """
    if not loaded.chat_template:
        return None
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    # A template that asks for the time is given the dates of one day, not those of the clock.
    template = loaded.get_chat_template().removeprefix("\ufeff")
    writes_date = _CLOCK in template
    day = day_of(date)
    given: dict[str, Any] = {}
    if writes_date:
        given["dates"] = _spelled(template, day)
        template = _FIXED_CLOCK + template
    failure = f"--tokenizer={folder}: its chat template fails"

    def render(messages: Messages, open_answer: bool) -> str:
        try:
            return loaded.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=open_answer,
                **given,
            )
        except TemplateError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{failure}: {reason}; try --template=plain") from None

    def generated(messages: Messages) -> list[Span]:
        # The library renders several conversations at once, and gives each one's spans.
        conversation = [dict(message) for message in messages]
        rendered: Any = render_jinja_template(
            conversations=[conversation],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**loaded.special_tokens_map, **given},
        )
        _, (spans,) = rendered
        return [(start, stop) for start, stop in spans]

    marks = generated if _GENERATION.search(template) else None
    return ChatTemplate(render, marks, writes_date)


def _spelled(template: str, day: datetime.date) -> dict[str, str]:
    """The day in every form that the template spells out: its strings with a percent sign."""
    moment = datetime.datetime.combine(day, datetime.time())
    dates = {}
    for single, double in _STRING.findall(template):
        form = single or double
        try:
            dates[form] = moment.strftime(form)
        except ValueError:
            continue  # a string that is no form of a date
    return dates
