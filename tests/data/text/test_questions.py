"""Questions in SQuAD's format, their scores, and the set made for personalisation."""

import gzip
import json

import pytest

from snake_jax.data.text import answer_scores, personal, questions
from snake_jax.data.text.questions import NOWHERE, Answer, Question
from snake_jax.errors import UserError

CONTEXT = "Ann has a red hat. Bob is in the park."
TWO = [
    Question("1", "Hats", CONTEXT, "What has Ann?", (Answer("a red hat", 8), Answer("hat", 14))),
    Question("2", "Hats", CONTEXT, "What do I like?", (Answer("tea", NOWHERE),)),
]


def written(path, content=None):
    content = questions.content_of(TWO) if content is None else content
    path.write_text(json.dumps(content))
    return path


def test_what_is_written_is_read(tmp_path):
    assert questions.read(written(tmp_path / "plain.json")) == TWO


def test_gzip_and_a_byte_order_mark_are_read(tmp_path):
    text = json.dumps(questions.content_of(TWO))
    path = tmp_path / "packed.json.gz"
    path.write_bytes(gzip.compress(text.encode("utf-8-sig")))
    assert questions.read(path) == TWO


def changed(change):
    content = questions.content_of(TWO)
    paragraph = content["data"][0]["paragraphs"][0]
    change(content, paragraph, paragraph["qas"][0])
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, p, q: c.pop("data"), "want data, an array"),
        (lambda c, p, q: c["data"].clear(), "no question in it"),
        (lambda c, p, q: c["data"][0].pop("title"), r"data\[0\]: want title, a string"),
        (lambda c, p, q: p.update(context=None), r"paragraphs\[0\]: want context, a string"),
        (lambda c, p, q: q.update(id=7), r"qas\[0\]: want id, a string"),
        (lambda c, p, q: q.update(answers=[]), r"qas\[0\].answers is empty"),
        (
            lambda c, p, q: q["answers"][1].update(answer_start=3),
            r"answers\[1\]: 'hat' does not stand at character 3",
        ),
        (
            lambda c, p, q: q["answers"][1].update(answer_start=-3),
            r"answers\[1\]: 'hat' does not stand at character -3",
        ),
        (
            lambda c, p, q: q["answers"][0].update(answer_start=True),
            "want answer_start, a whole number",
        ),
        (lambda c, p, q: q.update(id="2"), "the id 2 stands twice"),
    ],
)
def test_a_wrong_file_is_refused_by_its_place(change, words, tmp_path):
    path = written(tmp_path / "wrong.json", changed(change))
    with pytest.raises(UserError, match=words):
        questions.read(path)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\x1f\x8bno", b"\xff\xfe"])
def test_no_json_is_refused(data, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"broken\.json"):
        questions.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        questions.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The  Cat.", "cat"),
        ("a an the", ""),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("“the” cat", "“ ” cat"),  # punctuation of ASCII alone; an article goes with its word
        ("an\u00a0apple", "apple"),
    ],
)
def test_answers_are_normalised_as_by_the_official_script(answer, wanted):
    assert answer_scores.normalised(answer) == wanted


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("the red hat", ["Red hat!"], True, 1.0),
        ("red", ["red hat"], False, 2 / 3),  # precision 1, recall 1/2
        ("red red", ["red hat"], False, 0.5),  # a word counts as often as it stands on both sides
        ("hat", ["shoe", "a hat"], True, 1.0),  # the nearest answer counts
        ("shoe", ["red hat"], False, 0.0),
        ("the", ["a"], True, 0.0),  # nothing is left of both: they match, but share no word
        ("", ["hat"], False, 0.0),
    ],
)
def test_scores_of_hand_made_cases(prediction, answers, exact, f1):
    assert answer_scores.exact_match(prediction, answers) is exact
    assert answer_scores.f1(prediction, answers) == pytest.approx(f1)


def test_scores_are_means_over_questions():
    scores = answer_scores.score(["red", "park"], [["red hat"], ["the park"]])
    assert scores == (0.5, pytest.approx(5 / 6), 2)
    with pytest.raises(ValueError, match="1 predictions for 0 questions"):
        answer_scores.score(["red"], [])


def test_shared_answers_stand_in_their_story_and_personal_ones_in_none(tmp_path):
    devices = personal.draw(seed=3, devices=4, train=40, held_out=10)
    for device in devices:
        for question in device.shared:
            answer = question.answers[0]
            end = answer.start + len(answer.text)
            assert question.context[answer.start : end] == answer.text
        for question in device.personal:
            assert question.answers[0].text in device.likes.values()
            assert question.answers[0].text not in question.context
    everything = [q for d in devices for q in (*d.train, *d.shared, *d.personal)]
    path = written(tmp_path / "personal.json", questions.content_of(everything))
    again = {question.id: question for question in questions.read(path)}
    assert again == {question.id: question for question in everything}


def test_a_personal_question_does_not_tell_its_device():
    devices = personal.draw(seed=3, devices=8, train=0, held_out=60)
    asked = [{question.question for question in device.personal} for device in devices]
    assert all(one == asked[0] for one in asked)
    for kind in personal.LIKES:
        assert len({device.likes[kind] for device in devices}) == 8


def test_no_story_is_held_out_and_trained_on():
    (device,) = personal.draw(seed=5, devices=1, train=200, held_out=50)
    trained = {question.context for question in device.train}
    held_out = {question.context for question in (*device.shared, *device.personal)}
    assert len(trained) == 200
    assert len(held_out) == 100
    assert not trained & held_out


def test_a_device_draws_the_same_beside_more_devices():
    alone = personal.draw(seed=1, devices=1, train=6, held_out=2)
    beside = personal.draw(seed=1, devices=3, train=6, held_out=2)
    assert alone[0] == beside[0]
    assert personal.draw(seed=2, devices=1, train=6, held_out=2) != alone
