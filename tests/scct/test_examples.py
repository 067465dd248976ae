"""Questions as arrays: tokens of the context, spans, answers, and what is too long."""

import dataclasses
import json

import numpy as np
import pytest

from snake_jax.data.text import questions
from snake_jax.data.text.questions import NOWHERE, Answer, Question
from snake_jax.data.text.tokenizers import byte_tokenizer
from snake_jax.errors import UserError
from snake_jax.scct.system import build, evaluate, membership
from snake_jax.scct.system.examples import Reader, encode, read
from snake_jax.scct.system.membership import Presence
from tests.scct.small_systems import SMALL

BYTES = byte_tokenizer()
BEGIN, END = BYTES.bos_id, BYTES.eos_id
CONTEXT = "Tom has a hat."
HAT = Question("0", "t", CONTEXT, "What?", (Answer("hat", 10),))
LIKES = Question("1", "t", CONTEXT, "What do I like?", (Answer("red", NOWHERE),))


def test_a_text_is_question_and_context_and_knows_the_answers_place():
    texts = read([HAT, LIKES], Reader(BYTES, 40))
    ids = [BEGIN, *b"What?", END, *CONTEXT.encode(), END]
    assert texts.ids[0, : len(ids)].tolist() == ids
    assert set(texts.ids[0, len(ids) :].tolist()) == {BYTES.pad_id}
    assert texts.lengths.tolist() == [len(ids), len(ids) + 10]
    assert bytes(texts.ids[0][texts.context[0]].tolist()).decode() == CONTEXT
    assert texts.types[0].sum() == len(CONTEXT) + 1
    first, last = texts.first[0], texts.last[0]
    assert bytes(texts.ids[0, first : last + 1].tolist()) == b"hat"
    assert CONTEXT[texts.starts[0, first] : texts.stops[0, last]] == "hat"
    assert texts.found.tolist() == [1, 0]


def test_a_model_that_writes_reads_the_question_last():
    texts = read([HAT], Reader(BYTES, 40, context_first=True))
    ids = [BEGIN, *CONTEXT.encode(), END, *b"What?", END]
    assert texts.ids[0, : len(ids)].tolist() == ids
    assert bytes(texts.ids[0][texts.context[0]].tolist()).decode() == CONTEXT
    assert bytes(texts.ids[0, texts.first[0] : texts.last[0] + 1].tolist()) == b"hat"


@pytest.mark.parametrize("context_first", [False, True])
def test_what_is_too_long_loses_the_end_of_its_context(context_first):
    texts = read([HAT], Reader(BYTES, 20, context_first))
    assert texts.lengths[0] == 20
    assert bytes(texts.ids[0][texts.context[0]].tolist()) == CONTEXT[:12].encode()
    # Two of the answer's three letters are there: that is not the answer.
    assert texts.found[0] == 0


def test_an_answer_is_foretold_token_by_token_to_its_end():
    words = encode([HAT, LIKES], Reader(BYTES, 40), Reader(BYTES, 40), 5).answers
    assert words.inputs[0, :4].tolist() == [BEGIN, *b"hat"]
    assert words.targets[0, :4].tolist() == [*b"hat", END]
    assert words.weights[0].tolist() == [1, 1, 1, 1, 0]
    stopped = encode([HAT], Reader(BYTES, 40), Reader(BYTES, 40), 5, ".").answers
    assert stopped.targets[0, :4].tolist() == [*b"hat."]
    short = encode([HAT], Reader(BYTES, 40), Reader(BYTES, 40), 2).answers
    assert short.targets[0].tolist() == [*b"ha"]


def test_a_span_becomes_the_contexts_own_characters():
    examples = encode([HAT], Reader(BYTES, 40), Reader(BYTES, 40), 5)
    texts = examples.small
    sure = np.full(texts.ids.shape, -9.0, np.float32)
    start, stop = sure.copy(), sure.copy()
    start[0, texts.first[0]] = stop[0, texts.last[0]] = 9
    assert evaluate._taken(examples, texts, (start, stop)) == ["hat"]


# Files


@pytest.fixture
def articles(tmp_path):
    """Three articles of two contexts with two questions each."""
    asked = []
    for number in range(12):
        context = f"The number {number // 2} is {number // 2}."
        answer = Answer(str(number // 2), 11)
        asked.append(Question(str(number), f"title {number // 4}", context, "Which?", (answer,)))
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(questions.content_of(asked)))
    return file


def test_articles_are_dealt_out_and_whole_contexts_held_out(articles):
    settings = dataclasses.replace(SMALL, data=str(articles), held_out=2, model="tiny-llama")
    system = build.prepare(settings)
    for node, data in enumerate(system.data):
        of_train = {question.context for question in data.train.questions}
        of_test = {question.context for question in data.held_out["questions"].questions}
        assert len(data.train.questions) == len(data.held_out["questions"].questions) == 2
        assert of_train.isdisjoint(of_test)
        assert {question.title for question in data.train.questions} == {f"title {node}"}


def test_too_few_articles_or_nothing_left_to_train_on_is_told(articles):
    settings = dataclasses.replace(SMALL, data=str(articles), model="tiny-llama")
    with pytest.raises(UserError, match="3 articles for --nodes=4"):
        build.prepare(dataclasses.replace(settings, nodes=4))
    with pytest.raises(UserError, match="hold out fewer"):
        build.prepare(dataclasses.replace(settings, held_out=4))


# Who is there


def test_events_say_who_is_there_for_how_long():
    events = membership.parse("drop:1@2.1,leave:0@3,join:0@5,join:2@4", 3, 2)
    table = [membership.presences(events, 3, 2, number) for number in range(1, 6)]
    there, gone = Presence(2, True), Presence(0, True)
    assert [row[0] for row in table] == [there, there, gone, gone, there]
    assert [row[1] for row in table] == [there, Presence(1, False), there, there, there]
    assert [row[2] for row in table] == [gone, gone, gone, there, there]
