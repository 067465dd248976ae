"""Tokenizers: text survives the way there and back, ids are what the formats say, wrong folders are
named.
"""

import json
import re
import struct
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snake_jax.data.text.scored_bpe import merge_symbols
from snake_jax.data.text.tokenizers import byte_tokenizer, check_fits, load_tokenizer
from snake_jax.errors import UserError

PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
ENCODABLE = st.text(st.characters(exclude_categories=["Cs"]))
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Joined in this order where they can be: "ab" before " a", so "a" is rather taken by a "b" that
# follows.
PIECES = [
    "ab",
    " a",
    "abc",
    " the",
    "he",
    "th",
    "the",
    " t",
    " ",
    "a",
    "b",
    "c",
    "t",
    "h",
    "e",
    "é",
]


def bin_file(pieces=PIECES, longest=None):
    entries = [
        ("<unk>", 0.0),
        ("\n<s>\n", 0.0),
        ("\n</s>\n", 0.0),
        *((piece, 0.0) for piece in BYTES),
    ]
    entries += [(piece, -float(i)) for i, piece in enumerate(pieces)]
    body = b"".join(
        struct.pack("<fI", score, len(text.encode())) + text.encode() for text, score in entries
    )
    return struct.pack("<I", longest or max(len(text.encode()) for text, _ in entries)) + body


@pytest.fixture
def llama2c(tmp_path):
    (tmp_path / "tok.bin").write_bytes(bin_file())
    return load_tokenizer(str(tmp_path))


def ids(*pieces):
    """The ids of pieces, or of bytes, in `bin_file`."""
    return [259 + PIECES.index(piece) if isinstance(piece, str) else 3 + piece for piece in pieces]


@PROPERTY
@given(text=ENCODABLE)
def test_bytes_come_back_as_the_text_they_were(text):
    tokenizer = byte_tokenizer()
    encoded = tokenizer.encode(text)
    assert encoded == list(text.encode())
    assert (
        tokenizer.decode([tokenizer.bos_id, *encoded, tokenizer.eos_id, tokenizer.pad_id]) == text
    )


def test_the_byte_tokenizer_has_three_ids_beside_the_bytes():
    tokenizer = byte_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (
        259,
        256,
        257,
        258,
    )
    assert load_tokenizer("").encode("é") == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (
            "the",
            [" the"],
            # "he" is joined first, so " t" and "th" never come about; then "the", and that with the
            # space
        ),
        ("tth", [" t", "th"]),
        ("abc", [" ", "abc"]),
        ("ac", [" a", "c"]),
        ("c ab a", [" ", "c", " ", "ab", " a"]),
        ("aé\n", [" a", "é", 10]),
        ("z", [" ", ord("z")]),
        ("漢", [" ", *"漢".encode()]),
        ("<s>", [" ", *b"<s>"]),
    ],
)
def test_llama2c_pieces_are_joined_by_score_and_the_rest_are_bytes(llama2c, text, expected):
    assert llama2c.encode(text) == ids(*expected)


def slow_merge(text, scores):
    """The definition: as long as any neighbours join, those with the highest score do, the leftmost
    of equals.
    """
    symbols = list(text)
    while True:
        joinable = [
            (-scores[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores
        ]
        if not joinable:
            return symbols
        i = min(joinable)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@PROPERTY
@given(
    text=st.text("ab ", max_size=30),
    scores=st.dictionaries(
        st.text("ab ", min_size=2, max_size=5), st.integers(-4, 0).map(float), max_size=12
    ),
)
@example("abab", {"ab": 0.0, "abab": -1.0})
def test_merging_with_a_heap_is_merging_by_the_definition(text, scores):
    assert merge_symbols(text, scores) == slow_merge(text, scores)


@PROPERTY
@given(text=st.text("abcthe \né漢\t", max_size=60), pieces=st.permutations(PIECES))
def test_cutting_a_text_into_chunks_changes_no_id(tmp_path_factory, text, pieces):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tok.bin").write_bytes(bin_file(pieces))
    tokenizer = load_tokenizer(str(folder))
    scores = {piece: -float(i) for i, piece in enumerate(pieces)}
    spelled = merge_symbols(f" {text}", scores) if text else []
    expected = [
        i
        for s in spelled
        for i in ([259 + pieces.index(s)] if s in pieces else [3 + b for b in s.encode()])
    ]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode([1, *expected, 2]) == text


def test_pieces_that_reach_over_a_space_are_found_too(tmp_path):
    (tmp_path / "tok.bin").write_bytes(bin_file(["a b", "a ", " ", "a", "b"]))
    assert load_tokenizer(str(tmp_path)).encode("a b") == [261, 259]


def test_ids_beyond_the_vocabulary_stand_for_no_text(llama2c):
    assert llama2c.decode([*ids(" the"), 10_000, 0]) == "the"


def field(number, kind, value):
    """One field of a protocol buffer; all lengths here are below 128."""
    head = bytes([number << 3 | kind])
    return (
        head + bytes([value])
        if kind == 0
        else head + (value if kind == 5 else bytes([len(value)]) + value)
    )


def model_file(model_type=2, kind=1, normalizer=b"", eos="</s>"):
    def piece(text, score, kind):
        return field(
            1,
            2,
            field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score)) + field(3, 0, kind),
        )

    entries = [
        piece("<unk>", 0, 2),
        piece("<s>", 0, 3),
        piece(eos, 0, 3),
        *(piece(byte, 0, 6) for byte in BYTES),
    ]
    entries += [piece(text.replace(" ", "▁"), -i, kind) for i, text in enumerate(PIECES)]
    return (
        b"".join(entries)
        + field(2, 2, field(3, 0, model_type))
        + field(3, 2, normalizer + field(4, 0, 0))
    )


def test_a_sentencepiece_model_gives_the_ids_of_the_same_pieces_in_llama2c_format(
    tmp_path, llama2c
):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model_file())
    tokenizer = load_tokenizer(str(folder))
    text = "the ab c  thé\n漢 abcabc"
    assert tokenizer.encode(text) == llama2c.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 259 + len(PIECES))
    (folder / "tokenizer.model").write_bytes(model_file(normalizer=field(3, 0, 0)))
    assert load_tokenizer(str(folder)).encode("the") == ids("the")


@pytest.mark.parametrize(
    "content",
    [
        b"IQ== 0\nIg== 1\n",
        b"",
        model_file()[:-3],
        model_file(model_type=1),
        model_file(kind=4),
        model_file(normalizer=field(2, 2, b"table")),
        model_file(eos="<end>"),
    ],
)
def test_another_kind_of_model_file_is_refused_with_the_way_out(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=re.escape("tokenizer.json")):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\1\0", bin_file()[:-1], bin_file()[:500], b"\xff" * 64])
def test_a_damaged_llama2c_file_is_named(tmp_path, content):
    (tmp_path / "tok.bin").write_bytes(content)
    with pytest.raises(UserError, match=re.escape("tok.bin: is not a llama2.c tokenizer")):
        load_tokenizer(str(tmp_path))


def byte_level(folder, special, merges=("h e", "Ġ t")):
    """vocab.json and merges.txt over all bytes, in the letters that GPT-2 writes them with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
    tokens = [*special, *letters, *(merge.replace(" ", "") for merge in merges)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return {token: i for i, token in enumerate(tokens)}


@pytest.mark.parametrize(
    ("special", "expected"),
    [(["<s>", "<pad>", "</s>", "<|endoftext|>"], (2, 2, 1)), (["<|endoftext|>"], (0, 0, 0))],
)
def test_vocabulary_and_merges_alone_are_read_as_opt_and_gpt2_write_them(
    tmp_path, special, expected
):
    pytest.importorskip("tokenizers")
    numbers = byte_level(tmp_path, special)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("he tü") == [numbers[token] for token in ("he", "Ġt", "Ã", "¼")]
    assert (
        tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("he tü\n"), tokenizer.eos_id])
        == "he tü\n"
    )
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == expected
    assert tokenizer.vocab_size == len(numbers)


def test_the_model_s_configuration_says_which_ids_begin_and_end(tmp_path):
    pytest.importorskip("tokenizers")
    byte_level(tmp_path, ["<s>", "<pad>", "</s>"])
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)


def fast_tokenizer(folder):
    library = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<s>", "</s>", "one", "two", "<unk>"])}
    tokenizer = library.Tokenizer(library.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_json_alone_is_enough(tmp_path):
    fast_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("one two one") == [2, 3, 2]
    assert tokenizer.decode([0, 2, 3, 1]) == "one two"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size, tokenizer.chat_template) == (
        0,
        1,
        5,
        None,
    )


def test_a_folder_of_transformers_brings_its_special_tokens_and_chat_template(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    fast_tokenizer(tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": "{% for m in messages %}[{{ m.content }}]{% if m.role == 'tool' %}"
        "{{ raise_exception('no\n tools') }}{% endif %}{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("one two") == [2, 3]
    assert tokenizer.decode([2, 3, 1]) == "one two"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 1, 1)
    assert tokenizer.chat_template.render([{"role": "user", "content": "one"}], True) == "[one]"
    with pytest.raises(
        UserError, match=re.escape("its chat template fails: no tools; try --template=plain")
    ):
        tokenizer.chat_template.render([{"role": "tool", "content": "one"}], True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer; wanted: tokenizer_config.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json is not a JSON object"),
        ({"tokenizer.json": '{"vocab": ["a"]}'}, "holds no tokenizer"),
        ({"tokenizer.json": '{"model": {"type": "none"}}'}, "tokenizer.json cannot be read"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "no end of text"),
        ({"vocab.json": "?", "merges.txt": ""}, "vocab.json cannot be read"),
        ({"tokenizer_config.json": "{}"}, "transformers cannot load it"),
    ],
)
def test_a_folder_without_a_usable_tokenizer_is_one_line(tmp_path, files, message):
    pytest.importorskip("transformers")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        load_tokenizer(str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_never_looked_for_elsewhere(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(str(tmp_path / "gpt2"))


def test_a_tokenizer_must_fit_the_embedding(llama2c):
    check_fits(llama2c, 259 + len(PIECES))
    # A table padded past the tokenizer's ids, as many models have it.
    check_fits(llama2c, 320 + len(PIECES))
    with pytest.raises(
        UserError, match=f"{259 + len(PIECES)} ids but the model's embedding only 259 rows"
    ):
        check_fits(llama2c, 259)
