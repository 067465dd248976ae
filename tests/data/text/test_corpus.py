"""Text data from files and the hub: fields, splits, categories, and one clear line for what is
wrong.
"""

import gzip
import json
import sys
import types

import pytest

from snake_jax.data.text.samples import Conversation, Document, Pair, Turn
from snake_jax.data.text.sources import load_corpus
from snake_jax.errors import UserError


def write(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def numbered(count, **more):
    return [{"prompt": f"question {i}", "response": f"answer {i}", **more} for i in range(count)]


def both(corpus):
    return sorted(corpus.train + corpus.test)


@pytest.mark.parametrize(
    ("record", "prompt", "response"),
    [
        ({"prompt": "Q", "response": "A"}, "Q", "A"),
        ({"prompt": "Q", "response": "A", "chosen": "C", "rejected": "R"}, "Q", "A"),
        ({"prompt": "Q", "chosen": " C", "rejected": " R"}, "Q", "C"),
        ({"prompt": "Q", "completion": "A"}, "Q", "A"),
        ({"prompt": "Q", "input": "not context of a prompt", "output": "A"}, "Q", "A"),
        ({"instruction": "Q", "input": "", "output": "A"}, "Q", "A"),
        ({"instruction": "Q", "input": "X", "output": "A"}, "Q\n\nX", "A"),
        ({"instruction": "Q", "context": "X", "response": "A"}, "Q\n\nX", "A"),
        ({"question": "Q", "answer": "7"}, "Q", "7"),
        ({"question": "Q", "context": None, "answer": "A"}, "Q", "A"),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            "Q",
            "A",
        ),
        ({"prompt": "half a pair \ud83d", "response": "A"}, "half a pair ?", "A"),
    ],
)
def test_the_common_fields_are_found(tmp_path, record, prompt, response):
    path = write(tmp_path / "data.jsonl", record, {"prompt": "other", "response": "text"})
    assert Pair(prompt, response, "data") in both(load_corpus(path))


CONVERSATION = Conversation(
    (
        Turn("system", "S"),
        Turn("user", "Q1"),
        Turn("assistant", "A1"),
        Turn("user", "Q2"),
        Turn("assistant", "A2"),
    ),
    "data",
)
SPOKEN = [
    ("system", "S"),
    ("user", "Q1"),
    ("assistant", "A1"),
    ("user", "Q2"),
    ("assistant", "A2 "),
    ("user", "thanks"),
]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": role, "content": said} for role, said in SPOKEN]},
        {"conversations": [{"from": SHAREGPT[role], "value": said} for role, said in SPOKEN]},
        {
            "system": "S",
            "conversations": [{"from": SHAREGPT[role], "value": said} for role, said in SPOKEN[1:]],
        },
        {"id": 1, "conversation": [{"from": role, "value": said} for role, said in SPOKEN]},
    ],
)
def test_a_conversation_keeps_its_turns_up_to_the_last_answer(tmp_path, record):
    path = write(tmp_path / "data.jsonl", record, {"prompt": "other", "response": "text"})
    assert CONVERSATION in load_corpus(path).train + load_corpus(path).test


def test_a_question_and_its_answer_in_the_fields_of_sharegpt_are_a_pair(tmp_path):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    path = write(tmp_path / "data.jsonl", {"conversations": turns}, *numbered(1))
    assert Pair("Q", "A", "data") in both(load_corpus(path))


def test_conversations_that_begin_alike_lie_on_one_side(tmp_path):
    def talk(opening, more):
        said = [("user", opening), ("assistant", "A"), ("user", more), ("assistant", "B")]
        return {"messages": [{"role": role, "content": content} for role, content in said]}

    records = [talk(f"question {i % 7}", f"more {i}") for i in range(35)]
    corpus = load_corpus(write(tmp_path / "data.jsonl", *records), test_share=0.3)
    assert len(corpus.train) + len(corpus.test) == 35
    sides = [{c.turns[0].content for c in side} for side in (corpus.train, corpus.test)]
    assert not sides[0] & sides[1]
    assert all(sides)


def test_a_text_alone_is_a_document(tmp_path):
    records = [{"text": f"it is {i}. ", "category": "c"} for i in range(20)]
    corpus = load_corpus(write(tmp_path / "data.jsonl", *records, {"text": " "}))
    assert (len(corpus.train), len(corpus.test)) == (18, 2)
    assert sorted(corpus.train + corpus.test) == sorted(
        Document(f"it is {i}. ", "c") for i in range(20)
    )
    assert corpus.notes == ("data: 1 texts without text left out",)


def test_equal_documents_lie_on_one_side(tmp_path):
    records = [{"text": f"it  is {i % 5}"} for i in range(20)]
    corpus = load_corpus(write(tmp_path / "data.jsonl", *records))
    assert corpus.test
    assert not set(corpus.train) & set(corpus.test)
    with pytest.raises(UserError, match="holds one text only, so none can be held out"):
        load_corpus(write(tmp_path / "one.jsonl", {"text": "a b"}, {"text": "a  b"}))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_byte_order_mark_is_passed_over(tmp_path, suffix):
    content = "".join(json.dumps(record) + "\n" for record in numbered(20)).encode()
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    (tmp_path / f"data{suffix}").write_bytes(pack(content))
    (tmp_path / "marked").mkdir()
    (tmp_path / "marked" / f"data{suffix}").write_bytes(pack(b"\xef\xbb\xbf" + content))
    plain = load_corpus(str(tmp_path / f"data{suffix}"))
    assert load_corpus(str(tmp_path / "marked" / f"data{suffix}"))[1:] == plain[1:]


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_a_json_file_is_read_as_its_lines(tmp_path, suffix, mark, indent):
    content = mark + json.dumps(numbered(20), indent=indent).encode()
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    (tmp_path / f"data{suffix}").write_bytes(pack(content))
    lines = load_corpus(write(tmp_path / "data.jsonl", *numbered(20)))
    assert load_corpus(str(tmp_path / f"data{suffix}"))[1:] == lines[1:]


def test_json_lines_in_a_json_file_are_read_too(tmp_path):
    lines = load_corpus(write(tmp_path / "data.jsonl", *numbered(20)))
    assert load_corpus(write(tmp_path / "data.json", *numbered(20)))[1:] == lines[1:]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_a_file_of_lines_is_one_line_that_says_so(tmp_path, indent):
    (tmp_path / "data.jsonl").write_text(json.dumps(numbered(20), indent=indent))
    with pytest.raises(UserError) as error:
        load_corpus(str(tmp_path / "data.jsonl"))
    assert str(error.value) == (
        f"{tmp_path / 'data.jsonl'}:1: want an object on each line, but here begins a JSON array; "
        "let the file's name end in .json"
    )


BAD_ROWS = [
    {"prompt": "q1", "response": None},
    *numbered(4),
    {"prompt": "q2", "response": None},
    {"question": "no answer"},
]


@pytest.mark.parametrize("value", [7, 0.5, float("nan"), True, ["A"], {"text": "A"}, None])
@pytest.mark.parametrize("field", ["prompt", "response", "content", "text"])
def test_what_is_no_text_is_named_with_file_line_and_field(field, value, tmp_path):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": value}]
    records = {
        "prompt": {"prompt": value, "response": "A"},
        "response": {"prompt": "Q", "response": value},
        "content": {"messages": turns},
        "text": {"text": value},
    }
    path = write(tmp_path / "data.jsonl", *numbered(4), records[field])
    with pytest.raises(UserError) as error:
        load_corpus(path)
    assert str(error.value).startswith(f"{path}:5: field {field} is not text but {value!r}; ")
    assert "\n" not in str(error.value)


def test_a_category_may_be_a_number(tmp_path):
    path = write(tmp_path / "data.jsonl", *numbered(4, category=3))
    assert {sample.category for sample in both(load_corpus(path))} == {"3"}


def test_bad_rows_are_counted_and_the_way_out_is_said(tmp_path):
    path = write(tmp_path / "data.jsonl", *BAD_ROWS)
    with pytest.raises(UserError) as error:
        load_corpus(path)
    assert str(error.value) == (
        f"{path}:1: field response is not text but None; leave such rows out, or say "
        "--skip_bad_rows (3 of 7 rows are bad)"
    )


def test_bad_rows_are_skipped_where_that_is_asked_for_and_counted(tmp_path):
    path = write(tmp_path / "data.jsonl", *BAD_ROWS)
    with open(path, "a") as file:
        file.write("{half a row\n")
    corpus = load_corpus(path, skip_bad_rows=True)
    good = load_corpus(write(tmp_path / "good" / "data.jsonl", *numbered(4)))
    assert corpus[1:3] == good[1:3]
    assert corpus.notes == (
        f"data: 4 of 8 rows skipped, the first: {path}:1: field response is not text but None",
    )


def test_bad_rows_of_an_array_are_named_by_their_place(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(BAD_ROWS[1:]))
    with pytest.raises(UserError, match=r"data.json\[4\]: field response is .*\(2 of 6 rows are"):
        load_corpus(str(tmp_path / "data.json"))


def test_a_file_of_bad_rows_alone_cannot_be_skipped(tmp_path):
    path = write(tmp_path / "data.jsonl", {"a": 1}, {"b": 1})
    with pytest.raises(UserError, match=r"it has a \(of 2 rows none can be read\)"):
        load_corpus(path, skip_bad_rows=True)


def test_a_gzip_file_is_read_as_the_plain_one(tmp_path):
    plain = write(tmp_path / "data.jsonl", *numbered(20))
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress((tmp_path / "data.jsonl").read_bytes()))
    assert load_corpus(plain)[1:] == load_corpus(f"{plain}.gz")[1:]


def test_a_share_of_the_prompts_is_held_out_and_all_pairs_of_a_prompt_lie_on_one_side(tmp_path):
    records = [{"prompt": f"question {i % 50}", "response": f"answer {i}"} for i in range(200)]
    corpus = load_corpus(write(tmp_path / "data.jsonl", *records), test_share=0.2)
    assert len(corpus.train) + len(corpus.test) == 200
    assert len(corpus.test) == 40
    assert not {p.prompt for p in corpus.train} & {p.prompt for p in corpus.test}


def test_the_seed_decides_what_is_held_out(tmp_path):
    path = write(tmp_path / "data.jsonl", *numbered(100))
    assert load_corpus(path, seed=1) == load_corpus(path, seed=1)
    assert load_corpus(path, seed=1).test != load_corpus(path, seed=2).test


def test_a_split_of_its_own_is_kept_and_prompts_on_both_sides_leave_the_training_pairs(tmp_path):
    held_out = [{"prompt": "question  3", "response": "again", "split": "validation"}]
    path = write(tmp_path / "data.jsonl", *numbered(10, split="train"), *held_out)
    corpus = load_corpus(path)
    assert corpus.test == (Pair("question  3", "again", "data"),)
    assert [p.prompt for p in corpus.train] == [f"question {i}" for i in range(10) if i != 3]
    assert corpus.notes == ("data: 1 training pairs left out, because their prompts are held out",)


def test_a_training_file_and_a_test_file_together_keep_their_categories(tmp_path):
    one = write(tmp_path / "a_train.jsonl", *numbered(10, split="train", category="x"))
    two = write(
        tmp_path / "a_test.jsonl",
        {"prompt": "p", "response": "r", "split": "test", "category": "x"},
    )
    corpus = load_corpus(f"{one}, {two}")
    assert len(corpus.train) == 10
    assert corpus.test == (Pair("p", "r", "x"),)
    assert {pair.category for pair in corpus.train} == {"x"}


def test_training_marks_alone_do_not_leave_us_without_held_out_text(tmp_path):
    corpus = load_corpus(write(tmp_path / "data.jsonl", *numbered(30, split="train")))
    assert (len(corpus.train), len(corpus.test)) == (27, 3)


def test_categories_are_the_data_s_own_or_the_names_of_several_sources(tmp_path):
    one = write(tmp_path / "one.jsonl", *numbered(10, category="x"))
    two = write(tmp_path / "two.jsonl", *[{"prompt": f"p{i}", "response": "r"} for i in range(10)])
    assert {pair.category for pair in both(load_corpus(one))} == {"x"}
    assert {pair.category for pair in both(load_corpus(two))} == {"two"}
    assert {pair.category for pair in load_corpus(f"{one},{two}").train} == {"one", "two"}


def test_no_prompt_of_one_source_is_held_out_in_another(tmp_path):
    one = write(tmp_path / "one.jsonl", *numbered(50))
    two = write(
        tmp_path / "two.jsonl",
        *[{"prompt": f"question {i}", "response": "other"} for i in range(50)],
    )
    corpus = load_corpus(f"{one},{two}", seed=3)
    assert corpus.test
    assert not {p.prompt for p in corpus.train} & {p.prompt for p in corpus.test}


def test_a_limit_keeps_so_many_training_pairs_of_each_source(tmp_path):
    one = write(tmp_path / "one.jsonl", *numbered(100))
    corpus = load_corpus(one, limit=20)
    assert (len(corpus.train), len(corpus.test)) == (20, 2)
    assert set(corpus.train) < set(load_corpus(one).train)


def test_pairs_without_text_are_left_out_with_a_word(tmp_path):
    path = write(
        tmp_path / "data.jsonl",
        *numbered(5),
        {"prompt": "Q", "response": " "},
        {"prompt": "", "response": "A"},
    )
    corpus = load_corpus(path)
    assert len(both(corpus)) == 5
    assert corpus.notes == ("data: 2 pairs without a prompt or a response left out",)


def test_the_text_that_ships_with_python_is_a_source():
    corpus = load_corpus("pydoc", limit=50)
    assert len(corpus.train) == 50
    assert "special methods" in {pair.category for pair in corpus.train}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no pairs"),
        ('{"prompt": "", "response": "A"}\n', "holds no pairs"),
        ('{"prompt": "Q", "response": "A"}\n\n{"prompt": \n', "data.jsonl:3: is not JSON"),
        ("[1]\n", "data.jsonl:1: want an object"),
        ('{"prompt": "Q", "response": "A"}\n[1]\n', "data.jsonl:2: want an object"),
        ('{"prompt": "Q", "response": "A"}\n"Q"\n', "as prompt and response, not a string"),
        (
            '{"title": "A"}\n',
            "data.jsonl:1: has none of the fields prompt, instruction, question; it has title",
        ),
        ('{"prompt": "Q", "text": "A"}\n', "has none of the fields response, chosen"),
        (
            '{"prompt": ["Q"], "response": "A"}\n',
            "data.jsonl:1: field prompt is not text but ['Q']",
        ),
        (
            '{"prompt": "Q", "response": null}\n',
            "data.jsonl:1: field response is not text but None",
        ),
        (
            '{"prompt": "Q", "response": "A", "split": "half"}\n',
            "data.jsonl:1: split 'half' is unknown",
        ),
        ('{"conversations": [{"role": "user"}]}\n', "conversations must be a list"),
        ('{"messages": "Q"}\n', "data.jsonl:1: messages must be a list"),
        ('{"messages": [{"role": "user", "content": "Q"}]}\n', "hold no answer"),
        ('{"messages": [{"role": "tool", "content": "Q"}]}\n', "role tool is unknown"),
        ('{"prompt": "Q", "response": "A"}\n{"prompt": "Q", "response": "B"}\n', "one prompt only"),
        ('{"prompt": "Q", "response": "A", "split": "test"}\n', "all are held out"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(tmp_path, content, message):
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(UserError) as error:
        load_corpus(str(tmp_path / "data.jsonl"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "damaged, or not a gzip file"),
        (gzip.compress(b'{"prompt": "Q", "response": "A"}\n' * 9999, mtime=0)[:200], "damaged"),
        (gzip.compress(b"\xff\xfe\x00", mtime=0), "is not UTF-8"),
    ],
)
def test_a_damaged_file_is_said_in_one_line(tmp_path, content, message):
    (tmp_path / "data.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_corpus(str(tmp_path / "data.jsonl.gz"))


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("nosuch", {}, "--data=nosuch is unknown"),
        ("hub:", {}, "--data=hub: is unknown"),
        ("nosuch.jsonl", {}, "nosuch.jsonl: No such file"),
        ("pydoc,pydoc", {}, "two sources named pydoc"),
        ("pydoc", {"test_share": 1.0}, "--test_share=1"),
        ("pydoc", {"limit": -1}, "--limit=-1"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(spec, arguments, message):
    with pytest.raises(UserError, match=message):
        load_corpus(spec, **arguments)


class Offline(Exception):
    pass


def hub(monkeypatch, splits):
    """A stand-in for the package datasets, with one data set; returns the names asked for."""
    asked = []

    def load_dataset(name):
        asked.append(name)
        if splits is None:
            raise Offline("cannot\nreach the hub")
        return splits

    module = types.SimpleNamespace(
        load_dataset=load_dataset, exceptions=types.SimpleNamespace(DatasetsError=Offline)
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


DIALOGUE = "\n\nHuman: Q{}\n\n"


@pytest.mark.parametrize(
    ("name", "prompt", "chosen", "expected"),
    [
        ("Dahoas/rm-static", DIALOGUE + "Assistant:", " A", DIALOGUE + "Assistant:"),
        ("Dahoas/full-hh-rlhf", DIALOGUE + "Assistant:", " A", DIALOGUE + "Assistant:"),
        ("Dahoas/synthetic-instruct-gptj-pairwise", "Q{}", "A", "Q{}"),
        ("yitingxie/rlhf-reward-datasets", DIALOGUE, "Assistant: A", DIALOGUE + "Assistant:"),
    ],
)
def test_the_paper_s_data_sets_give_the_preferred_answers(
    monkeypatch, name, prompt, chosen, expected
):
    rows = [
        {"prompt": prompt.format(i), "response": "other", "chosen": chosen, "rejected": "no"}
        for i in range(9)
    ]
    asked = hub(monkeypatch, {"train": rows[:4], "test": rows[4:]})
    corpus = load_corpus(name)
    short = name.split("/")[1]
    assert corpus.train == tuple(Pair(expected.format(i), "A", short) for i in range(4))
    assert corpus.test == tuple(Pair(expected.format(i), "A", short) for i in range(4, 9))
    assert load_corpus(short)[1:] == corpus[1:]
    assert asked == [name, name]


def test_another_data_set_of_the_hub_is_read_by_its_fields_and_divided_where_it_has_no_test_part(
    monkeypatch,
):
    hub(
        monkeypatch,
        {"train": [{"question": f"Q{i}", "answer": "A", "category": "c"} for i in range(20)]},
    )
    corpus = load_corpus("hub:someone/some-data")
    assert (len(corpus.train), len(corpus.test)) == (18, 2)
    assert corpus.train[0].category == "c"


def test_a_hub_data_set_without_the_fields_names_the_row(monkeypatch):
    hub(monkeypatch, {"train": [{"title": "A"}]})
    with pytest.raises(
        UserError, match="someone/some-data, train row 0: has none of the fields prompt"
    ):
        load_corpus("hub:someone/some-data")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    hub(monkeypatch, None)
    with pytest.raises(
        UserError, match="cannot be loaded from the Hugging Face hub: cannot reach the hub"
    ):
        load_corpus("Dahoas/rm-static")


def test_without_the_package_datasets_the_way_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        load_corpus("Dahoas/rm-static")
