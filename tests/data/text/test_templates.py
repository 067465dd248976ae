"""Templates: where the prompt ends, what goes between, how the response ends, what trains."""

from itertools import pairwise

import numpy as np
import pytest

from snake_jax.data.text.chat_template import ChatTemplate
from snake_jax.data.text.samples import Conversation, Document, Pair, Turn
from snake_jax.data.text.templates import messages_of, render, render_prompt, render_text
from snake_jax.data.text.tokenizers import byte_tokenizer
from snake_jax.errors import UserError

BYTES = byte_tokenizer()
PAIR = Pair("Why?", "Because.")
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant:"
TALK = Conversation(
    (
        Turn("system", "Be kind."),
        Turn("user", "Hi"),
        Turn("assistant", "Hello!"),
        Turn("user", "Why?"),
        Turn("assistant", "Because."),
    )
)


def marked(messages, open_answer):
    """A chat template as they commonly are: `<role>text;` for a turn."""
    text = "".join(f"<{m['role']}>{m['content']};\n" for m in messages)
    return text + "<assistant>" if open_answer else text


def with_template(render):
    return BYTES._replace(chat_template=ChatTemplate(render))


CHAT = with_template(marked)


def text_of(ids):
    """The ids as text, with begin and end as { and }."""
    signs = {256: "{", 257: "}"}
    return "".join(signs.get(i, chr(i)) for i in ids)


def shown(tokenizer, sample, template):
    """The ids as text, cut where what is trained begins or ends; begins with what is not."""
    ids, trained = render(sample, tokenizer, template)
    assert len(ids) == len(trained)
    cuts = np.flatnonzero(np.diff(trained, prepend=False, append=False)).tolist()
    edges = [0, *cuts, len(ids)]
    parts = tuple(text_of(ids[i:j]) for i, j in pairwise(edges))
    return parts if parts[-1] else parts[:-1]


def test_plain_puts_the_response_on_the_next_line_between_begin_and_end():
    assert shown(BYTES, PAIR, "plain") == ("{Why?\n", "Because.}")


def test_alpaca_puts_both_under_headings():
    assert shown(BYTES, PAIR, "alpaca") == (
        "{### Instruction:\nWhy?\n\n### Response:\n",
        "Because.}",
    )


def test_chat_closes_the_turn_as_the_template_does():
    assert shown(CHAT, PAIR, "chat") == ("<user>Why?;\n<assistant>", "Because.;", "\n")


def test_auto_is_chat_where_there_is_a_template_and_plain_where_not():
    assert shown(CHAT, PAIR, "auto") == shown(CHAT, PAIR, "chat") != shown(CHAT, PAIR, "plain")
    assert shown(BYTES, PAIR, "auto") == shown(BYTES, PAIR, "plain")


def test_a_template_that_closes_no_turn_gets_our_end():
    chat = with_template(lambda messages, _: "".join(f"[{m['content']}]"[:-1] for m in messages))
    assert shown(chat, PAIR, "chat") == ("[Why?", "[Because.}")


def test_a_tokenizer_without_a_begin_gives_none():
    assert shown(BYTES._replace(bos_id=None), PAIR, "plain")[0] == "Why?\n"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_dialogue_stays_as_it_is(template):
    assert shown(BYTES, Pair(DIALOGUE, "Because."), template) == ("{" + DIALOGUE, " Because.}")


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_conversation_becomes_a_dialogue_whose_answers_all_train(template):
    assert shown(BYTES, TALK, template) == (
        "{Be kind.\n\nHuman: Hi\n\nAssistant:",
        " Hello!",
        "\n\nHuman: Why?\n\nAssistant:",
        " Because.}",
    )


def test_in_a_chat_template_all_answers_train_with_their_ends():
    assert shown(CHAT, TALK, "chat") == (
        "<system>Be kind.;\n<user>Hi;\n<assistant>",
        "Hello!;",
        "\n<user>Why?;\n<assistant>",
        "Because.;",
        "\n",
    )


def test_of_a_pair_with_a_dialogue_the_response_alone_trains():
    expected = "<user>Hi;\n<assistant>Hello!;\n<user>Why?;\n<assistant>", "Because.;", "\n"
    assert shown(CHAT, Pair(DIALOGUE, "Because."), "chat") == expected


@pytest.mark.parametrize("template", ["auto", "plain", "alpaca", "chat"])
def test_a_document_is_in_no_template_and_trains_whole(template):
    assert shown(CHAT, Document("It is."), template) == ("{", "It is.}")
    nothing_before = CHAT._replace(bos_id=None)
    assert shown(nothing_before, Document("It is."), template) == ("I", "t is.}")


def test_a_text_to_be_continued_has_a_begin_and_no_more():
    assert text_of(render_text("Once", BYTES)) == "{Once"
    assert text_of(render_text("Once", BYTES._replace(bos_id=None))) == "Once"


def think(messages, open_answer):
    """As reasoning models have it: what opens a turn is not what a finished one begins with."""
    text = "".join(f"<{m['role']}>{m['content']};\n" for m in messages)
    return text + "<assistant><think>\n" if open_answer else text


def test_a_response_is_found_where_the_template_opens_a_turn_otherwise():
    assert shown(with_template(think), PAIR, "chat") == (
        "<user>Why?;\n<assistant>",
        "Because.;",
        "\n",
    )
    assert shown(with_template(think), TALK, "chat")[1::2] == ("Hello!;", "Because.;")


def think_in_the_last(messages, open_answer):
    """A finished last turn gets a block that earlier ones have not (Qwen 3)."""
    text = ""
    for number, m in enumerate(messages):
        block = "(think)" if number == len(messages) - 1 and m["role"] == "assistant" else ""
        text += f"<{m['role']}>{block}{m['content']};\n"
    return text + "<assistant>" if open_answer else text


def test_what_the_template_puts_before_an_answer_trains_where_it_is_put():
    assert shown(with_template(think_in_the_last), TALK, "chat")[1::2] == (
        "Hello!;",
        "(think)Because.;",
    )


def test_a_response_that_stands_in_the_text_twice_is_not_guessed():
    """The template quotes the answer before it, so marks do not tell which is which."""

    def quoting(messages, open_answer):
        text = "".join(f"[{m['content']}] {m['content']};" for m in messages)
        return text + "?" if open_answer else text

    with pytest.raises(UserError, match="cannot be told from the prompt; use --template=plain"):
        render(PAIR, with_template(quoting), "chat")


def test_answers_that_the_template_changes_are_found_by_their_place():
    def loud(messages, open_answer):
        return marked([{**m, "content": m["content"].upper()} for m in messages], open_answer)

    assert shown(with_template(loud), PAIR, "chat")[1] == "BECAUSE.;"
    assert shown(with_template(loud), TALK, "chat")[1::2] == ("HELLO!;", "BECAUSE.;")


def test_an_answer_without_a_place_is_refused_unless_it_follows_the_opened_turn():
    def backwards(messages, open_answer):
        return marked([{**m, "content": m["content"][::-1]} for m in messages], open_answer)

    assert shown(with_template(backwards), PAIR, "chat")[1] == ".esuaceB;"
    with pytest.raises(UserError, match="cannot be told from the prompt"):
        render(TALK, with_template(backwards), "chat")


def test_chat_makes_turns_of_a_dialogue():
    assert messages_of("Be kind." + DIALOGUE) == (
        Turn("system", "Be kind."),
        Turn("user", "Hi"),
        Turn("assistant", "Hello!"),
        Turn("user", "Why?"),
    )
    assert (
        messages_of(DIALOGUE)
        == messages_of(DIALOGUE.strip())
        == messages_of("Be kind." + DIALOGUE)[1:]
    )


@pytest.mark.parametrize(
    "prompt", ["Is Human: a word?", "Human: Hi", "Write Assistant:", "Human: a Assistant:"]
)
def test_a_prompt_that_only_names_the_speakers_is_no_dialogue(prompt):
    assert messages_of(prompt) == (Turn("user", prompt),)


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
def test_generation_starts_from_the_ids_that_training_ends_the_prompt_with(template):
    for prompt in (PAIR.prompt, DIALOGUE):
        ids, trained = render(Pair(prompt, "A"), CHAT, template)
        assert render_prompt(prompt, CHAT, template) == ids[: np.argmax(trained)]


def test_wrong_templates_are_one_line():
    with pytest.raises(
        UserError, match="--template=none is unknown; allowed: auto, plain, alpaca, chat"
    ):
        render(PAIR, BYTES, "none")
    with pytest.raises(
        UserError, match="the tokenizer bytes has no chat template; use --template=plain"
    ):
        render(PAIR, BYTES, "chat")
    unlike = with_template(lambda messages, open_answer: f"{open_answer}{len(messages)}")
    with pytest.raises(UserError, match="cannot be told from the prompt"):
        render(PAIR, unlike, "chat")
    with pytest.raises(
        UserError, match="--allow_special_tokens: the tokenizer bytes has no special tokens"
    ):
        render(PAIR, BYTES, "plain", allow_special_tokens=True)
