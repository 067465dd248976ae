"""Who serves a run: admission, leaving and joining, and what events.jsonl says of it."""

import dataclasses
import json

import numpy as np
import pytest

from snake_jax.algorithms import pool
from snake_jax.algorithms.pool import Move, Served
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.report.events import read_events
from snake_jax.runs import loop
from snake_jax.runs.front import kept_rounds
from snake_jax.runs.membership import read_requests
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import write_images

SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**SMALL, "dataset": f"npz:{images}"}


def prepared(small, **flags):
    return loop.prepare(ImageConfig(**{**small, **flags}))


def planned_nodes(small, **flags):
    return [[visit.node for visit in visits] for visits in loop.planned(prepared(small, **flags))]


def trained(setup, requests=tuple):
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    return list(loop.train(setup, engine, state, lambda state: None, requests))


def what(report_or_rows):
    """Node and kind of every event but admissions."""
    rows = [e._asdict() if hasattr(e, "_asdict") else e for e in report_or_rows]
    return [(row["node"], row["event"]) for row in rows if row["event"] != "admitted"]


# By flags. The mlp has two middle layers, so two cycles are visits 0 to 3.


def test_visits_of_a_node_that_is_away_go_to_the_next_that_is_there(small):
    assert planned_nodes(small) == [[0], [1], [2], [0]]
    assert planned_nodes(small, leave="1@1") == [[0], [2], [2], [0]]
    assert planned_nodes(small, leave="0@1,2@2") == [[0], [1], [1], [1]]
    assert planned_nodes(small, leave="1@0", join="1@3") == [[0], [2], [2], [0]]
    assert planned_nodes(small, join="2@3") == [[0], [1], [0], [0]]


def test_who_takes_over_is_there(small):
    flags = {"interrupt": "0@0", "interruption": "lost", "leave": "1@0"}
    assert planned_nodes(small, **flags) == [[0], [2], [2], [2], [0]]


def test_a_round_of_several_is_without_those_who_are_away(small):
    fedavg = {"algorithm": "fedavg", "cycles": 3}
    assert planned_nodes(small, **fedavg, leave="0@1") == [[0, 1, 2], [1, 2], [1, 2]]
    late = {"join": "2@1", "leave": "0@2,1@2"}
    assert planned_nodes(small, **fedavg, **late) == [[0, 1], [0, 1, 2], [2]]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"leave": "5@1"}, "there is no node 5; the last is 2"),
        ({"leave": "1@9"}, "there is no visit 9; the last is 3"),
        ({"leave": "0@1,1@1,2@1"}, "nobody is left to train visit 1"),
        ({"leave": "1"}, "want NODE@VISIT"),
        ({"join": "1@x"}, "--join=1@x: want NODE@VISIT"),
        ({"leave": "1@1,1@2"}, "node 1 must leave and join by turns"),
        ({"leave": "1@2", "algorithm": "sequential"}, "sequential has no use for it"),
        ({"min_examples": 1000}, "no node is admitted; node 0 holds 30 examples"),
        ({"max_label_divergence": 0.2}, "say --share_labels too"),
    ],
)
def test_pools_that_make_no_sense_are_refused_in_one_line(small, flags, reason):
    with pytest.raises(UserError) as error:
        prepared(small, **flags)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# Because of how training went


def test_a_node_leaves_when_it_has_what_it_stayed_for():
    def why(before, now, **flags):
        return pool.why_leaves(ImageConfig(**flags), before, now)

    one, two = Served(1, 0, 2.0), Served(2, 0, 1.99)
    assert why(one, two) == ""
    assert why(one, two, leave_epochs=4, local_epochs=2) == "it trained its 4 epochs"
    assert why(one, two, leave_epochs=5, local_epochs=2) == ""
    assert why(one, two, leave_loss=1.99) == "its loss of 1.99 is at most --leave_loss=1.99"
    assert why(one, two, leave_loss=1.98) == ""
    assert why(one, two, leave_gain=0.01).startswith("its loss went from 2 to 1.99, by less than")
    assert why(one, two, leave_gain=0.004) == ""
    lost = Served(1, 2, 2.0)
    assert why(one, lost, leave_lost=2) == "2 of its visits were lost"
    # A lost visit tells nothing of what the node has learned.
    assert why(one, lost, leave_loss=3.0, leave_epochs=1) == ""


def test_a_run_ends_when_all_nodes_have_left(small):
    reports = trained(prepared(small, cycles=3, leave_epochs=1))
    assert [report.record["node"] for report in reports] == [0, 1, 2]
    assert [what(report.events) for report in reports] == [
        [(0, "left")],
        [(1, "left")],
        [(2, "left")],
    ]
    assert reports[-1].record["accuracy"] is not None
    assert reports[-1].state.moves == tuple(
        Move(node + 1, node, False, "it trained its 1 epochs") for node in range(3)
    )


def test_who_loses_visits_too_often_goes(small):
    flags = {"interrupt": "1@0", "interruption": "lost", "leave_lost": 1, "cycles": 3}
    reports = trained(prepared(small, **flags))
    assert [report.record["node"] for report in reports] == [0, 1, 2, 2, 0, 2, 2]
    assert what(reports[1].events) == [(1, "lost"), (1, "left")]
    assert what(reports[2].events) == [(2, "taken over")]
    (taken,) = reports[2].events
    assert taken.cause == "from node 1, from the layers as last merged"
    # What was decided replays as a flag.
    flagged = trained(prepared(small, **{**flags, "leave_lost": 0, "leave": "1@2"}))
    assert [report.record["node"] for report in flagged] == [0, 1, 2, 2, 0, 2, 2]
    assert same_bits(flagged[-1].state.params, reports[-1].state.params)


# On request


def test_requests_are_heard_between_visits(small):
    asked = []

    def requests():
        return asked

    setup = prepared(small)
    course = loop.train(
        setup, loop.make_engine(setup), loop.initial_state(setup), lambda state: None, requests
    )
    first = next(course)
    assert what(first.events) == []
    asked += read_requests('{"node": 2, "do": "leave"}\n{"node": 9, "do": "join"}\n{"no')
    second = next(course)
    assert what(second.events) == [(2, "left")]
    asked += read_requests('{"node": 2, "do": "join"}\n')
    third = next(course)
    assert third.record["node"] == 0, "node 2 was away"
    assert what(third.events) == [(2, "joined")]
    assert third.state.requests == 3
    flagged = trained(prepared(small, leave="2@2", join="2@3"))
    assert same_bits(flagged[2].state.params, third.state.params)


@pytest.mark.parametrize(
    "line", ["x", "{}", '{"node": "2", "do": "leave"}', '{"node": 1, "do": 2}']
)
def test_what_is_no_request_is_said_in_one_line(line):
    with pytest.raises(UserError, match="is no request"):
        read_requests(line + "\n")


# Admission


def test_nodes_are_admitted_by_what_they_hold_and_can_do(small, tmp_path):
    parts = [list(range(50)), list(range(50, 80)), list(range(80, 90))]
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    by_file = {**small, "partition": f"file:{tmp_path / 'parts.json'}"}
    setup = prepared(by_file, min_examples=20)
    assert setup.plan.refused == {2: "holds 10 examples, fewer than --min_examples=20"}
    reports = trained(setup)
    # Node 1 holds less than node 0, so it is done the sooner with a visit that node 2 would have.
    assert [report.record["node"] for report in reports] == [0, 1, 1, 0]
    started = [(event.node, event.event, event.cause) for event in reports[0].events]
    assert started == [
        (0, "admitted", "it holds 50 examples"),
        (1, "admitted", "it holds 30 examples"),
        (2, "refused", setup.plan.refused[2]),
    ]

    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes:\n  - {count: 2}\n  - {flops_per_s: 1.0e+9, memory_bytes: 1.0e+9}\n")
    stated = {**small, "node_file": str(nodes)}
    for flag, floor in (("min_flops_per_s", 2e9), ("min_memory_bytes", 2e9)):
        assert list(prepared(stated, **{flag: floor}).plan.refused) == [2]


def test_labels_are_compared_and_told_where_nodes_consent(small, tmp_path):
    labels = [index % 4 for index in range(90)]
    parts = [
        [index for index in range(90) if labels[index] == 0],
        [index for index in range(90) if labels[index] and index < 45],
        [index for index in range(90) if labels[index] and index >= 45],
    ]
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    by_file = {**small, "partition": f"file:{tmp_path / 'parts.json'}", "share_labels": True}
    setup = prepared(by_file, max_label_divergence=0.5)
    assert list(setup.plan.refused) == [0]
    assert setup.about_nodes[1] == "it holds 33 examples, by label 0 11 11 11"
    assert prepared({**by_file, "share_labels": False}).about_nodes[1] == "it holds 33 examples"


def test_a_node_whose_data_is_too_unsound_is_refused(small, tmp_path):
    with np.load(small["dataset"].removeprefix("npz:")) as arrays:
        images = {name: arrays[name] for name in arrays}
    images["train_x"] = images["train_x"].copy()
    images["train_x"][1:7] = images["train_x"][0]
    np.savez(tmp_path / "copies.npz", **images)
    (tmp_path / "parts.json").write_text(
        json.dumps([list(range(30)), list(range(30, 60)), list(range(60, 90))])
    )
    copies = {
        **small,
        "dataset": f"npz:{tmp_path / 'copies.npz'}",
        "partition": f"file:{tmp_path / 'parts.json'}",
    }
    setup = prepared(copies, max_dropped=0.1)
    assert setup.plan.refused == {
        0: "had to drop 20 % of its data, more than --max_dropped=0.1",
    }
    admitted = prepared(copies, max_dropped=0.2)
    assert admitted.plan.refused == {}
    assert admitted.about_nodes[0].startswith("it holds 24 examples (dropped ")
    assert admitted.about_nodes[1] == "it holds 30 examples"
    with pytest.raises(UserError, match="with --clean=together no node looks at its own data"):
        prepared(copies, clean="together", max_dropped=0.2)


# The file


def kept(setup, path, stop=None):
    """Trains in a folder until so many rounds are finished; what the state is then."""
    folder = Workdir(path, setup.config)
    try:
        state = folder.resume(setup, pytest.fail)
        for report in kept_rounds(setup, folder, state):
            state = report.state
            if state.rounds == stop:
                break
        return state
    finally:
        folder.close()


def test_events_and_moves_survive_a_resume_without_doubles(small, tmp_path):
    setup = prepared(
        small, cycles=3, leave_epochs=2, interrupt="1@0", interruption="lost", leave="2@5"
    )
    whole = kept(setup, tmp_path / "whole")
    stopped = kept(setup, tmp_path / "run", stop=5)
    assert stopped.moves
    # What a kill left behind of a round that is not finished is cut off.
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write('{"event": "lost", "node": 0}\n')
    state = kept(setup, tmp_path / "run")
    assert same_bits(state.params, whole.params)
    assert (state.moves, state.served) == (whole.moves, whole.served)

    expected = what(read_events(tmp_path / "whole"))
    assert (1, "lost") in expected
    assert (2, "taken over") in expected
    assert (2, "left") in expected
    found = what(read_events(tmp_path / "run"))
    assert found.count((None, "restarted")) == 1
    found.remove((None, "restarted"))
    assert found == expected
    for row in read_events(tmp_path / "run"):
        assert row["time_s"] > 1e9
        assert row["cause"]
    assert len(read_events(tmp_path / "run", after=2)) == len(read_events(tmp_path / "run")) - 2
    assert read_events(tmp_path) == []


def test_a_round_in_which_nobody_is_struck_says_nothing(small):
    reports = trained(prepared(small, cycles=1))
    assert [event.event for event in reports[0].events] == ["admitted"] * 3
    assert reports[1].events == ()


def test_a_configuration_without_a_pool_is_that_of_before(small):
    """No flag of the pool changes a run in which none is set."""
    config = ImageConfig(**small)
    free = dataclasses.replace(config, leave_lost=5, leave_loss=1e-6)
    assert same_bits(
        trained(loop.prepare(config))[-1].state.params, trained(loop.prepare(free))[-1].state.params
    )
