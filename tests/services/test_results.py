"""How the growing files of a run are read."""

import os

from snake_jax.services import results
from snake_jax.services.results import ReadPosition


def test_whole_lines_are_given_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert results.lines_from(file, ReadPosition()) == ([], ReadPosition())
    with file.open("a") as stream:
        stream.write("a\nb")
        stream.flush()
        lines, place = results.lines_from(file, ReadPosition())
        assert lines == ["a"]
        assert results.lines_from(file, place) == ([], place)
        stream.write("b\nc\n")
    lines, place = results.lines_from(file, place)
    assert lines == ["bb", "c"]
    assert place.lines == 3
    assert results.lines_from(file, place) == ([], place)


def test_lines_that_a_run_cuts_off_and_writes_again_are_not_given_again(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("a\nb\nc\n")
    _, place = results.lines_from(file, ReadPosition())
    part = tmp_path / "part"
    part.write_text("a\n")
    os.replace(part, file)
    lines, place = results.lines_from(file, place)
    assert (lines, place.lines) == ([], 3)
    with file.open("a") as stream:
        stream.write("b\nc\nd\n")
    lines, place = results.lines_from(file, place)
    assert (lines, place.lines) == (["d"], 4)


def test_the_line_that_says_what_went_wrong_is_found():
    assert results.last_line("one\nerror: no data\n  at the end \n\n") == "no data"
    assert results.last_line("one\n  ValueError: two\n\n") == "ValueError: two"
    assert results.last_line("\n") == ""


def test_nodes_of_a_round_of_several_and_those_that_only_received(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"node": [0, 2], "layers": ["a", "b"]}\n')
    (tmp_path / "ledger.jsonl").write_text(
        '{"source": "server", "destination": "node5", "bytes": 7}\n'
        '{"source": "node2", "destination": "node0", "bytes": 3}\n'
    )
    assert results.nodes_of(tmp_path) == [
        results.NodeResult(0, 1, ["a", "b"], 0, 0, 3),
        results.NodeResult(2, 1, ["a", "b"], 0, 3, 0),
        results.NodeResult(5, 0, [], None, 0, 7),
    ]
