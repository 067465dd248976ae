"""Models whose embedding has more rows than their tokenizer has ids, tied to the output or not."""

import pytest
from safetensors.numpy import load_file

from snake_jax.config import TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop, text_results
from tests.helpers import same_bits
from tests.launches import write_model, write_pairs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", ["tiny-qwen3", "tiny-gemma3"])
def test_rows_that_pad_a_vocabulary_past_the_tokenizer_are_kept_and_mean_nothing(
    preset, tied, tmp_path
):
    base = write_model(tmp_path / "model", preset, vocab_size=320, tie_word_embeddings=tied)
    data = write_pairs(tmp_path / "pairs.jsonl", 12)
    flags = {"model": str(base), "data": str(data), "max_length": 64, "nodes": 2}
    setup = loop.prepare(TextConfig(**flags, always_train="embed,head", lora_rank=0))
    tokenizer = setup.data.tokenizer
    assert tokenizer.vocab_size < setup.model.vocab_size == 320
    # No text has an id of them, and what they would be is no text.
    for rows in setup.data.rows.train.rows.values():
        assert rows.ids.max() < tokenizer.vocab_size
    assert tokenizer.decode([104, 310, 105, 319]) == "hi"
    # They are saved as they were, in one matrix or two.
    text_results.save_model(setup, loop.initial_state(setup).params, tmp_path / "saved")
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    assert same_bits(before, after)
    assert ("lm_head.weight" in after) == (not tied)
    # The other way round there are texts without a row.
    smaller = write_model(tmp_path / "smaller", preset, vocab_size=200, tie_word_embeddings=tied)
    with pytest.raises(UserError, match="259 ids but the model's embedding only 200 rows"):
        loop.prepare(TextConfig(**flags | {"model": str(smaller)}))
