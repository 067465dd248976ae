"""What `--show_rows` prints is what the model trains on."""

import pytest

from snake_jax.data.text import packing, shown
from snake_jax.data.text.samples import Pair
from snake_jax.data.text.templates import render
from snake_jax.data.text.tokenizers import byte_tokenizer

PAIRS = [("Wo?", "Im Café."), ("Who?", "Bob")]
LENGTH = 96


def rows(packed, loss_on="completion"):
    tokenizer = byte_tokenizer()
    examples = [
        render(Pair(prompt, response, "c"), tokenizer, "plain", False) for prompt, response in PAIRS
    ]
    if packed:
        return {LENGTH: packing.pack(examples, LENGTH, tokenizer.pad_id, loss_on)}, tokenizer
    return packing.pad(examples, (LENGTH,), tokenizer.pad_id, loss_on), tokenizer


@pytest.mark.parametrize("packed", [True, False])
def test_answers_stand_between_the_marks_and_no_padding_is_seen(packed):
    text = shown.show(*rows(packed), 9)
    first, second = text.split("\n\n")
    assert first.startswith(f"row 0 of length {LENGTH}, text 1: ")
    for paragraph, (prompt, response) in zip((first, second), PAIRS, strict=True):
        _, _, body = paragraph.partition("\n")
        assert body.startswith("<begin>")
        assert prompt in body.partition("⟦")[0]
        assert body.endswith(f"{response}<end>⟧")
        assert body.count("⟦") == body.count("⟧") == 1


def test_counts_are_those_of_the_weights():
    by_length, tokenizer = rows(packed=True)
    part = by_length[LENGTH]
    tokens = [shown.text_tokens(part, 0, segment) for segment in (1, 2)]
    assert sum(token.trains for text in tokens for token in text) == int(part.weight.sum())
    head = shown.show(by_length, tokenizer, 1).partition("\n")[0]
    trained = sum(token.trains for token in tokens[0])
    assert f"{len(tokens[0])} tokens, {trained} of them train" in head


def test_with_a_loss_on_all_only_the_first_token_is_not_foretold():
    by_length, _ = rows(packed=True, loss_on="all")
    for segment in (1, 2):
        first, *others = shown.text_tokens(by_length[LENGTH], 0, segment)
        assert not first.trains
        assert all(token.trains for token in others)


def test_no_more_texts_than_asked_for():
    by_length, tokenizer = rows(packed=True)
    assert shown.show(by_length, tokenizer, 1).count("row 0") == 1
    assert shown.show(by_length, tokenizer, 0) == ""
