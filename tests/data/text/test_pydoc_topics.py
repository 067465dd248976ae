"""The text that ships with Python: enough of it, in natural groups, each paragraph once."""

from collections import Counter

from snake_jax.data.text import pydoc_topics
from snake_jax.data.text.pydoc_topics import ANSWER_CHARS, CHAPTERS, pydoc_pairs


def pairs_of(monkeypatch, **topics):
    monkeypatch.setattr(pydoc_topics, "topics", topics)
    return [tuple(pair) for pair in pydoc_pairs()]


def test_there_are_several_hundred_pairs_in_ten_groups_and_the_same_ones_every_time():
    pairs = pydoc_pairs()
    assert pairs == pydoc_pairs()
    counts = Counter(pair.category for pair in pairs)
    assert len(pairs) > 700
    assert set(CHAPTERS) <= set(counts)
    assert min(counts[chapter] for chapter in CHAPTERS) >= 20
    assert counts["other"] < len(pairs) / 10


def test_answers_are_neither_empty_nor_much_longer_than_said():
    lengths = sorted(len(pair.response) for pair in pydoc_pairs())
    assert lengths[0] >= 60
    assert lengths[len(lengths) * 99 // 100] <= 1.3 * ANSWER_CHARS


def test_no_answer_is_part_of_another_topic_s_answer():
    answers = Counter(pair.response for pair in pydoc_pairs())
    assert [answer for answer, count in answers.items() if count > 1] == []


def test_a_known_page_becomes_a_question_and_its_answer():
    (pair,) = [
        pair for pair in pydoc_pairs() if pair.prompt == 'Explain in Python: The "break" statement'
    ]
    assert pair.category == "simple statements"
    assert '"break" may only occur syntactically nested in a "for" or "while" loop' in pair.response


def test_a_method_s_description_answers_what_it_is():
    by_prompt = {pair.prompt: pair for pair in pydoc_pairs()}
    pair = by_prompt["What is str.upper() in Python?"]
    assert pair.response.startswith("Return a copy of the string with all the cased characters")
    assert pair.category == "strings and formats"


PAGE = """Title
*****

First line of a paragraph that is long enough to be
an answer, over two lines.

   code = [1,
   2]

str.cut(n)

   Cuts the string after so many characters, and says what is left of
   it.

Not a part of the definition any more, but of the section it is in again.


Part
====

This belongs to a part of the page, with a heading of its own there.

-[ Footnotes ]-

[1] A footnote, which is not used, however long it may turn out to be.
"""


def test_sections_definitions_code_and_footnotes_are_told_apart(monkeypatch):
    assert pairs_of(monkeypatch, **{"break": PAGE}) == [
        (
            "Explain in Python: Title",
            "First line of a paragraph that is long enough to be an answer, over two "
            "lines.\n\ncode = [1,\n2]",
            "simple statements",
        ),
        (
            "What is str.cut(n) in Python?",
            "Cuts the string after so many characters, and says what is left of it.",
            "simple statements",
        ),
        (
            "Explain in Python: Title",
            "Not a part of the definition any more, but of the section it is in again.",
            "simple statements",
        ),
        (
            "Explain in Python: Part",
            "This belongs to a part of the page, with a heading of its own there.",
            "simple statements",
        ),
    ]


def test_a_paragraph_that_two_topics_hold_is_used_once_in_the_group_of_the_first(monkeypatch):
    text = "The same words that stand in two topics, and are long enough to be an answer."
    pairs = pairs_of(
        monkeypatch, **{"if": f"If\n***\n\n{text}\n", "novelty": f"New\n***\n\n{text}\n"}
    )
    assert pairs == [("Explain in Python: If", text, "compound statements")]


def test_a_topic_of_a_later_python_gets_a_group_too(monkeypatch):
    text = "Words about something that no chapter listed here has ever heard of, long enough."
    assert pairs_of(monkeypatch, novelty=f"New\n***\n\n{text}\n")[0][2] == "other"


def test_long_prose_is_cut_between_sentences_and_later_pieces_name_their_first_words(monkeypatch):
    sentences = [
        f"Sentence number {i} says a few words so that it has some length of its own here."
        for i in range(12)
    ]
    pairs = pairs_of(monkeypatch, types="T\n***\n\n" + " ".join(sentences))
    assert " ".join(response for _, response, _ in pairs) == " ".join(sentences)
    assert all(len(response) <= ANSWER_CHARS for _, response, _ in pairs)
    assert [prompt for prompt, _, _ in pairs][1] == (
        'Explain in Python: T\nGo on from "' + " ".join(pairs[1][1].split()[:5]) + '"'
    )
