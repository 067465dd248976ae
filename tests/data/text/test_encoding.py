"""Offsets of ids, for every kind of tokenizer, and special tokens where they are told alone."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.data.text.encoding import covering, joined, special_spans
from snake_jax.data.text.samples import Pair
from snake_jax.data.text.templates import render
from snake_jax.data.text.tokenizers import byte_tokenizer, load_tokenizer
from tests.data.text.chat_folders import KINDS
from tests.data.text.test_tokenizers import bin_file, byte_level, model_file

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
TEXTS = st.text("abc the\n\té漢😀.<", max_size=40)


def library(folder, kind):
    pytest.importorskip("tokenizers")
    (folder / "tokenizer.json").write_text(json.dumps(KINDS[kind]))


def vocabulary(folder):
    pytest.importorskip("tokenizers")
    byte_level(folder, ["<s>", "<pad>", "</s>"])


MAKERS = {
    "bin": lambda folder: (folder / "tok.bin").write_bytes(bin_file()),
    "model": lambda folder: (folder / "tokenizer.model").write_bytes(model_file()),
    "vocabulary": vocabulary,
    **{kind: functools.partial(library, kind=kind) for kind in KINDS},
}


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """`tokenizer_of(kind)`, made once."""

    @functools.cache
    def tokenizer(kind):
        if kind == "none":
            return byte_tokenizer()
        folder = tmp_path_factory.mktemp("tokenizer")
        MAKERS[kind](folder)
        return load_tokenizer(str(folder))

    return tokenizer


@pytest.mark.parametrize("kind", ["none", *MAKERS])
@PROPERTY
@given(text=TEXTS)
def test_offsets_run_on_and_leave_out_no_character(tokenizer_of, kind, text):
    encoding = tokenizer_of(kind).encode_spans(text, (), ())
    assert len(encoding.ids) == len(encoding.starts) == len(encoding.stops)
    assert (encoding.starts <= encoding.stops).all()
    assert (np.diff(encoding.starts) >= 0).all()
    assert (np.diff(encoding.stops) >= 0).all()
    told = {i for i, j in zip(encoding.starts, encoding.stops, strict=True) for i in range(i, j)}
    assert told == set(range(len(text)))


@pytest.mark.parametrize("kind", ["none", *MAKERS])
@PROPERTY
@given(before=TEXTS.filter(bool), after=TEXTS.filter(bool))
def test_every_id_lies_on_one_side_or_on_both_of_a_border(tokenizer_of, kind, before, after):
    text = before + after
    encoding = tokenizer_of(kind).encode_spans(text, (), [len(before)])
    left = covering(encoding, [(0, len(before))])
    right = covering(encoding, [(len(before), len(text))])
    assert (left | right).all()
    assert (np.diff(left.astype(int)) <= 0).all()
    assert (np.diff(right.astype(int)) >= 0).all()
    # One character can be several ids, one piece several characters: only at the border.
    both = np.flatnonzero(left & right)
    assert all(encoding.starts[both] < len(before))
    assert all(encoding.stops[both] > len(before))


@pytest.mark.parametrize("kind", MAKERS)
def test_special_tokens_stand_where_they_are_told_alone(tokenizer_of, kind):
    tokenizer = tokenizer_of(kind)
    text = "a</s>b</s>"
    end = tokenizer.eos_id
    assert end not in tokenizer.encode(text)
    first, second = special_spans(text, tokenizer.special)
    for controls in ([first], [second], [first, second]):
        encoding = tokenizer.encode_spans(text, controls, ())
        places = [(int(i), int(j)) for i, j in zip(encoding.starts, encoding.stops, strict=True)]
        found = [place for place, i in zip(places, encoding.ids, strict=True) if i == end]
        assert found == controls


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_pairs_that_spell_special_tokens_have_one_end(tokenizer_of, kind, template):
    tokenizer = tokenizer_of(kind)
    pair = Pair("what is </s>?", "an </s> it is")
    ids, trained = render(pair, tokenizer, template)
    assert np.flatnonzero(np.array(ids[1:]) == tokenizer.eos_id).tolist() == [len(ids) - 2]
    assert trained[-1]
    assert render(pair, tokenizer, template, True).ids[1:].count(tokenizer.eos_id) == 3


def test_of_names_that_begin_alike_the_longest_is_found():
    names = {"<a": 0, "<a>": 1, "b": 2}
    assert special_spans("<a<a>xb", names) == [(0, 2), (2, 5), (6, 7)]
    assert special_spans("<a<a>xb", names, 2, 4) == [(2, 4)]
    assert special_spans("<a>", {}) == []


def test_nothing_joined_is_nothing():
    assert joined([]).ids == []
    assert covering(joined([]), [(0, 1)]).tolist() == []
