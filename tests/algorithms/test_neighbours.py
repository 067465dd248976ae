"""Who is next over a graph of neighbours: relays from node to node, and walking snakes."""

import dataclasses
import itertools
from collections import Counter

import pytest

from snake_jax.algorithms import neighbours, pool
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.algorithms.schedule import Hop, Plan
from snake_jax.algorithms.visits import Ending
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.nodes import topology
from snake_jax.nodes.clock import Faults
from snake_jax.nodes.fleet import EDGE_FIGURES, SERVER_FIGURES, Fleet, of_config
from snake_jax.nodes.links import Links
from snake_jax.nodes.presence import Moment

LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
ONE_EACH = [("conv1", layer, "fc2") for layer in LAYERS[1:4]]


def plan_of(**flags):
    given = {"nodes": 6, "cycles": 4, "topology": "ring"} | flags
    if given.get("algorithm") != "random_walking_snakes":
        given = {"mode": "peer_to_peer"} | given
    return Plan(ImageConfig(**given), LAYERS, ("conv1", "fc2"))


def rounds_of(plan, fail=()):
    """All visits of a run, where those of some turns are handed in unfinished at first."""
    course = ALGORITHMS[plan.config.algorithm].rounds(plan)
    found = list(next(course))
    while True:
        (visit,) = found[-1:]
        lost = visit.turn in fail and not visit.event
        try:
            found += course.send((Ending(visit, "lost" if lost else ""),))
        except StopIteration:
            return found


@pytest.mark.parametrize("algorithm", ["snake", "sequential"])
@pytest.mark.parametrize("kind", ["ring", "grid", "random"])
def test_each_next_node_is_a_neighbour_and_all_have_their_turn(algorithm, kind):
    plan = plan_of(algorithm=algorithm, topology=kind, cycles=8)
    graph = neighbours.graph_of(plan.config)
    nodes = [visit.node for visit in rounds_of(plan)]
    assert all(after in graph[before] for before, after in itertools.pairwise(nodes))
    counts = Counter(nodes)
    assert set(counts) == set(range(6))
    assert min(counts.values()) * 4 >= max(counts.values())


def test_a_ring_is_gone_around():
    nodes = [visit.node for visit in rounds_of(plan_of())]
    assert nodes == [turn % 6 for turn in range(12)]


def test_layers_and_turns_are_those_of_a_relay():
    visits = rounds_of(plan_of(cycles=2))
    assert [visit.layers for visit in visits] == ONE_EACH * 2
    assert [(visit.turn, visit.cycle) for visit in visits] == [(t, t // 3) for t in range(6)]


def test_after_a_take_over_the_next_is_a_neighbour_of_who_finished():
    plan = plan_of()
    course = ALGORITHMS["snake"].rounds(plan)
    (visit,) = next(course)
    (takeover,) = course.send((Ending(visit, "lost"),))
    assert (takeover.turn, takeover.event) == (0, "takeover")
    # The controller gave it to node 3.
    (after,) = course.send((Ending(takeover._replace(node=3)),))
    assert after.turn == 1
    assert after.node == 4


def hop(plan, fail, away=frozenset(), moment=None):
    """The second visit of a ring, which node 0 has handed to node 1, and who has it in the end."""
    course = ALGORITHMS["snake"].rounds(plan)
    (first,) = next(course)
    assert first.node == 0
    (second,) = course.send((Ending(first),))
    assert (second.node, second.giver) == (1, 0)
    if fail:
        (second,) = course.send((Ending(second, fail),))
    (found,) = pool.manned(plan, frozenset(away), (second,), moment)
    return found.node, found.event


def test_a_stand_in_is_a_neighbour_of_the_node_that_hands_over():
    # By the clock's figures node 3, which is nobody's neighbour here, would be done first.
    able = {key: {0: 5.0, 1: 5.0, 2: 5.0, 3: 1.0, 4: 5.0, 5: 5.0} for key in ONE_EACH}
    plan = plan_of()._replace(able=able)
    # What node 1 had is lost: node 0 has the model, and its other neighbour is node 5.
    assert hop(plan, "lost") == (5, "takeover")
    # Node 1 hands in what it had: it goes on at one of its own neighbours.
    assert hop(plan, "interrupted") == (2, "takeover")
    assert hop(plan, "interrupted", away={2}) == (0, "takeover")
    # Without a graph the fastest has it.
    anywhere = plan._replace(config=dataclasses.replace(plan.config, topology="complete"))
    (first,) = next(ALGORITHMS["snake"].rounds(anywhere))
    assert first.giver is None
    (found,) = pool.manned(anywhere, frozenset(), (first._replace(event="takeover"),))
    assert found.node == 3


@pytest.mark.parametrize(("fail", "away"), [("lost", {5}), ("interrupted", {0, 2})])
def test_where_no_neighbour_can_stand_in_the_visit_waits_for_its_node(fail, away):
    assert hop(plan_of(), fail, away) == (1, "waited")


def test_a_stand_in_of_a_stand_in_is_a_neighbour_of_who_handed_over_last():
    course = ALGORITHMS["snake"].rounds(plan_of())
    (first,) = next(course)
    (second,) = course.send((Ending(first),))
    (takeover,) = course.send((Ending(second, "interrupted"),))
    assert takeover.giver == 1
    (again,) = course.send((Ending(takeover._replace(node=2), "lost"),))
    assert (again.giver, again.event) == (1, "takeover")
    (once_more,) = course.send((Ending(again._replace(node=2), "interrupted"),))
    assert once_more.giver == 2


def test_a_visit_whose_node_has_left_goes_to_a_neighbour_and_else_to_the_nearest():
    plan = plan_of()
    assert hop(plan, "", away={1}) == (5, "")
    assert hop(plan, "", away={1, 5}) == (2, "")
    assert hop(plan, "", away={1, 2, 5}) == (4, "")


def test_by_the_clock_a_visit_goes_to_a_neighbour_that_is_there_or_waits():
    def moment(*closed):
        shut = EDGE_FIGURES._replace(windows=((20.0, 24.0),))
        nodes = [shut if node in closed else EDGE_FIGURES for node in range(6)]
        return Moment(Fleet(tuple(nodes), SERVER_FIGURES, 24.0), Faults(), 0.0)

    plan = plan_of(follow_clock=True)
    assert hop(plan, "", moment=moment()) == (1, "")
    assert hop(plan, "", moment=moment(1)) == (5, "")
    assert hop(plan, "", moment=moment(1, 5)) == (1, "waited")


def test_greedy_takes_the_neighbour_that_costs_the_least_in_that_turn():
    config = plan_of(nodes=4, assign="greedy").config
    nodes = list(of_config(dataclasses.replace(config, topology="complete")).nodes)
    nodes[1] = nodes[1]._replace(down_bytes_per_s=1e3)
    graph = topology.make("ring", 4, 3, 0)
    fleet = Fleet(tuple(nodes), SERVER_FIGURES, links=Links(graph))
    able = dict.fromkeys(ONE_EACH, dict.fromkeys(range(4), 1.0))
    plan = Plan(config, LAYERS, ("conv1", "fc2"), able=able, hop=Hop(fleet, 10**6))
    assert neighbours.next_node(plan, 0, [0] * 4, 1, ONE_EACH[0]) == 3
    # Who had fewer visits goes before who costs less.
    assert neighbours.next_node(plan, 0, [0, 0, 0, 1], 1, ONE_EACH[0]) == 1
    # The node where the visit itself takes longest is left out though its link is as good.
    slow = {layers: {**seconds, 3: 1e6} for layers, seconds in able.items()}
    slow_plan = plan._replace(able=slow, hop=Hop(fleet, 1))
    assert neighbours.next_node(slow_plan, 0, [0] * 4, 1, ONE_EACH[0]) == 1
    # Links that fade change who is next from turn to turn.
    alike = Fleet((nodes[0],) * 4, SERVER_FIGURES, links=Links(graph, fades=True))
    fading = plan._replace(hop=Hop(alike, 10**6))
    chosen = {neighbours.next_node(fading, 0, [0] * 4, turn, ONE_EACH[0]) for turn in range(40)}
    assert chosen == {1, 3}


def test_where_no_neighbour_can_hold_a_visit_the_nearest_that_can_has_it():
    able = {key: {0: 1.0, 2: 1.0, 3: 1.0} for key in ONE_EACH}
    plan = plan_of()._replace(able=able)
    assert neighbours.next_node(plan, 0, [0] * 6, 1, ONE_EACH[0]) == 2
    alone = plan._replace(able={key: {0: 1.0} for key in ONE_EACH})
    assert neighbours.next_node(alone, 0, [0] * 6, 1, ONE_EACH[0]) == 0
    refused = plan._replace(refused={0: "", 2: "", 3: ""})
    with pytest.raises(UserError, match="no node is admitted that can hold visit 1"):
        neighbours.next_node(refused, 0, [0] * 6, 1, ONE_EACH[0])


@pytest.mark.parametrize("walk", ["uniform", "metropolis"])
@pytest.mark.parametrize("kind", ["ring", "grid", "complete"])
def test_a_snake_walks_from_neighbour_to_neighbour(walk, kind):
    plan = plan_of(algorithm="random_walking_snakes", walk=walk, topology=kind, nodes=9)
    visits = rounds_of(plan)
    assert len(visits) == 4 * 9
    assert visits == rounds_of(plan)
    graph = neighbours.graph_of(plan.config)
    stays = 0
    for before, after in itertools.pairwise(visits):
        near = topology.neighbours(graph, before.node, 9)
        stays += before.node == after.node
        assert after.node in near or (walk == "metropolis" and after.node == before.node)
    assert stays == 0 or walk == "metropolis"
    for visit in visits:
        snake = (visit.node, *visit.others)
        assert len(set(snake)) == len(snake) == 3
    if walk == "uniform":
        # It does not run into its own body where there is another way.
        for before, after in itertools.pairwise(visits):
            free = set(topology.neighbours(graph, before.node, 9)) - set(before.others)
            assert after.node in free or not free


def test_metropolis_has_all_nodes_as_often_head_and_a_uniform_walk_has_hubs_more_often(tmp_path):
    file = tmp_path / "star.json"
    file.write_text('{"edges": [[0, 1], [0, 2], [0, 3], [0, 4]]}')
    shares = {}
    for walk in ("uniform", "metropolis"):
        flags = {"walk": walk, "topology": f"file:{file}", "nodes": 5, "cycles": 400}
        plan = plan_of(algorithm="random_walking_snakes", snake_length=1, **flags)
        heads = Counter(visit.node for visit in rounds_of(plan))
        shares[walk] = heads[0] / heads.total()
    assert shares["uniform"] == pytest.approx(0.5, abs=0.01)
    assert shares["metropolis"] == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"mode": "client_server"}, "nodes send to each other with --mode=peer_to_peer"),
        ({"assign": "milp"}, "--assign=milp plans a cycle whoever"),
        ({"neighbours": 4}, "--neighbours=4: a number of neighbours is for --topology=random"),
        ({"assign": "greedy", "rates": "measured"}, "leave --rates=declared"),
        ({"shuffle_nodes": True, "algorithm": "sequential"}, "leave --shuffle_nodes out"),
    ],
)
def test_what_a_graph_leaves_no_room_for_is_refused(flags, reason):
    config = plan_of(**flags).config
    with pytest.raises(UserError, match=reason):
        ALGORITHMS[config.algorithm].check(config)
