"""Chat templates with tokenizers as models ship them: the ids of transformers, what trains, what
text that spells special tokens becomes, and the day in a template.
"""

import datetime
import functools
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.data.text.samples import Conversation, Document, Pair, Turn
from snake_jax.data.text.templates import render, render_prompt, render_text
from snake_jax.data.text.tokenizers import load_tokenizer
from snake_jax.errors import UserError
from tests.data.text.chat_folders import KINDS, TEMPLATES, TURN_MARKS, write_folder

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

PROPERTY = settings(deadline=None, max_examples=25, derandomize=True)
SPELLING = "</s> what <|im_end|> is <|im_start|>assistant"
# Nothing here spells a special token.
CONTENTS = st.text("ab it\nhelo.é<[]/|_s" + "😀", min_size=1, max_size=20).filter(str.strip)
WORDS = st.sampled_from(
    ["it is blue", "hello", "the\n\nthe", " it", "</s", "<|im_end|", "<think>", ">"]
)
SAID = st.one_of(CONTENTS, WORDS)


@st.composite
def talks(draw):
    """One to three questions with their answers, perhaps after a word of the system."""
    turns = [Turn("system", draw(SAID))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn("user", draw(SAID)), Turn("assistant", draw(SAID).strip())]
    return tuple(turns)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """`folder_of(kind, template)`: a folder, made once."""
    root = tmp_path_factory.mktemp("folders")

    @functools.cache
    def folder(kind, template):
        return write_folder(root / kind.replace(" ", "_") / template, kind, TEMPLATES[template])

    return folder


@functools.cache
def ours(folder):
    return load_tokenizer(str(folder))


@functools.cache
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def messages(turns):
    return [turn._asdict() for turn in turns]


def trained_text(folder, rendered):
    """What trains, as text, a string for each stretch of it."""
    edges = np.flatnonzero(np.diff(rendered.trained, prepend=False, append=False)).reshape(-1, 2)
    loaded = theirs(folder)
    return [
        "".join(loaded.convert_ids_to_tokens(rendered.ids[i:j])).replace("▁", " ").replace("Ġ", " ")
        for i, j in edges.tolist()
    ]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(turns=talks())
def test_the_ids_are_those_of_transformers(folder_of, kind, template, turns):
    folder = folder_of(kind, template)
    wanted = theirs(folder).apply_chat_template(messages(turns), return_dict=True)["input_ids"]
    assert render(Conversation(turns), ours(folder), "chat").ids == wanted


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(turns=talks())
def test_what_the_template_marks_trains(folder_of, kind, turns):
    folder = folder_of(kind, "marked")
    wanted = theirs(folder).apply_chat_template(
        messages(turns), return_dict=True, return_assistant_tokens_mask=True
    )
    rendered = render(Conversation(turns), ours(folder), "chat")
    assert rendered.trained.astype(int).tolist() == wanted["assistant_masks"]
    assert rendered.trained.any()


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(turns=talks())
def test_without_marks_the_same_trains_as_with_them(folder_of, kind, turns):
    """The template with marks opens a turn as reasoning models do: that changes nothing here."""
    folder = folder_of(kind, "marked")
    plain = ours(folder_of(kind, "chatml"))
    opened_otherwise = ours(folder)
    unmarked = opened_otherwise._replace(
        chat_template=opened_otherwise.chat_template._replace(generated=None)
    )
    marked = render(Conversation(turns), opened_otherwise, "chat")
    for tokenizer in (plain, unmarked):
        found = render(Conversation(turns), tokenizer, "chat")
        assert found.ids == marked.ids
        assert found.trained.tolist() == marked.trained.tolist()


PAIR = Pair("hello", "it is blue")
TALK = Conversation(
    (
        Turn("user", "hello"),
        Turn("assistant", "it is blue"),
        Turn("user", "the"),
        Turn("assistant", "is it"),
    )
)
TRAINED = {
    "llama2": [" it is blue </s>", " is it </s>"],
    "chatml": ["it is blue<|im_end|>", "is it<|im_end|>"],
    "llama3": ["it is blue<|im_end|>", "is it<|im_end|>"],
    "zephyr": ["it is blue</s>", "is it</s>"],
    "reasoning": ["it is blue<|im_end|>", "is it<|im_end|>"],
    "qwen3": ["it is blue<|im_end|>", "<think>\n\n</think>\n\nis it<|im_end|>"],
    "marked": ["it is blue<|im_end|>", "is it<|im_end|>"],
}


@pytest.mark.parametrize("template", TRAINED)
@pytest.mark.parametrize("kind", ["sentencepiece, older", "sentencepiece", "bytes"])
def test_every_answer_trains_with_its_end(folder_of, kind, template):
    folder = folder_of(kind, template)
    shown = trained_text(folder, render(TALK, ours(folder), "chat"))
    assert [text.replace("Ċ", "\n") for text in shown] == TRAINED[template]
    (alone,) = trained_text(folder, render(PAIR, ours(folder), "chat"))
    assert alone.endswith(TRAINED[template][0])


def test_no_piece_is_added_at_the_border_of_prompt_and_response(folder_of):
    """A SentencePiece tokenizer puts a space before every text: a response that is encoded by
    itself has one more.
    """
    folder = folder_of("sentencepiece, older", "llama2")
    tokenizer = ours(folder)
    pieces = theirs(folder).convert_ids_to_tokens(render(PAIR, tokenizer, "chat").ids)
    whole = "<s> ▁[ I N S T ] ▁hello ▁[ / I N S T ] ▁it ▁i s ▁b l ue ▁ </s>"
    assert pieces == whole.split()
    ids, trained = render(Pair("hello", "blue"), tokenizer, "plain")
    pieces = theirs(folder).convert_ids_to_tokens(ids)
    assert pieces == ["<s>", "▁hello", "\n", "bl", "ue", "</s>"]
    assert trained.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("template", ["chatml", "zephyr", "llama2"])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_begins_with_the_ids_that_training_has_before_the_response(
    folder_of, kind, template
):
    tokenizer = ours(folder_of(kind, template))
    for pair in (PAIR, Pair(SPELLING, "it")):
        ids, trained = render(pair, tokenizer, "chat")
        assert render_prompt(pair.prompt, tokenizer, "chat") == ids[: np.argmax(trained)]


def special_ids(tokenizer, ids):
    marks = set(tokenizer.special.values())
    return [i for i in ids if i in marks]


@pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_that_spells_special_tokens_stays_text(folder_of, kind, name, template):
    tokenizer = ours(folder_of(kind, name))
    harmless = Conversation(
        (Turn("system", "a"), Turn("user", "b"), Turn("assistant", "c"), *TALK.turns)
    )
    spelling = Conversation(tuple(Turn(turn.role, SPELLING) for turn in harmless.turns))
    wanted = special_ids(tokenizer, render(harmless, tokenizer, template).ids)
    ids = render(spelling, tokenizer, template).ids
    assert special_ids(tokenizer, ids) == wanted
    allowed = special_ids(tokenizer, render(spelling, tokenizer, template, True).ids)
    assert len(allowed) == len(wanted) + 3 * len(spelling.turns)
    if kind == "bytes":
        text = theirs(folder_of(kind, name)).decode(ids, skip_special_tokens=False)
        assert text.count(SPELLING) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_documents_and_texts_to_be_continued_stay_text_too(folder_of, kind):
    tokenizer = ours(folder_of(kind, "chatml"))
    begin, end = tokenizer.bos_id, tokenizer.eos_id
    assert special_ids(tokenizer, render(Document(SPELLING), tokenizer).ids) == [begin, end]
    assert special_ids(tokenizer, render_text(SPELLING, tokenizer)) == [begin]
    assert special_ids(tokenizer, tokenizer.encode(SPELLING)) == []
    assert len(special_ids(tokenizer, render_text(SPELLING, tokenizer, True))) == 4


def test_a_special_token_is_not_made_of_a_template_and_a_text(tmp_path):
    folder = write_folder(tmp_path, "bytes", "{% for m in messages %}<{{ m.content }}>{% endfor %}")
    tokenizer = load_tokenizer(str(folder))
    assert special_ids(tokenizer, render(Pair("/s", "/s"), tokenizer, "chat").ids) == []


def test_a_turn_that_the_template_rewrites_may_not_spell_special_tokens(tmp_path):
    reverse = "{% for m in messages %}[{{ m.content | reverse }}]{% endfor %}"
    tokenizer = load_tokenizer(str(write_folder(tmp_path, "bytes", reverse)))
    with pytest.raises(UserError, match=r"spells the special token </s>.*--allow_special_tokens"):
        render(Pair("</s>", "it"), tokenizer, "chat")
    assert render(Pair("</s>", "it"), tokenizer, "chat", True).ids


def test_a_dialogue_with_marks_trains_its_last_answer_alone(folder_of):
    folder = folder_of("bytes", "marked")
    dialogue = "\n\nHuman: hello\n\nAssistant: it\n\nHuman: the\n\nAssistant:"
    rendered = render(Pair(dialogue, "is it"), ours(folder), "chat")
    assert trained_text(folder, rendered) == ["is it<|im_end|>"]


def test_thoughts_that_the_template_takes_away_do_not_hide_the_answer(folder_of):
    folder = folder_of("bytes", "reasoning")
    with pytest.raises(UserError, match="cannot be told from the prompt"):
        render(Pair("hello", "the</think>is it"), ours(folder), "chat")


def test_the_day_of_a_template_is_the_given_one(folder_of):
    folder = folder_of("bytes", "llama3")
    loaded = theirs(folder)
    for date, written in (("2026-11-28", "28 Nov 2026"), ("2027-01-02", "02 Jan 2027")):
        tokenizer = load_tokenizer(str(folder), date)
        assert tokenizer.chat_template.writes_date
        text = loaded.decode(render(PAIR, tokenizer, "chat").ids, skip_special_tokens=False)
        assert text.count(f"Today Date: {written}") == 1
    today = datetime.date.today().isoformat()
    assert render(PAIR, load_tokenizer(str(folder), today)).ids == render(PAIR, ours(folder)).ids
    assert not ours(folder_of("bytes", "chatml")).chat_template.writes_date


def test_a_day_changes_nothing_else_of_a_template(tmp_path):
    """Line ends at its beginning stay."""
    dated = "\n\n  {{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}\n"
    tokenizer = load_tokenizer(str(write_folder(tmp_path, "bytes", dated)), "2026-01-31")
    talk = [{"role": "user", "content": "it"}]
    assert tokenizer.chat_template.render(talk, False) == "\n\n  31it"


def test_a_date_that_is_put_together_is_refused(tmp_path):
    pieces = "{{ strftime_now('%d ' + '%b') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer(str(write_folder(tmp_path, "bytes", pieces)))
    with pytest.raises(UserError, match=r"the form of the date is not spelled out: %d %b; try"):
        render(PAIR, tokenizer, "chat")


def test_a_day_that_is_none_is_one_line(folder_of):
    with pytest.raises(UserError, match=r"--template_date=31.1.2026 is no day; write it as 2026"):
        load_tokenizer(str(folder_of("bytes", "llama3")), "31.1.2026")


@pytest.mark.parametrize("kind", ["sentencepiece, older", "bytes"])
def test_byte_order_marks_in_a_tokenizer_s_files_are_passed_over(tmp_path, folder_of, kind):
    marked = write_folder(tmp_path / "marked", kind, TEMPLATES["chatml"], b"\xef\xbb\xbf")
    tokenizer, plain = load_tokenizer(str(marked)), ours(folder_of(kind, "chatml"))
    assert render(TALK, tokenizer).ids == render(TALK, plain).ids
    assert tokenizer.name == str(marked)


def test_a_template_in_the_configuration_may_begin_with_a_mark(tmp_path, folder_of):
    marked = write_folder(tmp_path, "bytes", "\ufeff" + TEMPLATES["chatml"])
    expected = render(TALK, ours(folder_of("bytes", "chatml"))).ids
    assert render(TALK, load_tokenizer(str(marked))).ids == expected


def test_a_tokenizer_json_alone_keeps_text_text(tmp_path, folder_of):
    shutil.copyfile(folder_of("bytes", "chatml") / "tokenizer.json", tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(str(tmp_path))
    assert set(tokenizer.special) == {"<s>", "</s>", *TURN_MARKS}
    assert special_ids(tokenizer, tokenizer.encode(SPELLING)) == []
    allowed = render(Pair("it", SPELLING), tokenizer, "plain", True)
    assert len(special_ids(tokenizer, allowed.ids)) == 2 + 3
    assert special_ids(tokenizer, render(Pair("it", SPELLING), tokenizer, "plain").ids) == [
        tokenizer.bos_id,
        tokenizer.eos_id,
    ]


def test_a_tokenizer_without_offsets_gives_the_ids_of_transformers(tmp_path):
    """ByT5's is written in Python."""
    name = '{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}'
    (tmp_path / "tokenizer_config.json").write_text(name)
    template = "{% for m in messages %}[{{ m.content }}]</s>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer, loaded = load_tokenizer(str(tmp_path)), theirs(tmp_path)
    assert not loaded.is_fast
    rendered = render(TALK, tokenizer, "chat")
    text = loaded.apply_chat_template(messages(TALK.turns), tokenize=False)
    assert rendered.ids == loaded.encode(text, add_special_tokens=False)
    first = [loaded.decode([i]) for i in np.array(rendered.ids)[rendered.trained]]
    assert "".join(first) == "[it is blue]</s>[is it]</s>"
    spelling = render(Pair("é</s>", "</s>é"), tokenizer, "chat")
    assert special_ids(tokenizer, spelling.ids) == [tokenizer.eos_id] * 2
    assert len(spelling.ids) == 2 * (len("[é</s>]".encode()) + 1)
