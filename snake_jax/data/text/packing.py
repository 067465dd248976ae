"""Ids into the arrays that a model trains on: a fixed number of columns, several texts in a row or
one.

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
    """One text: ids `[L]` int32, the first `prompt_tokens` of them the prompt's."""

    ids: np.ndarray
    prompt_tokens: int


class Rows(NamedTuple):
    """What a model trains on. All are `[N, T]`.

    ids: int32 inputs. targets: int32, the id to predict there. weight: float32, 1 where the target
      counts, else 0.
    positions: int32, within its text, from 0. segments: int32, the number of its text in the row,
      from 1; 0 is padding.
    """

    ids: np.ndarray
    targets: np.ndarray
    weight: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


class Truncation(NamedTuple):
    """What did not fit: texts whose prompt or response was cut, those left out, and the ids of the
    longest, uncut.
    """

    cut_prompts: int
    cut_responses: int
    dropped: int
    longest: int


def truncate(
    rendered: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_length: int,
    bos_id: int | None = None,
) -> tuple[list[Example], np.ndarray, Truncation]:
    """Texts that fit a row of `max_length` inputs; of (prompt ids, response ids).

    A text that is too long loses ids from the left of its prompt first, but for a begin `bos_id`
    there; at least one id of the prompt stays, for the first id of the response is predicted from
    it. A response that is still too long is cut at its right, its end mark too. Texts with an empty
    prompt or response are dropped.

    Returns:
      the examples; kept `[examples]`, their numbers in `rendered`; what was cut.

    Raises:
      UserError: max_length < 1, or no text is left.
    """
    if max_length < 1:
        raise UserError(f"--max_length={max_length} must be at least 1")
    kept = [i for i, (prompt, response) in enumerate(rendered) if len(prompt) and len(response)]
    cut_prompts = cut_responses = 0
    examples = []
    for prompt, response in (rendered[i] for i in kept):
        room = max(max_length + 1 - len(response), 1)
        cut_prompts += len(prompt) > room
        cut_responses += len(response) > max_length
        start = _cut_left(prompt, room, bos_id)
        examples.append(Example(np.array([*start, *response[:max_length]], np.int32), len(start)))
    longest = max((len(prompt) + len(response) for prompt, response in rendered), default=0)
    if not examples:
        raise UserError(
            "the data holds no text with a prompt and a response: nothing is left to use"
        )
    cut = Truncation(cut_prompts, cut_responses, len(rendered) - len(kept), longest)
    return examples, np.array(kept, np.int32), cut


def _cut_left(prompt: Sequence[int], room: int, bos_id: int | None) -> Sequence[int]:
    if len(prompt) <= room:
        return prompt
    if bos_id is not None and prompt[0] == bos_id:
        return [bos_id, *prompt[len(prompt) - room + 1 :]]
    return prompt[len(prompt) - room :]


def pack(
    examples: Sequence[Example], max_length: int, pad_id: int, loss_on: str = "completion"
) -> Rows:
    """Several texts to a row of `max_length` columns, in as few rows as best-fit decreasing needs.

    The longest text is placed first, each in the fullest row that has room for it; equals in their
    order. Raises UserError for an unknown `loss_on`, ValueError for a text that is longer than a
    row (see `truncate`).
    """
    places = _best_fit([len(example.ids) - 1 for example in examples], max_length)
    num_rows = 1 + max((row for row, _, _ in places), default=-1)
    return _fill(examples, places, (num_rows, max_length), pad_id, loss_on)


def pad(
    examples: Sequence[Example], lengths: Sequence[int], pad_id: int, loss_on: str = "completion"
) -> dict[int, Rows]:
    """One text to a row, in the smallest of `lengths` that holds it, in their order; lengths that
    none needs are left out."""
    chosen, buckets = bucket_of(examples, lengths), {}
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


def fill(rows: Rows) -> float:
    """The share of columns that hold text, from 0 to 1."""
    return float((rows.segments > 0).mean()) if rows.segments.size else 0.0


def target_tokens(rows: Rows) -> int:
    """How many targets count."""
    return int(rows.weight.sum(dtype=np.float64))


def _best_fit(sizes: Sequence[int], capacity: int) -> list[tuple[int, int, int]]:
    """(row, column, segment) for every size. `open_rooms` has bit r set where a row with r free
    columns is in `rows_with[r]`, so the fullest row that has room is its lowest bit from the size
    on.
    """
    places = [(0, 0, 0)] * len(sizes)
    rows_with: dict[int, list[int]] = {}
    open_rooms, segments = 0, list[int]()
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[i]
        if not 0 < size <= capacity:
            raise ValueError(f"a text of {size} inputs in rows of {capacity}: truncate first")
        candidates = open_rooms >> size
        if candidates:
            room = size + (candidates & -candidates).bit_length() - 1
            row = rows_with[room].pop(0)
            open_rooms &= ~(0 if rows_with[room] else 1 << room)
        else:
            room, row = capacity, len(segments)
            segments.append(0)
        segments[row] += 1
        places[i] = (row, capacity - room, segments[row])
        rows_with.setdefault(room - size, []).append(row)
        open_rooms |= 1 << (room - size)
    return places


def _fill(
    examples: Sequence[Example],
    places: Sequence[tuple[int, int, int]],
    shape: tuple[int, int],
    pad_id: int,
    loss_on: str,
) -> Rows:
    if loss_on not in LOSSES:
        raise UserError(f"--loss_on={loss_on} is unknown; allowed: {', '.join(LOSSES)}")
    ids, targets = np.full(shape, pad_id, np.int32), np.full(shape, pad_id, np.int32)
    weight, positions, segments = (
        np.zeros(shape, np.float32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
    )
    for (text, prompt_tokens), (row, start, segment) in zip(examples, places, strict=True):
        stop = start + len(text) - 1
        ids[row, start:stop], targets[row, start:stop] = text[:-1], text[1:]
        weight[row, start + (prompt_tokens - 1 if loss_on == "completion" else 0) : stop] = 1
        positions[row, start:stop], segments[row, start:stop] = np.arange(stop - start), segment
    return Rows(ids, targets, weight, positions, segments)
