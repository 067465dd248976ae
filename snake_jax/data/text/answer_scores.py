"""How good an answer is: exact match and F1, as SQuAD v1.1's official script defines them.

"SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv 1606.05250, section 6.1).
Version 2 of the script differs: there two answers of no words agree; here their F1 is 0.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScores(NamedTuple):
    """Means over questions, in [0, 1].

    Attributes:
      exact_match: share of predictions that are a right answer.
      f1: mean overlap of words with the right answer that is nearest.
      questions: how many.
    """

    exact_match: float
    f1: float
    questions: int


def normalised(answer: str) -> str:
    """Lower case, without punctuation (of ASCII), articles and superfluous space, in that order."""
    text = answer.lower().translate(_NO_PUNCTUATION)
    words = _ARTICLES.sub(" ", text).split()
    return " ".join(words)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction is one of the right answers, both normalised."""
    given = normalised(prediction)
    return any(given == normalised(answer) for answer in answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The greatest F1 over the right answers, in [0, 1]."""
    return max(_f1(prediction, answer) for answer in answers)


def _f1(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words, repeated ones counted."""
    given, wanted = normalised(prediction).split(), normalised(answer).split()
    common = Counter(given) & Counter(wanted)
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> AnswerScores:
    """Means over questions.

    Args:
      predictions: one a question.
      answers: the right ones of each question, at least one.

    Raises:
      ValueError: there is no question, or not one prediction for each.
    """
    if not answers or len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions")
    pairs = list(zip(predictions, answers, strict=True))
    exact = sum(exact_match(*pair) for pair in pairs)
    overlap = sum(f1(*pair) for pair in pairs)
    return AnswerScores(exact / len(pairs), overlap / len(pairs), len(pairs))
