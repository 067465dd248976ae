"""Ids into the arrays that a model trains on: rows of T columns, several texts in each or one.

A row holds the inputs of its texts, a text of L ids being L - 1 inputs and L - 1 targets, each the
id that follows. So no target lies in another text, and a row of T columns holds texts of up to T +
1 ids.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snake_jax.errors import UserError

LOSSES = ("completion", "all")


class Example(NamedTuple):
    """One text of L ids.

    Attributes:
      ids: int32 `[L]`.
      trained: bool `[L]`, which of them the model is to learn to write.
    """

    ids: np.ndarray
    trained: np.ndarray


class TextRows(NamedTuple):
    """What a model trains on. All are `[N, T]`.

    Attributes:
      ids: int32, the inputs.
      targets: int32, the id to predict there.
      weight: float32, 1 where the target counts, else 0.
      positions: int32, within its text, from 0.
      segments: int32, the number of its text in the row, from 1; 0 is padding.
    """

    ids: np.ndarray
    targets: np.ndarray
    weight: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


class Truncation(NamedTuple):
    """What did not fit.

    Attributes:
      cut_prompts: texts whose prompt was cut.
      cut_responses: texts whose response was cut.
      dropped: texts left out.
      longest: ids of the longest text, uncut.
    """

    cut_prompts: int
    cut_responses: int
    dropped: int
    longest: int


def truncate(
    rendered: Sequence[tuple[Sequence[int], np.ndarray]],
    max_length: int,
    bos_id: int | None = None,
) -> tuple[list[Example], np.ndarray, Truncation]:
    """Texts that fit a row of `max_length` inputs; of (ids, which of them are trained).

    What comes before the first trained id is the prompt, from there on the response, answers and
    questions between them alike. A text that is too long loses what is behind its last trained id,
    then ids from the left of its prompt, but for a begin `bos_id` there; at least one id of the
    prompt stays, for the first id of the response is predicted from it. A response that is still
    too long is cut at its right, its end mark too. Texts with an empty prompt or response are
    dropped.

    Returns:
      the examples; kept `[examples]`, their numbers in `rendered`; what was cut.

    Raises:
      UserError: max_length < 1, or no text is left.
    """
    if max_length < 1:
        raise UserError(f"--max_length={max_length} must be at least 1")
    cut_prompts = cut_responses = longest = 0
    examples = []
    kept = []
    for number, (ids, trained) in enumerate(rendered):
        # The prompt is `ids[:first]`, the response `ids[first:stop]`.
        longest = max(longest, len(ids))
        places = np.flatnonzero(trained)
        if len(places) == 0 or places[0] == 0:
            continue
        first = int(places[0])
        stop = len(ids)
        if stop > max_length + 1:
            stop = int(places[-1]) + 1

        # The response goes first: the prompt gets the room that it leaves.
        room = max(max_length + 1 - (stop - first), 1)
        prompt = ids[:first]
        if first > room:
            cut_prompts += 1
            prompt = _cut_left(prompt, room, bos_id)
        if stop - first > max_length:
            cut_responses += 1
            stop = first + max_length

        whole = np.array([*prompt, *ids[first:stop]], np.int32)
        of_prompt = np.zeros(len(prompt), bool)
        marks = np.concatenate([of_prompt, trained[first:stop]])
        examples.append(Example(whole, marks))
        kept.append(number)
    if not examples:
        raise UserError(
            "the data holds no text with a prompt and a response: nothing is left to use"
        )
    dropped = len(rendered) - len(kept)
    cut = Truncation(cut_prompts, cut_responses, dropped, longest)
    return examples, np.array(kept, np.int32), cut


def divide(
    ids: Sequence[int], trained: np.ndarray, max_length: int
) -> list[tuple[Sequence[int], np.ndarray]]:
    """A text in parts that fit a row of `max_length` inputs.

    A part begins with the last id of the one before, from which its first target is predicted, so
    every id is a target once.
    """
    parts = []
    num_targets = max(len(ids) - 1, 1)
    for start in range(0, num_targets, max_length):
        stop = start + max_length + 1
        marks = trained[start:stop].copy()
        marks[:1] = False  # its first id is the target of the part before
        parts.append((ids[start:stop], marks))
    return parts


def _cut_left(prompt: Sequence[int], room: int, bos_id: int | None) -> Sequence[int]:
    """The last `room` ids of a prompt; of one with a begin, that and the last `room` - 1."""
    begins = bos_id is not None and prompt[0] == bos_id
    if not begins:
        return prompt[len(prompt) - room :]
    behind_begin = len(prompt) - room + 1
    return [prompt[0], *prompt[behind_begin:]]


def pack(
    examples: Sequence[Example], max_length: int, pad_id: int, loss_on: str = "completion"
) -> TextRows:
    """Several texts to a row of `max_length` columns, in as few rows as best-fit decreasing needs.

    The longest text is placed first, each in the fullest row that has room for it; equals in their
    order.

    Args:
      examples: the texts.
      max_length: T, columns of a row.
      pad_id: what fills the columns that hold no text.
      loss_on: one of LOSSES: which targets count.

    Raises:
      UserError: an unknown `loss_on`.
      ValueError: a text is longer than a row (see `truncate`).
    """
    sizes = [len(example.ids) - 1 for example in examples]
    places = _best_fit(sizes, max_length)
    num_rows = 1 + max((row for row, _, _ in places), default=-1)
    return _fill(examples, places, (num_rows, max_length), pad_id, loss_on)


def pad(
    examples: Sequence[Example], lengths: Sequence[int], pad_id: int, loss_on: str = "completion"
) -> dict[int, TextRows]:
    """One text to a row, in the smallest of `lengths` that holds it, in their order.

    Lengths that none needs are left out. Arguments and errors are those of `pack`.
    """
    chosen = bucket_of(examples, lengths)
    buckets = {}
    for length in sorted(set(chosen.tolist())):
        inside = [examples[i] for i in np.flatnonzero(chosen == length).tolist()]
        places = [(row, 0, 1) for row in range(len(inside))]
        buckets[length] = _fill(inside, places, (len(inside), length), pad_id, loss_on)
    return buckets


def bucket_of(examples: Sequence[Example], lengths: Sequence[int]) -> np.ndarray:
    """`[examples]`: the smallest of `lengths` that holds each; ValueError where none does."""
    choices = np.array(sorted(set(lengths)), int)
    inputs = np.array([len(example.ids) - 1 for example in examples], int)
    if len(inputs) and inputs.max() > choices[-1]:
        raise ValueError(
            f"a text of {inputs.max() + 1} ids in rows of {choices[-1]}: truncate first"
        )
    return choices[np.searchsorted(choices, inputs)]


def fill(rows: TextRows) -> float:
    """The share of columns that hold text, from 0 to 1."""
    if rows.segments.size == 0:
        return 0.0
    holds_text = rows.segments > 0
    return float(holds_text.mean())


def target_tokens(rows: TextRows) -> int:
    """How many targets count."""
    return int(rows.weight.sum(dtype=np.float64))


def _best_fit(sizes: Sequence[int], capacity: int) -> list[tuple[int, int, int]]:
    """(row, column, segment) for every size.

    Raises:
      ValueError: a size is above the capacity, or not above 0.
    """
    # `rows_with[r]` are the rows with r free columns, and bit r of `open_rooms` says that there are
    # some. So the fullest row with room for a size is the lowest bit from that size on.
    rows_with: dict[int, list[int]] = {}
    open_rooms = 0
    segments: list[int] = []  # how many texts each row holds

    places = [(0, 0, 0)] * len(sizes)
    largest_first = np.argsort(-np.array(sizes, int), kind="stable").tolist()
    for i in largest_first:
        size = sizes[i]
        if not 0 < size <= capacity:
            raise ValueError(f"a text of {size} inputs in rows of {capacity}: truncate first")
        candidates = open_rooms >> size
        if candidates:
            lowest_bit = candidates & -candidates
            room = size + lowest_bit.bit_length() - 1
            row = rows_with[room].pop(0)
            if not rows_with[room]:
                open_rooms &= ~(1 << room)
        else:
            room = capacity
            row = len(segments)
            segments.append(0)

        # Texts lie one behind the other, so that the first free column says how many are taken.
        segments[row] += 1
        places[i] = (row, capacity - room, segments[row])
        # The row comes back with the room that is left, also where that is none.
        left = room - size
        rows_with.setdefault(left, []).append(row)
        open_rooms |= 1 << left
    return places


def _fill(
    examples: Sequence[Example],
    places: Sequence[tuple[int, int, int]],
    shape: tuple[int, int],
    pad_id: int,
    loss_on: str,
) -> TextRows:
    """Rows `shape` [N, T] with each text at its place (row, column, segment)."""
    if loss_on not in LOSSES:
        raise UserError(f"--loss_on={loss_on} is unknown; allowed: {', '.join(LOSSES)}")
    ids = np.full(shape, pad_id, np.int32)
    targets = np.full(shape, pad_id, np.int32)
    weight = np.zeros(shape, np.float32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    for (text, trained), (row, start, segment) in zip(examples, places, strict=True):
        # The last id is a target only, the first an input only.
        stop = start + len(text) - 1
        ids[row, start:stop] = text[:-1]
        targets[row, start:stop] = text[1:]
        weight[row, start:stop] = trained[1:] if loss_on == "completion" else 1
        positions[row, start:stop] = np.arange(stop - start)
        segments[row, start:stop] = segment
    return TextRows(ids, targets, weight, positions, segments)
