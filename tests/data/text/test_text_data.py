"""From a corpus to the nodes' rows: no row mixes nodes, packed or not the same tokens count."""

import numpy as np
import pytest

from snake_jax.data.text.samples import Pair
from snake_jax.data.text.sources import Corpus
from snake_jax.data.text.text_data import build_text_data, describe_truncation
from snake_jax.data.text.tokenizers import byte_tokenizer
from snake_jax.errors import UserError

BYTES = byte_tokenizer()
LENGTHS = np.random.default_rng(1).integers(1, 50, (40, 2))
PAIRS = tuple(
    Pair("p" * p, chr(97 + i % 3) * r, "abc"[i % 3]) for i, (p, r) in enumerate(LENGTHS.tolist())
)
CORPUS = Corpus("data", PAIRS[:32], PAIRS[32:])
LAYOUTS = [{"packing": True}, {"packing": False}, {"packing": False, "buckets": (16, 32)}]


def ready(**flags):
    return build_text_data(
        CORPUS,
        BYTES,
        **{"nodes": 3, "kind": "by_category", "categories_per_node": 1, "max_length": 64} | flags,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_belongs_to_one_node_and_holds_only_its_categories(layout):
    data = ready(**layout)
    for length, rows in data.train.rows.items():
        assert rows.ids.shape[1] == length
        owned = np.concatenate([own[length] for own in data.train.nodes if length in own])
        assert sorted(owned.tolist()) == list(range(len(rows.ids)))
    for own, shard in zip(data.train.nodes, data.shards, strict=True):
        ids = np.concatenate(
            [data.train.rows[length].targets[index].ravel() for length, index in own.items()]
        )
        letters = {chr(i) for i in ids if 97 <= i < 100}
        assert letters == {data.samples[i].category for i in shard}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_tokens_that_count_are_those_of_the_node_s_pairs(layout, loss_on):
    data = ready(loss_on=loss_on, **layout)
    for tokens, own, shard in zip(
        data.train.target_tokens, data.train.nodes, data.shards, strict=True
    ):
        pairs = [data.samples[i] for i in shard]
        prompts = sum(len(pair.prompt) + 1 for pair in pairs) if loss_on == "all" else 0
        cut = data.train_truncation.cut_prompts + data.train_truncation.cut_responses
        whole = sum(len(pair.response) + 1 for pair in pairs) + prompts
        counted = sum(
            int(data.train.rows[length].weight[index].sum()) for length, index in own.items()
        )
        assert tokens == counted
        assert tokens == whole if loss_on == "completion" else whole - 64 * cut <= tokens <= whole


def test_held_out_text_comes_in_the_same_form():
    packed, padded = ready(), ready(packing=False, buckets=(16, 32))
    expected = sum(len(pair.response) + 1 for pair in CORPUS.test)
    for data in (packed, padded):
        assert sum(int(rows.weight.sum()) for rows in data.test.values()) == expected
    assert list(packed.test) == [64]
    assert set(padded.test) <= {16, 32, 64}


def test_packing_fills_what_padding_wastes():
    assert ready(packing=False).fill < ready(packing=False, buckets=(16, 32)).fill < ready().fill


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fill_is_the_share_of_all_columns(layout):
    data = ready(**layout)
    columns = sum(rows.segments.size for rows in data.train.rows.values())
    assert data.fill == pytest.approx(
        sum((rows.segments > 0).sum() for rows in data.train.rows.values()) / columns
    )


def test_counts_are_the_nodes_pairs_of_each_category():
    data = ready()
    assert data.categories == ("a", "b", "c")
    assert data.counts.sum() == 32
    assert ((data.counts > 0).sum(1) == 1).all()


def test_what_was_cut_is_told_in_one_line():
    data = ready(max_length=30)
    assert describe_truncation(data.train_truncation) == (
        f"{data.train_truncation.cut_prompts} prompts cut at the left, "
        f"{data.train_truncation.cut_responses} responses "
        f"cut at the right (the longest text has {data.train_truncation.longest} tokens)"
    )
    assert describe_truncation(ready(max_length=200).train_truncation) == ""


def test_answers_that_are_all_cut_are_an_error_that_says_how_long_they_are():
    corpus = Corpus("data", (Pair("p", "r" * 20, "a"),) * 3, CORPUS.test)
    with pytest.raises(
        UserError, match=r"--max_length=20 cuts every response; raise it .* 24 tokens"
    ):
        build_text_data(corpus, BYTES, max_length=20)
    assert build_text_data(corpus, BYTES, max_length=21).train_truncation.cut_responses == 0


def test_wrong_buckets_are_one_line():
    with pytest.raises(UserError, match="--buckets are for --packing=false"):
        ready(buckets=(16,))
    with pytest.raises(UserError, match="--buckets: 65 is not between 1 and --max_length=64"):
        ready(packing=False, buckets=(65,))
