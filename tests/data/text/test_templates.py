"""Templates: where the prompt ends, what goes between, how the response ends."""

import pytest

from snake_jax.data.text.pair import Pair
from snake_jax.data.text.templates import messages_of, render, render_prompt
from snake_jax.data.text.tokenizers import byte_tokenizer
from snake_jax.errors import UserError

BYTES = byte_tokenizer()
PAIR = Pair("Why?", "Because.")
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant:"


def marked(messages, open_answer):
    """A chat template as they commonly are: `<role>text;` for a turn."""
    text = "".join(f"<{m['role']}>{m['content']};\n" for m in messages)
    return text + "<assistant>" if open_answer else text


def shown(tokenizer, pair, template):
    """The ids as text, with begin and end as { and }."""
    signs = {256: "{", 257: "}"}
    return tuple(
        "".join(signs.get(i, chr(i)) for i in part) for part in render(pair, tokenizer, template)
    )


def test_plain_puts_the_response_on_the_next_line_between_begin_and_end():
    assert shown(BYTES, PAIR, "plain") == ("{Why?\n", "Because.}")


def test_alpaca_puts_both_under_headings():
    assert shown(BYTES, PAIR, "alpaca") == (
        "{### Instruction:\nWhy?\n\n### Response:\n",
        "Because.}",
    )


def test_chat_closes_the_turn_as_the_template_does():
    chat = BYTES._replace(chat_template=marked)
    assert shown(chat, PAIR, "chat") == ("<user>Why?;\n<assistant>", "Because.;")


def test_auto_is_chat_where_there_is_a_template_and_plain_where_not():
    chat = BYTES._replace(chat_template=marked)
    assert render(PAIR, chat, "auto") == render(PAIR, chat, "chat")
    assert render(PAIR, BYTES, "auto") == render(PAIR, BYTES, "plain")


def test_a_template_that_closes_no_turn_gets_our_end():
    chat = BYTES._replace(
        chat_template=lambda messages, _: "".join(f"[{m['content']}]"[:-1] for m in messages)
    )
    assert shown(chat, PAIR, "chat") == ("[Why?", "[Because.}")


def test_a_tokenizer_without_a_begin_gives_none():
    assert shown(BYTES._replace(bos_id=None), PAIR, "plain")[0] == "Why?\n"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_dialogue_stays_as_it_is(template):
    assert shown(BYTES, Pair(DIALOGUE, "Because."), template) == ("{" + DIALOGUE, " Because.}")


def test_a_tokenizer_that_puts_the_space_itself_gets_no_second_one():
    tokenizer = BYTES._replace(space_first=True)
    assert shown(tokenizer, Pair(DIALOGUE, "Because."), "plain")[1] == "Because.}"


def test_chat_makes_turns_of_a_dialogue():
    assert messages_of("Be kind." + DIALOGUE) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Why?"},
    ]
    assert (
        messages_of(DIALOGUE)
        == messages_of(DIALOGUE.strip())
        == messages_of("Be kind." + DIALOGUE)[1:]
    )


@pytest.mark.parametrize(
    "prompt", ["Is Human: a word?", "Human: Hi", "Write Assistant:", "Human: a Assistant:"]
)
def test_a_prompt_that_only_names_the_speakers_is_no_dialogue(prompt):
    assert messages_of(prompt) == [{"role": "user", "content": prompt}]


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
def test_generation_starts_from_the_ids_that_training_ends_the_prompt_with(template):
    chat = BYTES._replace(chat_template=marked)
    for prompt in (PAIR.prompt, DIALOGUE):
        assert render_prompt(prompt, chat, template) == render(Pair(prompt, "A"), chat, template)[0]


def test_wrong_templates_are_one_line():
    with pytest.raises(
        UserError, match="--template=none is unknown; allowed: auto, plain, alpaca, chat"
    ):
        render(PAIR, BYTES, "none")
    with pytest.raises(
        UserError, match="the tokenizer bytes has no chat template; use --template=plain"
    ):
        render(PAIR, BYTES, "chat")
    unlike = BYTES._replace(chat_template=lambda messages, open_answer: f"{open_answer}{messages}")
    with pytest.raises(UserError, match="cannot be told from the prompt"):
        render(PAIR, unlike, "chat")
