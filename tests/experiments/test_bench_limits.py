"""The limit on one page: what is read from the results, and that every great distance is told."""

import json

import pytest

from experiments.bench import floors, limits, results
from experiments.bench.floors import Found
from experiments.bench.limits import Work
from snake_jax.errors import UserError


def work(found, far="", behind=""):
    return Work("a thing", "command", "a floor", lambda: found, far, behind)


def commit(folder, suite, *rows):
    keys = ("table", "subject", "name", "value")
    content = {"rows": [dict(zip(keys, row, strict=True)) for row in rows]}
    (folder / f"{suite}.json").write_text(json.dumps(content))


def test_every_committed_distance_above_the_bound_has_its_sentence():
    untold = []
    for line, found in limits.measured():
        if found is not None:
            untold += [one for one in limits.distances(line, found) if not one.why]
    assert untold == []


def test_a_new_distance_without_a_sentence_is_found_and_said():
    far = work(Found(3.2, "ms", 1.6, "somebody", 2.0))
    assert [one[1:] for one in limits.distances(far, far.read())] == [
        (1.6, "its floor", ""),
        (2.0, "somebody", ""),
    ]
    text = limits.markdown([far])
    assert "| a thing | 2 ms, a floor | 3.2 ms | 1.6 | somebody, 1.6 ms | 2 | `command` |" in text
    both = "**a thing**, 1.6 times its floor; **a thing**, 2 times somebody"
    assert f"- {both}: {limits.UNEXPLAINED}" in text


def test_a_sentence_is_printed_where_the_distance_is_above_the_bound_and_only_there():
    for ratio, printed in ((1.49, False), (1.51, True)):
        text = limits.markdown([work(Found(1.0, "s", ratio), far="It has to be so.")])
        assert ("It has to be so." in text) is printed
        assert ("Distances above 1.5, and why:" in text) is printed
    behind = work(Found(1.0, "s", 1.0, "somebody", 1.7), far="no", behind="Theirs does less.")
    assert limits.markdown([behind]).endswith(
        "- **a thing**, 1.7 times somebody: Theirs does less."
    )


def test_numbers_are_read_from_the_rows_of_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "COMMITTED", tmp_path)
    table = "Programs of the demo"
    rows = [(table, "evaluation", "read", 1.0)]
    for subject, trace_s, compile_s, read_s in (("one", 1.0, 3.0, 0.5), ("two", 1.0, 5.0, 0.25)):
        rows.append((table, subject, "trace", trace_s))
        rows.append((table, subject, "compile", compile_s))
        rows.append((table, subject, "read", read_s))
    commit(tmp_path, "compile", *rows)
    assert floors.compiling() == Found(5.0, "s", 16.0)


def test_of_a_round_the_fastest_of_ours_stands_beside_the_fastest_peer(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "COMMITTED", tmp_path)
    rows = []
    everyone = {"snake_jax, loop": 2.0, "snake_jax, scan": 1.0, "snake_jax, Snake cycle": 0.1}
    for subject, round_s in (everyone | {"slow": 4.0, "quick": 0.5}).items():
        rows += [("T", subject, "round", round_s), ("T", subject, "over ours", round_s)]
    commit(tmp_path, "round", *rows)
    product = [(floors.VGG, "full", "ours", 100.0), (floors.VGG, "full", "ours / product", 2.0)]
    commit(tmp_path, "step", *product)
    found = floors.fedavg_round("round", "T", 10)
    assert (found.ours, found.peer, found.over_peer) == (1.0, "quick", 2.0)
    assert floors.fedavg_round("round", "T", 20).over_floor == pytest.approx(found.over_floor / 2)


def test_a_result_that_is_not_there_is_not_measured_yet_and_a_missing_row_is_an_error(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "COMMITTED", tmp_path)
    ours = Work("many", "command", "a floor", floors.many)
    assert f"| many |  | {limits.UNMEASURED} |  |  |  | `command` |" in limits.markdown([ours])
    commit(tmp_path, "many", ("an older table", "s", "n", 1.0))
    assert limits.measured([ours]) == [(ours, None)]
    commit(tmp_path, "many", ("A round of many nodes", "10,000 nodes", "CPU", 1.0))
    with pytest.raises(UserError, match=r"many\.json: no row .*'CPU over the fewest'"):
        limits.markdown([ours])
