"""Tables of the user's: .csv, plain and gzipped, and .parquet give the rows that .jsonl gives."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from snake_jax.data.text.files import SUFFIXES, read_rows, source_name
from snake_jax.data.text.sources import load_corpus
from snake_jax.errors import UserError

ROWS = [
    {"prompt": "What is it?", "response": "A hat, red."},
    {"prompt": 'Say "yes"', "response": "yes\nand no"},
    {"prompt": "Wo?", "response": "Im Café."},
]


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def csv_text(ends="\n"):
    lines = ["prompt,response"]
    lines += [f"{quoted(row['prompt'])},{quoted(row['response'])}" for row in ROWS]
    return ends.join(lines) + ends


def write(path):
    """The rows in the form that the file's name says."""
    name = path.name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        return path
    if ".csv" in name:
        text = csv_text()
    elif ".jsonl" in name:
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
    else:
        text = json.dumps(ROWS)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_kinds_of_files_give_the_same_rows(suffix, tmp_path):
    path = write(tmp_path / f"mine{suffix}")
    assert [row.value for row in read_rows(str(path))] == ROWS
    assert source_name(str(path)) == "mine"
    corpus = load_corpus(str(path), test_share=0.4)
    assert len(corpus.train) + len(corpus.test) == len(ROWS)


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(csv_text("\r\n").encode("utf-8-sig"))
    assert [row.value for row in read_rows(str(path))] == ROWS


def test_conversations_lie_in_parquet_as_lists(tmp_path):
    chats = []
    for name in ("Ann", "Bob"):
        asked = {"role": "user", "content": f"I am {name}"}
        chats.append({"messages": [asked, {"role": "assistant", "content": "Hello"}]})
    path = tmp_path / "chat.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), path)
    assert [row.value for row in read_rows(str(path))] == chats
    assert len(load_corpus(str(path), test_share=0.5).train) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv:1: want a header"),
        ("a.csv", "prompt,prompt\nx,y\n", "a.csv:1: want a header, a name of its own"),
        ("a.csv", "prompt,response\nx\n", "a.csv:2: has 1 cells where the header has 2"),
        ("a.csv", 'prompt,response\n"x"y,z\n', "a.csv:2: is not CSV"),
        ("a.csv", 'prompt,response\n"x,z\n', "is not CSV"),
        ("a.parquet", "no parquet at all", "a.parquet: is damaged, or no parquet file"),
        ("b.parquet", None, "--data=.*b.parquet: No such file or directory; give the path"),
        ("b.csv", None, "--data=.*b.csv: No such file or directory; give the path"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load_corpus(str(tmp_path / name))
    assert len(str(raised.value).splitlines()) == 1
