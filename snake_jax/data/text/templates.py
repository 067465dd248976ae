"""From a pair to the ids a model reads: where the prompt ends, what goes between, how the response
ends.

Prompt and response are encoded apart, so the ids of a prompt are the same in training and in
generation, and no id lies on both sides of the border.
"""

import re

from snake_jax.data.text.pair import Pair
from snake_jax.data.text.tokenizers import Messages, Tokenizer
from snake_jax.errors import UserError

TEMPLATES = ("auto", "plain", "alpaca", "chat")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def render(pair: Pair, tokenizer: Tokenizer, template: str = "auto") -> tuple[list[int], list[int]]:
    """(prompt ids, response ids): begin first where the tokenizer has one, end last.

    `plain` puts the response on the line after the prompt, `alpaca` under the headings "###
    Instruction:" and "### Response:" (without the preamble of the Alpaca data), `chat` into the
    turns of the tokenizer's chat template; `auto` is `chat` where there is a template, else
    `plain`. A prompt in the form of the hh-rlhf data (turns "Human:" and "Assistant:", the last one
    open) is left as it is by all but `chat`, which makes messages of its turns.

    Raises UserError for an unknown template, and for `chat` where the tokenizer has none.
    """
    prompt_ids, tail = _prompt(pair.prompt, tokenizer, template)
    if tail:
        return prompt_ids, _chat_response(pair, tokenizer)
    gap = " " if is_dialogue(pair.prompt) and not tokenizer.space_first else ""
    return prompt_ids, [*tokenizer.encode(gap + pair.response), tokenizer.eos_id]


def render_prompt(prompt: str, tokenizer: Tokenizer, template: str = "auto") -> list[int]:
    """The ids after which the model is to write its response, as `render` gives them."""
    return _prompt(prompt, tokenizer, template)[0]


def is_dialogue(prompt: str) -> bool:
    """Whether the prompt is in the form of the hh-rlhf data: turns of "Human:" and "Assistant:",
    the last one open.
    """
    text = f"\n\n{prompt.strip()}"
    return "\n\nHuman:" in text and text.endswith("\n\nAssistant:")


def messages_of(prompt: str) -> Messages:
    """The turns of a dialogue, without the open one, or the whole prompt as one turn of the
    user.
    """
    if not is_dialogue(prompt):
        return [{"role": "user", "content": prompt}]
    opening, *parts = _TURN.split(prompt.strip())
    turns = [
        {"role": _ROLES[s], "content": t.strip()}
        for s, t in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [{"role": "system", "content": opening.strip()}] * bool(opening.strip()) + turns[:-1]


def _prompt(prompt: str, tokenizer: Tokenizer, template: str) -> tuple[list[int], bool]:
    """The prompt's ids, and whether they come from the chat template."""
    if template not in TEMPLATES:
        raise UserError(f"--template={template} is unknown; allowed: {', '.join(TEMPLATES)}")
    if template == "chat" and tokenizer.chat_template is None:
        raise UserError(
            f"--template=chat: the tokenizer {tokenizer.name} has no chat template; use "
            f"--template=plain"
        )
    if tokenizer.chat_template and template in ("auto", "chat"):
        return tokenizer.encode(tokenizer.chat_template(messages_of(prompt), True)), True
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if is_dialogue(prompt):
        text = prompt.rstrip()
    else:
        text = (
            f"### Instruction:\n{prompt}\n\n### Response:\n"
            if template == "alpaca"
            else f"{prompt}\n"
        )
    return [*begin, *tokenizer.encode(text)], False


def _chat_response(pair: Pair, tokenizer: Tokenizer) -> list[int]:
    """What the template puts after the opened turn: the response and its end mark, or our end where
    it has none.
    """
    assert tokenizer.chat_template is not None
    messages = messages_of(pair.prompt)
    opened = tokenizer.chat_template(messages, True)
    whole = tokenizer.chat_template(
        [*messages, {"role": "assistant", "content": pair.response}], False
    )
    if not whole.startswith(opened):
        raise UserError(
            f"--template=chat: the chat template of {tokenizer.name} does not open the "
            f"assistant's turn as it writes a "
            "finished one, so the response cannot be told from the prompt; use --template=plain"
        )
    closed = whole[len(opened) :].rstrip()
    ids = tokenizer.encode(closed)
    unmarked = closed.endswith(pair.response.rstrip())
    return [*ids, tokenizer.eos_id] if unmarked and ids[-1:] != [tokenizer.eos_id] else ids
