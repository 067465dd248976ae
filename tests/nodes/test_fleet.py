"""Fleets: generated, written, read, refused."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.nodes.fleet import (
    CLOUD_FIGURES,
    DAY_S,
    EDGE_FIGURES,
    SERVER_FIGURES,
    Fleet,
    figures_of,
    make_fleet,
    of_config,
    read_fleet,
)
from snake_jax.nodes.places import CLOUD, SERVER, Place

HOUR_S = 3600.0


def _file(tmp_path, text, name="nodes.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_without_spread_all_nodes_are_alike_and_always_free():
    assert make_fleet(3, 0.0, seed=5) == Fleet((EDGE_FIGURES,) * 3, SERVER_FIGURES, DAY_S)


def test_the_spread_is_lognormal_about_the_stated_figures():
    nodes = make_fleet(2000, 0.5, seed=1).nodes
    logs = [math.log(node.flops_per_s / EDGE_FIGURES.flops_per_s) for node in nodes]
    assert abs(statistics.mean(logs)) < 4 * 0.5 / math.sqrt(2000)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.1)
    assert len({node.latency_s for node in nodes}) == 2000
    assert len({node.memory_bytes for node in nodes}) == 2000


def test_a_node_is_drawn_from_the_seed_and_its_number_alone():
    assert make_fleet(9, 0.5, 3, 0.4).nodes[:4] == make_fleet(4, 0.5, 3, 0.4).nodes
    assert make_fleet(4, 0.5, 3).nodes != make_fleet(4, 0.5, 4).nodes
    assert len(set(make_fleet(4, 0.5, 3).nodes)) == 4


@given(share=st.floats(1e-6, 1), seed=st.integers(0, 1000))
def test_tidal_nodes_are_free_for_that_share_of_a_day(share, seed):
    for node in make_fleet(3, 0.0, seed, share).nodes:
        free_s = sum(end - start for start, end in node.windows) if node.windows else DAY_S
        assert free_s == pytest.approx(max(1, share * DAY_S), abs=0.5)
        assert all(0 <= start < end <= DAY_S for start, end in node.windows)


def test_tidal_phases_differ():
    assert len({node.windows for node in make_fleet(20, 0.0, 0, 0.25).nodes}) == 20


@given(
    spread=st.floats(0, 3),
    tidal=st.floats(0.01, 1),
    seed=st.integers(0, 100),
    count=st.integers(1, 4),
)
def test_every_figure_of_a_file_is_read(tmp_path_factory, spread, tidal, seed, count):
    fleet = make_fleet(count, spread, seed, tidal)
    content = {"period_s": fleet.period_s, "server": fleet.server._asdict()}
    del content["server"]["windows"]  # the server is always there
    content["nodes"] = [node._asdict() for node in fleet.nodes]
    for entry in content["nodes"]:
        if not entry["windows"]:
            del entry["windows"]
    for name in ("nodes.json", "nodes.yaml"):  # JSON is YAML too
        path = _file(tmp_path_factory.getbasetemp(), json.dumps(content), name)
        assert read_fleet(path, count) == fleet


def test_each_place_has_its_figures():
    fleet = make_fleet(3, 0.5, seed=1)
    assert figures_of(fleet, SERVER) is fleet.server
    assert figures_of(fleet, CLOUD) is fleet.cloud
    assert [figures_of(fleet, Place("node", index)) for index in range(3)] == list(fleet.nodes)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    _file(tmp_path, "nodes: [{flops_per_s: 7e9}]")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_fleet("~/nodes.yaml", 1).nodes[0].flops_per_s == 7e9
    with pytest.raises(UserError, match=r"--node_file=~/none.yaml: No such file"):
        read_fleet("~/none.yaml", 1)


def test_a_file_with_defaults_repeats_server_and_windows(tmp_path):
    path = _file(
        tmp_path,
        """
        period_s: 7200
        server: {flops_per_s: 1e12}
        cloud: {up_bytes_per_s: 1e9, latency_s: 0}
        defaults: {memory_bytes: 2e9, energy_price: 0.5}
        nodes:
          - {count: 2, flops_per_s: 5e10}
          - memory_bytes: 1_000
            windows: [[3600, 7200], [0, 10]]
        """,
    )
    fleet = read_fleet(path, 3)
    common = EDGE_FIGURES._replace(memory_bytes=2_000_000_000, energy_price=0.5)
    assert fleet.nodes[:2] == (common._replace(flops_per_s=5e10),) * 2
    assert fleet.nodes[2] == common._replace(
        memory_bytes=1000, windows=((0.0, 10.0), (3600.0, 7200.0))
    )
    assert fleet.server == SERVER_FIGURES._replace(flops_per_s=1e12)
    assert fleet.cloud == CLOUD_FIGURES._replace(up_bytes_per_s=1e9, latency_s=0.0)
    assert fleet.period_s == 7200


@pytest.mark.parametrize(
    "text", ["nodes: [{flops_per_s: 2e9}]", '{"nodes": [{"flops_per_s": 2e9}]}']
)
def test_a_byte_order_mark_in_a_node_file_is_passed_over(tmp_path, text):
    marked = read_fleet(_file(tmp_path, "\ufeff" + text), 1)
    assert marked.nodes == (EDGE_FIGURES._replace(flops_per_s=2e9),)


def test_the_first_nodes_of_a_longer_file_are_taken(tmp_path):
    path = _file(tmp_path, "nodes: [{count: 1000000000000}, {flops_per_s: 1e9}]")
    assert read_fleet(path, 2).nodes == (EDGE_FIGURES, EDGE_FIGURES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must be a mapping with keys among nodes, defaults, server, cloud, period_s"),
        ("", "must be a mapping"),
        ("{", "not YAML"),
        ("2020-13-45", "not YAML"),
        ("nodes: [1]", r"nodes\[0\]: must be a mapping with keys among flops_per_s"),
        ("nodes: {count: 3}", "nodes must be a list"),
        ("period_s: 100", "nodes must be a list"),
        ("nods: []", "unknown key nods; known are nodes, defaults, server, cloud, period_s"),
        (
            "nodes: [{flops: 1}]",
            r"nodes\[0\]: unknown key flops; known are flops_per_s, .*windows, count",
        ),
        ("nodes: [{}]\nserver: {windows: [[0, 1]]}", "server: unknown key windows"),
        ("nodes: [{}]\ncloud: {windows: [[0, 1]]}", "cloud: unknown key windows"),
        ("nodes: [{}]\ndefaults: {count: 2}", "defaults: unknown key count"),
        ("nodes: [{}, {latency_s: -1}]", r"nodes\[1\]: latency_s: -1 is not a number from 0"),
        ("nodes: [{flops_per_s: 0}]", "flops_per_s: 0 is not a number from 1"),
        ("nodes: [{flops_per_s: .nan}]", "flops_per_s: nan is not a number"),
        ("nodes: [{flops_per_s: .inf}]", "flops_per_s: inf is not a number"),
        ("nodes: [{flops_per_s: fast}]", "flops_per_s: 'fast' is not a number"),
        ("nodes: [{flops_per_s: true}]", "flops_per_s: True is not a number"),
        ("nodes: [{flops_per_s: [1]}]", r"flops_per_s: \[1\] is not a number"),
        ("nodes: [{flops_per_s: null}]", "flops_per_s: None is not a number"),
        (f"nodes: [{{flops_per_s: 1{'0' * 400}}}]", "is not a number from 1"),
        ("nodes: [{count: 0}]", "count: 0 is not a whole number from 1"),
        ("nodes: [{count: 1.5}]", "count: 1.5 is not a whole number"),
        ("nodes: [{}]", "describes 1 nodes, fewer than --nodes=2: add some or lower --nodes"),
        ("nodes: []", "describes 0 nodes"),
        ("period_s: 1\nnodes: [{}]", "period_s: 1 is not a number from 60"),
        (
            "nodes: [{windows: []}]",
            "windows: must be a list of .*leave it out where a node is always free",
        ),
        ("nodes: [{windows: 3}]", "windows: must be a list"),
        ("nodes: [{windows: [3, 4]}]", "every window must be a pair"),
        ("nodes: [{windows: [[0, x]]}]", "windows: 'x' is not a number"),
        ("nodes: [{windows: [[0, 86401]]}]", "ends outside the period of 86400 s"),
        ("nodes: [{windows: [[5, 5]]}]", r"\[5, 5\] must be at least a second long"),
        ("nodes: [{windows: [[5, 4]]}]", r"\[5, 4\] must be at least a second long"),
        ("nodes: [{windows: [[0, 10], [9, 20]]}]", "two windows overlap at 9 s"),
    ],
)
def test_wrong_content_is_refused_in_one_line_that_names_it(tmp_path, text, message):
    path = _file(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_fleet(path, 2)
    assert str(caught.value).startswith(f"--node_file={path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*leave it empty"):
        read_fleet(str(tmp_path / "none.yaml"), 1)
    with pytest.raises(UserError, match="Is a directory"):
        read_fleet(str(tmp_path), 1)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_fleet(str(tmp_path / "x.json"), 1)
    with pytest.raises(UserError, match="not JSON: Expecting"):
        read_fleet(_file(tmp_path, "nodes: []", "y.json"), 1)


def test_the_configuration_says_which_fleet(tmp_path):
    generated = of_config(ImageConfig(nodes=3, node_spread=0.5, tidal=0.5, seed=2))
    assert generated == make_fleet(3, 0.5, 2, 0.5)
    path = _file(tmp_path, json.dumps({"nodes": [{"count": 3, "flops_per_s": 7e9}]}), "n.json")
    assert of_config(ImageConfig(nodes=3, node_file=path)).nodes[0].flops_per_s == 7e9
    with pytest.raises(UserError, match=r"--tidal=0.5: --node_file says .* leave one out"):
        of_config(ImageConfig(nodes=3, node_file=path, tidal=0.5))
