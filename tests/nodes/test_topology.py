"""Graphs of neighbours, links that fade, and the clock over both."""

import json

import numpy as np
import pytest

from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.nodes import links, sending, topology
from snake_jax.nodes.clock import Faults, VisitWork, elapse
from snake_jax.nodes.fleet import Fleet, Node, of_config
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.links import STEADY, Links
from snake_jax.nodes.places import SERVER, node

FIGURES = Node(1e3, 1000, 50.0, 100.0, 0.5, 0.0, 2.0)
HUB = Node(1e4, 1000, 200.0, 400.0, 0.25, 0.0, 0.0)


def test_a_ring_and_a_grid_by_hand():
    assert topology.make("ring", 4, 3, 0) == ((1, 3), (0, 2), (1, 3), (0, 2))
    # 0 1 2
    # 3 4
    assert topology.make("grid", 5, 3, 0) == ((1, 3), (0, 2, 4), (1,), (0, 4), (1, 3))
    assert topology.make("complete", 3, 3, 0) == ()
    assert topology.neighbours((), 1, 3) == (0, 2)
    assert topology.make("ring", 2, 3, 0) == ((1,), (0,))


@pytest.mark.parametrize("seed", range(5))
def test_a_random_graph_is_connected_and_has_the_edges_that_are_asked_for(seed):
    graph = topology.make("random", 12, 4, seed)
    assert sum(map(len, graph)) == 12 * 4
    assert all(topology.distance(graph, 0, other) < 12 for other in range(12))
    assert graph != topology.make("random", 12, 4, seed + 1)
    for one, near in enumerate(graph):
        assert one not in near
        assert all(one in graph[other] for other in near)


def test_the_shortest_way_is_taken():
    graph = topology.make("ring", 6, 3, 0)
    assert topology.path(graph, 0, 2) == (0, 1, 2)
    assert topology.path(graph, 0, 4) == (0, 5, 4)
    assert topology.distance(graph, 0, 3) == 3
    assert topology.path((), 0, 3) == (0, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"edges": [[0, 1]]}, "no way leads from node 0 to node 2"),
        ({"edges": [[0, 3]]}, r"\[0, 3\] is no pair of nodes from 0 to 2"),
        ({"edges": [[0, True]]}, "is no pair"),
        ([[0, 1]], "want {"),
    ],
)
def test_a_file_of_edges_that_is_none_is_refused(tmp_path, content, reason):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        topology.make(f"file:{file}", 3, 3, 0)


def test_a_file_says_a_graph(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({"edges": [[0, 1], [1, 2]]}))
    assert topology.make(f"file:{file}", 3, 3, 0) == ((1,), (0, 2), (1,))
    with pytest.raises(UserError, match=r"--topology=file:nowhere\.json: No such file"):
        topology.make("file:nowhere.json", 3, 3, 0)
    with pytest.raises(UserError, match="--topology=star: want complete, ring"):
        topology.make("star", 3, 3, 0)


def test_a_trace_depends_on_seed_link_and_turn_and_is_that_of_both_directions():
    fading = Links(fades=True, seed=3)
    one = links.rate_factor(fading, 5, node(0), node(1))
    assert one == links.rate_factor(fading, 5, node(1), node(0))
    # Looked at from far ahead it is the same.
    links.rate_factor(fading, 5000, node(0), node(1))
    assert one == links.rate_factor(fading, 5, node(0), node(1))
    for other in ((4, node(0), node(1)), (5, node(0), node(2)), (5, node(0), SERVER)):
        assert links.rate_factor(fading, *other) != one
    assert links.rate_factor(fading._replace(seed=4), 5, node(0), node(1)) != one
    assert links.rate_factor(STEADY, 5, node(0), node(1)) == 1.0


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_gains_have_mean_one_and_turns_are_as_alike_as_the_memory(memory):
    gains = links._trace(1, memory, 0, 1, 20000)
    assert np.mean(gains) == pytest.approx(1.0, abs=0.1)
    # Exponential: its deviation is its mean. Gains of a Gauss-Markov channel correlate by m^2.
    assert np.std(gains) == pytest.approx(1.0, abs=0.1)
    correlation = np.corrcoef(gains[:-1], gains[1:])[0, 1]
    assert correlation == pytest.approx(memory**2, abs=0.05)


def test_a_link_at_its_mean_gain_has_its_rate(monkeypatch):
    monkeypatch.setattr(links, "_gain", lambda *numbers: 1.0)
    assert links.rate_factor(Links(fades=True), 0, node(0), node(1)) == 1.0
    monkeypatch.setattr(links, "_gain", lambda *numbers: 0.1)
    # 10 dB: log2(1 + 1) over log2(1 + 10).
    assert links.rate_factor(Links(fades=True), 0, node(0), node(1)) == pytest.approx(
        1 / np.log2(11)
    )


def test_between_nodes_that_are_no_neighbours_a_message_goes_hop_by_hop():
    ring = topology.make("ring", 4, 3, 0)
    fleet = Fleet((FIGURES,) * 4, HUB, links=Links(ring))
    near, far = (Transfer(0, node(0), node(end), ("conv1",), 100, "update") for end in (1, 2))
    # 100 B at 50 B/s and twice half a second; over two hops twice that.
    assert sending.transfer_s(fleet, near) == 3.0
    assert sending.transfer_s(fleet, far) == 6.0
    from_server = Transfer(0, SERVER, node(2), ("conv1",), 100, "initial")
    assert sending.transfer_s(fleet, from_server) == 1.75
    took = elapse(fleet, Faults(), 0.0, 0, [VisitWork({}, [far], 0, node(2))], False)
    assert took.seconds == 6.0
    # Both ends of both hops, at 2 J a byte.
    assert took.node_joules == 4 * 200


def test_a_fading_link_takes_its_turn_s_rate():
    fading = Links(fades=True, seed=1)
    fleet = Fleet((FIGURES,) * 2, HUB, links=fading)
    for turn in range(3):
        transfer = Transfer(turn, node(0), node(1), ("conv1",), 100, "update")
        factor = links.rate_factor(fading, turn, node(0), node(1))
        assert sending.transfer_s(fleet, transfer) == pytest.approx(2 / factor + 1)


def test_flags_say_graph_and_fading():
    assert of_config(ImageConfig(nodes=3)).links == STEADY
    made = of_config(ImageConfig(nodes=4, topology="ring", fading="rayleigh", seed=7)).links
    assert made == Links(topology.make("ring", 4, 3, 7), fades=True, seed=7)
