"""`snake-jax profile --algorithm=scct`: places counted by hand."""

import csv
import io
import json

import pytest

from tests.launches import Launcher

FLAGS = (
    "--algorithm=scct",
    "--model=tiny-llama",
    "--small_model=bert-tiny",
    "--nodes=3",
    "--batch_size=2",
    "--max_length=10",
    "--optimizer=adam",
)
# BERT's block of width 128: four products of attention, two of the MLP, biases and two norms.
BLOCK = 4 * (128 * 128 + 128) + 2 * 4 * 128 * 128 + 4 * 128 + 128 + 4 * 128
EMBED = (30522 + 512 + 2 + 2) * 128


@pytest.fixture
def run(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd, "profile")


def test_each_place_has_its_layers_and_their_work(run):
    ended = run(*FLAGS, "--format=json")
    assert ended.code == 0, ended.stderr
    rows = {(row["split"], row["place"]): row for row in json.loads(ended.stdout)["rows"]}
    assert list(rows) == [
        (1, "device"), (1, "edge"), (2, "device"), (2, "edge"), (0, "cloud")
    ]  # fmt: skip
    assert rows[1, "device"]["params"] == EMBED + BLOCK
    assert rows[1, "edge"]["params"] == 3 * BLOCK
    assert rows[2, "device"]["params"] == EMBED + 2 * BLOCK
    assert rows[2, "edge"]["params"] == rows[2, "edge"]["flops"] == 0
    # Weights, gradients, and Adam's two moments (and its counters, one a layer).
    assert 0 <= rows[1, "edge"]["state_bytes"] - 4 * 4 * 3 * BLOCK < 100
    # Products of a block, forward: 12 T D^2 multiply-adds and 2 T^2 D in attention, for 2 rows;
    # forward, forward again and twice that back.
    forward = 2 * (24 * 10 * 128**2 + 4 * 10**2 * 128)
    assert rows[1, "device"]["flops"] == 4 * forward
    assert rows[1, "edge"]["flops"] == 3 * 4 * forward
    values = 2 * 10 * 128 * 4
    assert rows[1, "device"]["sent_bytes"] == values + 2 * 12 * 4
    assert rows[0, "cloud"]["sent_bytes"] == 3 * values
    # Two bottlenecks of width 16 in each of four blocks, and the projection.
    bottleneck = 2 * 64 * 16 + 16 + 64
    assert rows[0, "cloud"]["trained"] == 4 * 2 * bottleneck + 128 * 64 + 64
    assert rows[0, "cloud"]["flops"] > 0


def test_the_table_and_csv_say_the_same(run):
    table = run(*FLAGS, "--layers=2").stdout
    assert "bert-tiny" in table.splitlines()[0]
    assert [line.split()[:2] for line in table.splitlines()[2:]] == [
        ["2", "device"],
        ["2", "edge"],
        ["any", "cloud"],
    ]
    rows = list(csv.DictReader(io.StringIO(run(*FLAGS, "--layers=2", "--format=csv").stdout)))
    assert [row["place"] for row in rows] == ["device", "edge", "cloud"]
    assert "| 2 | device |" in run(*FLAGS, "--layers=2", "--format=markdown").stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([*FLAGS, "--train=full"], "--train"),
        ([*FLAGS, "--layers=3"], "--layers=3"),
        ([*FLAGS, "--small_model=gpt"], "gpt"),
        (["--algorithm=scct", "--model=vgg11"], "large model"),
        (["--model=vgg11", "--small_model=bert-tiny"], "--small_model"),
    ],
)
def test_what_says_nothing_is_refused(flags, said, run):
    ended = run(*flags)
    assert ended.code == 2
    assert said in ended.stderr
