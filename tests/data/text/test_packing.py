"""Rows: nothing lost, nothing counted twice, no target in another text, and what does not fit is
counted.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.data.text.packing import Example, divide, fill, pack, pad, target_tokens, truncate
from snake_jax.errors import UserError

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
PAD = 99
LENGTH = 16


def example(ids, prompt_tokens):
    """A text that begins with a prompt; all behind it is to be written."""
    return Example(np.asarray(ids, np.int32), np.arange(len(ids)) >= prompt_tokens)


def rendered(prompt, response):
    return [*prompt, *response], np.arange(len(prompt) + len(response)) >= len(prompt)


@st.composite
def examples(draw):
    sizes = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 9)), min_size=1, max_size=40))
    starts = np.cumsum([0] + [prompt + response for prompt, response in sizes])
    return [
        example(np.arange(start, start + prompt + response) + 100, prompt)
        for start, (prompt, response) in zip(starts, sizes, strict=False)
    ]


def texts(rows):
    """Every text in the rows, from its inputs and its last target: (ids, which of them are counted
    targets).
    """
    for ids, targets, weight, positions, segments in zip(*rows, strict=True):
        for segment in range(1, segments.max(initial=0) + 1):
            (at,) = np.nonzero(segments == segment)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            assert np.array_equal(positions[at], np.arange(len(at)))
            assert np.array_equal(ids[at[1:]], targets[at[:-1]])
            yield [*ids[at].tolist(), int(targets[at[-1]])], [0, *weight[at].tolist()]


def expected(examples, loss_on="completion"):
    def counted(example):
        first = int(np.argmax(example.trained)) if loss_on == "completion" else 1
        return [0] * first + [1] * (len(example.ids) - first)

    return sorted((example.ids.tolist(), counted(example)) for example in examples)


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@PROPERTY
@given(examples=examples())
def test_packed_rows_hold_every_text_once_and_count_every_completion_token_once(loss_on, examples):
    rows = pack(examples, LENGTH, PAD, loss_on)
    assert sorted(texts(rows)) == expected(examples, loss_on)
    assert rows.ids.shape[1] == LENGTH
    assert target_tokens(rows) == sum(sum(counted) for _, counted in expected(examples, loss_on))
    nothing = rows.segments == 0
    assert (rows.ids[nothing] == PAD).all()
    assert not rows.weight[nothing].any()
    assert [array.dtype for array in rows] == [np.int32, np.int32, np.float32, np.int32, np.int32]


@PROPERTY
@given(examples=examples())
def test_buckets_hold_every_text_once_in_the_shortest_row_that_it_fits(examples):
    buckets = pad(examples, [4, 8, LENGTH], PAD)
    assert sorted(pair for rows in buckets.values() for pair in texts(rows)) == expected(examples)
    for length, rows in buckets.items():
        inputs = (rows.segments > 0).sum(1)
        assert rows.ids.shape[1] == length
        assert (inputs <= length).all()
        assert (inputs > {4: 0, 8: 4, LENGTH: 8}[length]).all()
        assert rows.segments.max() == 1


@PROPERTY
@given(examples=examples())
def test_no_two_packed_rows_would_fit_in_one(examples):
    used = (pack(examples, LENGTH, PAD).segments > 0).sum(1)
    assert sum(sorted(used)[:2]) > LENGTH or len(used) == 1


def test_texts_are_placed_the_longest_first_each_where_the_least_room_is_left():
    sizes = [3, 6, 5, 4, 2]
    rows = pack([example(np.arange(size + 1), 1) for size in sizes], 10, PAD)
    # 6 opens a row, 5 another; 4 fits the first exactly, 3 the second, and 2 what is left there.
    assert rows.segments.tolist() == [[1] * 6 + [2] * 4, [1] * 5 + [2] * 3 + [3] * 2]
    assert fill(rows) == 1.0


def test_many_short_texts_fill_their_rows_nearly():
    lengths = np.random.default_rng(0).integers(10, 300, 2000)
    rows = pack([example(np.zeros(length), 1) for length in lengths], 512, PAD)
    assert fill(rows) > 0.99
    assert fill(rows) == pytest.approx((lengths - 1).sum() / rows.ids.size)


def test_one_text_by_hand():
    rows = pack([example([1, 2, 3, 4], 2)], 5, 0)
    assert rows.ids.tolist() == [[1, 2, 3, 0, 0]]
    assert rows.targets.tolist() == [[2, 3, 4, 0, 0]]
    assert rows.weight.tolist() == [[0, 1, 1, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("prompt", "response", "bos_id", "ids", "prompt_tokens", "cut"),
    [
        ([1, 2], [3, 4, 5], None, [1, 2, 3, 4, 5], 2, (0, 0)),
        ([1, 2, 3], [4, 5, 6], None, [2, 3, 4, 5, 6], 2, (1, 0)),
        ([0, 2, 3, 4], [5, 6, 7], 0, [0, 4, 5, 6, 7], 2, (1, 0)),
        ([0, 2, 3], [4, 5, 6, 7], 0, [0, 4, 5, 6, 7], 1, (1, 0)),
        ([1, 2, 3], [4, 5, 6, 7, 8], None, [3, 4, 5, 6, 7], 1, (1, 1)),
        ([1], [4, 5, 6, 7, 8], None, [1, 4, 5, 6, 7], 1, (0, 1)),
    ],
)
def test_the_prompt_is_cut_at_its_left_before_the_response_at_its_right(
    prompt, response, bos_id, ids, prompt_tokens, cut
):
    (text,), kept, truncation = truncate([rendered(prompt, response)], 4, bos_id)
    assert text.ids.tolist() == ids
    assert text.trained.tolist() == [i >= prompt_tokens for i in range(len(ids))]
    assert truncation == (*cut, 0, len(prompt) + len(response))
    assert kept.tolist() == [0]


def test_texts_without_a_prompt_or_a_response_are_dropped_and_counted():
    kept, numbers, truncation = truncate(
        [rendered([], [1]), rendered([1], []), rendered([1], [2]), rendered([1, 2], [3])], 8
    )
    assert [example.ids.tolist() for example in kept] == [[1, 2], [1, 2, 3]]
    assert numbers.tolist() == [2, 3]
    assert truncation == (0, 0, 2, 3)


@PROPERTY
@given(
    texts=st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1)),
        min_size=1,
    ),
    max_length=st.integers(1, 12),
    bos_id=st.sampled_from([None, 0]),
)
def test_what_is_cut_always_fits_and_keeps_as_much_of_the_response_as_can_be(
    texts, max_length, bos_id
):
    cut = truncate([rendered(*text) for text in texts], max_length, bos_id)[0]
    for (prompt, response), text in zip(texts, cut, strict=True):
        assert len(text.ids) == min(len(prompt) + len(response), max_length + 1)
        assert not text.trained[0]
        assert text.ids[text.trained].tolist() == response[:max_length]


def test_turns_between_answers_stay_and_are_not_counted():
    ids = np.arange(8)
    trained = np.array([0, 0, 1, 1, 0, 1, 1, 0], bool)
    (text,), _, truncation = truncate([(ids, trained)], 7)
    assert text.ids.tolist() == ids.tolist()
    rows = pack([text], 7, PAD)
    assert rows.weight.tolist() == [[0, 1, 1, 0, 1, 1, 0]]
    assert pack([text], 7, PAD, "all").weight.tolist() == [[1] * 7]
    assert truncation == (0, 0, 0, 8)


def test_what_is_behind_the_last_answer_goes_first():
    ids, trained = np.arange(8), np.array([0, 0, 1, 1, 0, 1, 1, 0], bool)
    (text,), _, truncation = truncate([(ids, trained)], 6)
    assert text.ids.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert truncation == (0, 0, 0, 8)
    (text,), _, truncation = truncate([(ids, trained)], 5)
    assert text.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert truncation == (1, 0, 0, 8)
    (text,), _, truncation = truncate([(ids, trained)], 4)
    assert text.ids.tolist() == [1, 2, 3, 4, 5]
    assert text.trained.tolist() == [False, True, True, False, True]
    assert truncation == (1, 1, 0, 8)


@PROPERTY
@given(length=st.integers(1, 40), max_length=st.integers(1, 12))
def test_a_divided_text_has_every_id_but_the_first_as_a_target_once(length, max_length):
    ids = list(range(length))
    parts = divide(ids, np.arange(length) > 0, max_length)
    targets = [i for part, trained in parts for i in np.array(part)[trained].tolist()]
    assert targets == ids[1:]
    assert all(len(part) <= max_length + 1 and not trained[0] for part, trained in parts)


def test_wrong_flags_are_one_line():
    with pytest.raises(UserError, match="--max_length=0 must be at least 1"):
        truncate([rendered([1], [2])], 0)
    with pytest.raises(UserError, match="nothing is left"):
        truncate([rendered([1], [])], 8)
    with pytest.raises(UserError, match="--loss_on=prompt is unknown; allowed: completion, all"):
        pack([example(np.arange(3), 1)], 4, PAD, "prompt")


def test_a_text_longer_than_a_row_is_our_mistake():
    with pytest.raises(ValueError, match="truncate first"):
        pack([example(np.arange(6), 1)], 4, PAD)
    with pytest.raises(ValueError, match="truncate first"):
        pad([example(np.arange(6), 1)], [2, 4], PAD)


@pytest.mark.parametrize("lay_out", [pack, lambda *given: pad(given[0], (given[1],), given[2])[6]])
def test_an_end_that_is_padding_too_is_learnt_once(lay_out):
    end = 9
    rows = lay_out([example([5, 6, 7, end], 2)], 6, end)
    assert rows.targets.tolist() == [[6, 7, end, end, end, end]]
    assert rows.weight.tolist() == [[0, 1, 1, 0, 0, 0]]
