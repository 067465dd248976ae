"""The data set `personal`: questions that only one's own device can answer, and ones that any can.

SCCT's claim is that each device's small model makes the large one personal (paper, sections I and
V). So here is a set in which that is so by construction. Every device has an owner with likes of
its own, drawn once. Contexts are short stories of three facts, drawn anew for every question.

- A *shared* question asks for a fact of the story: the answer stands in the context, and what is
  learnt from one device's questions serves all.
- A *personal* question asks for one of the owner's likes: no context says it, the question names no
  owner, and the answer differs from device to device. Without knowing the device nobody does better
  than guessing among the owners' answers.

Nothing is downloaded; the same seed gives the same questions.
"""

from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.data.text.questions import NOWHERE, Answer, Question

PEOPLE = ("Tom", "Lily", "Ben", "Sue", "Max", "Anna", "Tim", "Mia")
THINGS = ("ball", "cat", "dog", "book", "car", "hat", "doll", "kite", "cup", "bike")
PLACES = ("park", "house", "garden", "shop", "school", "forest", "kitchen", "lake")
DISHES = ("cake", "soup", "rice", "bread", "fish", "apples", "cheese", "honey")
LIKES = {
    "color": ("red", "blue", "green", "yellow", "pink", "white", "black", "brown"),
    "animal": ("bear", "bird", "frog", "horse", "duck", "lion", "mouse", "rabbit"),
    "toy": ("train", "drum", "puzzle", "robot", "boat", "puppet", "truck", "balloon"),
    "game": ("tag", "chess", "hide and seek", "catch", "cards", "jump rope", "bingo", "marbles"),
}
"""What an owner likes, by kind; each kind's answers."""


class DeviceQuestions(NamedTuple):
    """One device's questions.

    Attributes:
      likes: the owner's, by kind.
      train: shared and personal questions, in turn.
      shared: held out, on stories that are not in `train`.
      personal: held out, likewise.
    """

    likes: dict[str, str]
    train: tuple[Question, ...]
    shared: tuple[Question, ...]
    personal: tuple[Question, ...]


def draw(seed: int, devices: int, train: int, held_out: int) -> list[DeviceQuestions]:
    """All devices' questions.

    Args:
      seed: of the run.
      devices: how many; a device's questions do not depend on it.
      train: questions a device to train on, every other one personal.
      held_out: questions of each of the two sorts a device to test on.
    """
    drawn = []
    for number in range(devices):
        likes = _likes(seed, number)
        rng = streams.generator(seed, "personal/questions", number)
        # No story comes twice on a device, so none that is held out was trained on.
        stories = set[str]()
        trained, shared, personal = list[Question](), list[Question](), list[Question]()
        for index in range(train):
            name = f"device{number}/train/{index}"
            story = _story(rng, stories)
            is_personal = index % 2 == 1
            trained.append(
                _personal(rng, name, story, likes) if is_personal else _shared(rng, name, story)
            )
        for index in range(held_out):
            name = f"device{number}/shared/{index}"
            shared.append(_shared(rng, name, _story(rng, stories)))
        for index in range(held_out):
            name = f"device{number}/personal/{index}"
            personal.append(_personal(rng, name, _story(rng, stories), likes))
        drawn.append(DeviceQuestions(likes, tuple(trained), tuple(shared), tuple(personal)))
    return drawn


def _likes(seed: int, device: int) -> dict[str, str]:
    """What the owner of a device likes.

    The owners of as many neighbouring devices as a kind has answers all like different things: a
    personal question's answer tells these devices apart.
    """
    likes = {}
    for number, (kind, answers) in enumerate(LIKES.items()):
        turn, place = divmod(device, len(answers))
        order = streams.generator(seed, "personal/likes", number, turn).permutation(len(answers))
        likes[kind] = answers[order[place]]
    return likes


class _Story(NamedTuple):
    """A context, and of each of its facts the question for it and the answer."""

    text: str
    questions: tuple[tuple[str, str], ...]


def _story(rng: np.random.Generator, taken: set[str]) -> _Story:
    """A story of three facts on three people that is not among those taken; it is from now on."""
    while True:
        first, second, third = rng.choice(PEOPLE, 3, replace=False)
        thing, place, dish = rng.choice(THINGS), rng.choice(PLACES), rng.choice(DISHES)
        facts = (
            (f"{first} has a {thing}.", f"What does {first} have?", thing),
            (f"{second} is in the {place}.", f"Where is {second}?", place),
            (f"{third} eats {dish}.", f"What does {third} eat?", dish),
        )
        order = rng.permutation(3)
        told = [facts[index] for index in order]
        text = " ".join(sentence for sentence, _, _ in told)
        if text not in taken:
            taken.add(text)
            return _Story(text, tuple((question, str(answer)) for _, question, answer in told))


def _shared(rng: np.random.Generator, name: str, story: _Story) -> Question:
    """A question for a fact of the story."""
    question, text = story.questions[rng.integers(len(story.questions))]
    answer = Answer(text, story.text.index(text))
    return Question(name, _title(name), story.text, question, (answer,))


def _personal(
    rng: np.random.Generator, name: str, story: _Story, likes: dict[str, str]
) -> Question:
    """A question for one of the owner's likes, beside a story that does not tell it."""
    kind = str(rng.choice(list(likes)))
    answer = Answer(likes[kind], NOWHERE)
    return Question(name, _title(name), story.text, f"What {kind} do I like?", (answer,))


def _title(name: str) -> str:
    """The device that a question belongs to."""
    return name.split("/")[0]
