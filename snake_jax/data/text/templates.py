"""From a sample to the ids a model reads, and which of them it is to learn to write.

A sample becomes one text, which is encoded whole; offsets say which ids are the response's.
(Encoded apart, prompt and response would have other ids at the border than the whole has, which is
what the model was pretrained on and what other programs train on.)
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.data.text import conversations
from snake_jax.data.text.conversations import ChatText
from snake_jax.data.text.encoding import Span, covering, special_spans
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
from snake_jax.data.text.tokenizers import Tokenizer
from snake_jax.errors import UserError

TEMPLATES = ("auto", "plain", "alpaca", "chat")

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": USER, "Assistant": ASSISTANT}
_SPEAKERS = {role: speaker for speaker, role in _ROLES.items()}


class Rendered(NamedTuple):
    """ids of a text, and `trained` bool `[len(ids)]`: those that the model is to write."""

    ids: list[int]
    trained: np.ndarray


def render(
    sample: Sample,
    tokenizer: Tokenizer,
    template: str = "auto",
    allow_special_tokens: bool = False,
) -> Rendered:
    """The ids of a sample.

    `plain` puts the response on the line after the prompt, `alpaca` under the headings "###
    Instruction:" and "### Response:" (without the preamble of the Alpaca data), both between begin
    and end; `chat` puts it into the turns of the tokenizer's chat template; `auto` is `chat` where
    there is a template, else `plain`. Of a pair the response is trained, of a conversation every
    turn of the assistant, each with its end mark.

    A prompt in the form of the hh-rlhf data (turns "Human:" and "Assistant:", the last one open) is
    left as it is by all but `chat`, which makes messages of its turns; a conversation gets that
    form from all but `chat`. A document is put in no template: begin, text, end, all trained but
    the first id, which nothing is before.

    Args:
      sample: what to render.
      tokenizer: whose ids to give.
      template: one of TEMPLATES.
      allow_special_tokens: whether a special token that the sample's own text spells becomes that
        token's id; else it stays text.

    Raises:
      UserError: an unknown template, `chat` where the tokenizer has none, or one that the response
        cannot be found in.
    """
    check_template(template, tokenizer)
    check_special_tokens(allow_special_tokens, tokenizer)

    # A document is in no template.
    begin = _begin(tokenizer)
    if isinstance(sample, Document):
        ids = _encoded(sample.text, tokenizer, allow_special_tokens)
        whole = [*begin, *ids, tokenizer.eos_id]
        trained = np.ones(len(whole), bool)
        trained[0] = False
        return Rendered(whole, trained)
    if _is_chat(template, tokenizer):
        return _render_chat(sample, tokenizer, allow_special_tokens)

    # Encoded whole; offsets, exact at the edges, say which ids are the responses'.
    text, spans = _written(sample, template)
    controls = []
    if allow_special_tokens:
        controls = special_spans(text, tokenizer.special)
    encoding = tokenizer.encode_spans(text, controls, _edges(spans))
    ids = [*begin, *encoding.ids, tokenizer.eos_id]
    of_text = covering(encoding, spans)
    untrained = np.zeros(len(begin), bool)
    trained = np.concatenate([untrained, of_text, [True]])
    return Rendered(ids, trained)


def render_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    template: str = "auto",
    allow_special_tokens: bool = False,
) -> list[int]:
    """The ids after which the model is to write its response, as `render` begins with them."""
    check_template(template, tokenizer)
    check_special_tokens(allow_special_tokens, tokenizer)
    if _is_chat(template, tokenizer):
        chat = conversations.opened(messages_of(prompt), tokenizer)
        controls = conversations.controls(chat, tokenizer, allow_special_tokens)
        return tokenizer.encode_spans(chat.text, controls, ()).ids
    text = _prompt_text(prompt, template)
    return [*_begin(tokenizer), *_encoded(text, tokenizer, allow_special_tokens)]


def render_text(text: str, tokenizer: Tokenizer, allow_special_tokens: bool = False) -> list[int]:
    """The ids of a text that is to be continued as it stands."""
    check_special_tokens(allow_special_tokens, tokenizer)
    return [*_begin(tokenizer), *_encoded(text, tokenizer, allow_special_tokens)]


def check_template(template: str, tokenizer: Tokenizer) -> None:
    """Raises UserError for an unknown template, and for `chat` without one."""
    if template not in TEMPLATES:
        raise UserError(f"--template={template} is unknown; allowed: {', '.join(TEMPLATES)}")
    if template == "chat" and tokenizer.chat_template is None:
        raise UserError(
            f"--template=chat: the tokenizer {tokenizer.name} has no chat template; use "
            f"--template=plain"
        )


def check_special_tokens(allow_special_tokens: bool, tokenizer: Tokenizer) -> None:
    """Raises UserError where special tokens are allowed and no text can spell one."""
    if allow_special_tokens and not tokenizer.special:
        raise UserError(
            f"--allow_special_tokens: the tokenizer {tokenizer.name} has no special tokens that a "
            f"text can spell; leave it out"
        )


def writes_date(template: str, tokenizer: Tokenizer) -> bool:
    """Whether texts in this template depend on the day."""
    chat = tokenizer.chat_template
    return _is_chat(template, tokenizer) and chat is not None and chat.writes_date


def is_dialogue(prompt: str) -> bool:
    """Whether the prompt is in the form of the hh-rlhf data.

    That is turns of "Human:" and "Assistant:", the last one open.
    """
    text = f"\n\n{prompt.strip()}"
    return "\n\nHuman:" in text and text.endswith("\n\nAssistant:")


def messages_of(prompt: str) -> tuple[Turn, ...]:
    """The turns of a dialogue without the open one, or the whole prompt as one turn of the user."""
    if not is_dialogue(prompt):
        return (Turn(USER, prompt),)
    opening, *parts = _TURN.split(prompt.strip())
    turns = []
    if opening.strip():
        turns.append(Turn(SYSTEM, opening.strip()))
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        turns.append(Turn(_ROLES[speaker], said.strip()))
    return tuple(turns[:-1])


def _is_chat(template: str, tokenizer: Tokenizer) -> bool:
    return tokenizer.chat_template is not None and template in ("auto", "chat")


def _begin(tokenizer: Tokenizer) -> list[int]:
    """What a text begins with: one id or none."""
    if tokenizer.bos_id is None:
        return []
    return [tokenizer.bos_id]


def _edges(spans: Sequence[Span]) -> list[int]:
    """The characters at which spans begin and end, in their order."""
    edges = []
    for start, stop in spans:
        edges += [start, stop]
    return edges


def _encoded(text: str, tokenizer: Tokenizer, allow_special_tokens: bool) -> list[int]:
    """The ids of a text alone; special tokens that it spells only where they are allowed."""
    controls = []
    if allow_special_tokens:
        controls = special_spans(text, tokenizer.special)
    return tokenizer.encode_spans(text, controls, ()).ids


def _prompt_text(prompt: str, template: str) -> str:
    """What stands before the response, in all but the chat template."""
    if is_dialogue(prompt):
        return prompt.rstrip()
    if template == "alpaca":
        return f"### Instruction:\n{prompt}\n\n### Response:\n"
    return f"{prompt}\n"


def _written(sample: Pair | Conversation, template: str) -> tuple[str, list[Span]]:
    """The text in all but the chat template, and the spans that are trained."""
    if isinstance(sample, Pair):
        prompt = _prompt_text(sample.prompt, template)
        # A dialogue's response begins with a space, behind "Assistant:".
        response = sample.response
        if is_dialogue(sample.prompt):
            response = f" {response}"
        text = prompt + response
        return text, [(len(prompt), len(text))]

    # A conversation in the form of the hh-rlhf data.
    text = ""
    spans = []
    for turn in sample.turns:
        if text:
            text += "\n\n"
        if turn.role == SYSTEM:
            text += turn.content
            continue
        text += f"{_SPEAKERS[turn.role]}:"
        start = len(text)
        text += f" {turn.content}"
        if turn.role == ASSISTANT:
            spans.append((start, len(text)))
    return text, spans


def _render_chat(
    sample: Pair | Conversation, tokenizer: Tokenizer, allow_special_tokens: bool
) -> Rendered:
    """The ids of a sample in the tokenizer's chat template."""
    # Which turns are trained: of a pair the response alone.
    if isinstance(sample, Pair):
        turns = (*messages_of(sample.prompt), Turn(ASSISTANT, sample.response))
        answers: Sequence[int] = [len(turns) - 1]
    else:
        turns = sample.turns
        answers = [number for number, turn in enumerate(turns) if turn.role == ASSISTANT]
    chat: ChatText = conversations.finished(turns, tokenizer)
    spans, needs_end = conversations.answers(chat, answers, tokenizer)
    controls = conversations.controls(chat, tokenizer, allow_special_tokens)
    text = chat.text
    if needs_end:
        text = text.rstrip()
    encoding = tokenizer.encode_spans(text, controls, _edges(spans))
    ids = encoding.ids
    trained = covering(encoding, spans)

    # A template that closes no turn would never teach the model to end.
    if needs_end and ids[-1:] != [tokenizer.eos_id]:
        return Rendered([*ids, tokenizer.eos_id], np.append(trained, True))
    return Rendered(ids, trained)
