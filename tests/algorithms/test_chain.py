"""A chain against hand counts: where layers lie, what a batch sends, FLOPs by place, who gets a
segment from whom.
"""

import jax
import jax.numpy as jnp
import pytest

from snake_jax.algorithms import chain as chains
from snake_jax.algorithms.chain import ON_CLOUD, ON_NODE, ON_SERVER, Message, Role, Segment
from snake_jax.algorithms.visits import Visit
from snake_jax.costs.flops import LayerCost, chain_step_flops, step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.models import registry
from snake_jax.nodes.ledger import Sizes, Transfer, bytes_up_down, start
from snake_jax.nodes.places import CLOUD, SERVER, node
from tests.exchanges import visit_chain, visit_client_server, visit_peer_to_peer

NAMES = ("fc1", "fc2", "fc3", "fc4")
WHOLE = (Segment(ON_NODE, 0, 4),)
SPLIT = (Segment(ON_NODE, 0, 2), Segment(ON_SERVER, 2, 4))
U_SHAPE = (Segment(ON_NODE, 0, 1), Segment(ON_SERVER, 1, 3), Segment(ON_NODE, 3, 4))
SECOND, THIRD = Role("node", 1), Role("node", 2)
SNAKE = (Segment(ON_NODE, 0, 2), Segment(SECOND, 2, 3), Segment(THIRD, 3, 4))
VISIT = Visit(7, 2, 5, NAMES, others=(3, 4))
COSTS = [LayerCost(name, 0, 2**i, 10 * 2**i, 100 * 2**i) for i, name in enumerate(NAMES)]
HEAD = [LayerCost("auxiliary", 0, 1000, 2000, 4000)]

# Three layers of 100, 200 and 400 bytes.
FULL = {"a": 100, "b": 200, "c": 400}
SIZES = Sizes(FULL, {name: size // 4 for name, size in FULL.items()})


def mlp():
    """Hidden layers of 16 on 4x4x3 images of 4 classes."""
    return registry.build("mlp", 4, (4, 4, 3), width=0.25)


def test_places_roles_cuts_and_layers_held():
    assert [chains.place_of(role, VISIT) for role in (ON_NODE, SECOND, THIRD, ON_SERVER)] == [
        node(5),
        node(3),
        node(4),
        SERVER,
    ]
    assert [chains.cuts(c) for c in (WHOLE, SPLIT, U_SHAPE, SNAKE)] == [(), (2,), (1, 3), (2, 3)]
    assert [chains.roles(c) for c in (WHOLE, SPLIT, U_SHAPE, SNAKE)] == [
        (ON_NODE,),
        (ON_NODE, ON_SERVER),
        (ON_NODE, ON_SERVER),
        (ON_NODE, SECOND, THIRD),
    ]
    assert chains.held(U_SHAPE, NAMES, ON_NODE) == ("fc1", "fc4")
    assert chains.held(U_SHAPE, NAMES, ON_SERVER) == ("fc2", "fc3")
    assert chains.held(SNAKE, NAMES, THIRD) == ("fc4",)


def test_a_batch_sends_activations_and_labels_up_and_gradients_down():
    hidden, label = 4 * 16, 4
    assert chains.messages(WHOLE, mlp(), "float32", True) == ()
    assert chains.messages(SPLIT, mlp(), "float32", True) == (
        Message(ON_NODE, ON_SERVER, "fc2", hidden, "activations"),
        Message(ON_NODE, ON_SERVER, "labels", label, "labels"),
        Message(ON_SERVER, ON_NODE, "fc2", hidden, "gradients"),
    )
    assert chains.messages(SPLIT, mlp(), "bfloat16", False) == (
        Message(ON_NODE, ON_SERVER, "fc2", hidden // 2, "activations"),
        Message(ON_NODE, ON_SERVER, "labels", label, "labels"),
    )


def test_over_three_places_a_batch_goes_from_one_to_the_next():
    chain = (Segment(ON_NODE, 0, 1), Segment(ON_SERVER, 1, 3), Segment(ON_CLOUD, 3, 4))
    assert chains.roles(chain) == (ON_NODE, ON_SERVER, ON_CLOUD)
    assert chains.place_of(ON_CLOUD, VISIT) == CLOUD
    assert chains.held(chain, NAMES, ON_CLOUD) == ("fc4",)
    sent = chains.messages(chain, mlp(), "float32", True)
    assert sent == (
        Message(ON_NODE, ON_SERVER, "fc1", 64, "activations"),
        Message(ON_SERVER, ON_CLOUD, "fc3", 64, "activations"),
        Message(ON_NODE, ON_SERVER, "labels", 4, "labels"),
        Message(ON_SERVER, ON_CLOUD, "labels", 4, "labels"),
        Message(ON_CLOUD, ON_SERVER, "fc3", 64, "gradients"),
        Message(ON_SERVER, ON_NODE, "fc1", 64, "gradients"),
    )
    beyond = [chains.is_beyond_server(message) for message in sent]
    assert beyond == [False, True, False, True, True, False]
    # Up is towards the cloud, down away from it.
    rows = chains.transfers(sent, VISIT, 10)
    assert bytes_up_down(rows) == (10 * 136, 10 * 128)


def test_in_the_u_shape_labels_stay():
    assert chains.messages(U_SHAPE, mlp(), "float32", True) == (
        Message(ON_NODE, ON_SERVER, "fc1", 64, "activations"),
        Message(ON_SERVER, ON_NODE, "fc3", 64, "activations"),
        Message(ON_NODE, ON_SERVER, "fc3", 64, "gradients"),
        Message(ON_SERVER, ON_NODE, "fc1", 64, "gradients"),
    )


def test_along_a_snake_labels_go_straight_to_the_last():
    sent = chains.messages(SNAKE, mlp(), "float32", True)
    assert [(m.source, m.destination, m.item, m.why) for m in sent] == [
        (ON_NODE, SECOND, "fc2", "activations"),
        (SECOND, THIRD, "fc3", "activations"),
        (ON_NODE, THIRD, "labels", "labels"),
        (THIRD, SECOND, "fc3", "gradients"),
        (SECOND, ON_NODE, "fc2", "gradients"),
    ]
    assert chains.transfers(sent, VISIT, 10)[1:3] == [
        Transfer(7, node(3), node(4), ("fc3",), 640, "activations"),
        Transfer(7, node(5), node(4), ("labels",), 40, "labels"),
    ]
    assert chains.transfers(sent, VISIT, 0) == []
    assert [
        chains.round_trips(chains.messages(c, mlp(), "float32", True))
        for c in (WHOLE, SPLIT, SNAKE)
    ] == [0, 1, 2]


def test_an_activation_is_as_large_as_the_pooled_image():
    model = registry.build("cnn", 4, (8, 8, 3), width=0.5)
    cut = lambda at: (Segment(ON_NODE, 0, at), Segment(ON_SERVER, at, 5))  # noqa: E731
    sizes = [chains.messages(cut(at), model, "float32", True)[0].bytes for at in (1, 2, 3, 4)]
    assert sizes == [4 * 4 * 4 * 8, 4 * 2 * 2 * 16, 4 * 1 * 1 * 16, 4 * 32]


def test_flops_by_place_by_hand():
    count = lambda chain, heads=(), gradients=True: chain_step_flops(chain, COSTS, heads, gradients)  # noqa: E731
    assert count(WHOLE) == {ON_NODE: 15 + 140 + 1500}  # the data needs no gradient
    assert count(SPLIT) == {ON_NODE: 3 + 20 + 300, ON_SERVER: 12 + 120 + 1200}
    assert count(U_SHAPE) == {ON_NODE: 9 + 80 + 900, ON_SERVER: 6 + 60 + 600}
    assert count(SNAKE) == {ON_NODE: 3 + 20 + 300, SECOND: 4 + 40 + 400, THIRD: 8 + 80 + 800}
    # No gradient crosses the cut: the server's first layer gives none, the head gives one to the
    # layer below it.
    assert count(SPLIT, HEAD, False) == {ON_NODE: 3 + 20 + 300 + 7000, ON_SERVER: 12 + 80 + 1200}


@pytest.mark.parametrize("chain", [WHOLE, SPLIT, U_SHAPE, SNAKE])
def test_the_places_of_a_chain_share_the_flops_of_the_whole(chain):
    costs = layer_costs(mlp(), 8)
    assert sum(chain_step_flops(chain, costs, (), True).values()) == step_flops(costs, NAMES)


# Segments that travel


def rows(transfers):
    return [(t.source, t.destination, t.bytes, t.why) for t in transfers]


@pytest.mark.parametrize("cached", [True, False])
def test_segments_come_from_the_server_once_and_then_from_node_to_node(cached):
    network, first = visit_chain(
        start(FULL), SIZES, 0, {node(0): ("a", "b"), node(1): ("c",)}, cached=cached
    )
    assert rows(first) == [(SERVER, node(0), 300, "initial"), (SERVER, node(1), 400, "initial")]
    network, second = visit_chain(
        network, SIZES, 1, {node(2): ("a", "b"), node(0): ("c",)}, cached=cached
    )
    assert rows(second) == [(node(0), node(2), 300, "initial"), (node(1), node(0), 400, "update")]
    network, third = visit_chain(
        network, SIZES, 2, {node(0): ("a", "b"), node(2): ("c",)}, cached=cached
    )
    assert rows(third) == [(node(2), node(0), 300, "update"), (node(0), node(2), 400, "update")]
    _, fourth = visit_chain(
        network, SIZES, 3, {node(1): ("a", "b"), node(2): ("c",)}, cached=cached
    )
    assert rows(fourth) == [(node(0), node(1), 300, "update")], "what a node keeps does not travel"


@pytest.mark.parametrize("cached", [True, False])
def test_a_segment_that_comes_from_two_places(cached):
    network, _ = visit_chain(
        start(FULL), SIZES, 0, {node(0): ("a",), node(1): ("b", "c")}, cached=cached
    )
    network, second = visit_chain(
        network, SIZES, 1, {node(2): ("a", "b"), node(1): ("c",)}, cached=cached
    )
    assert [row[:3] for row in rows(second)] == [(node(0), node(2), 100), (node(1), node(2), 200)]
    _, third = visit_chain(network, SIZES, 2, {node(0): ("a", "b", "c")}, cached=cached)
    assert [row[:3] for row in rows(third)] == [(node(2), node(0), 300), (node(1), node(0), 400)]


@pytest.mark.parametrize("visit", [visit_client_server, visit_peer_to_peer])
def test_a_node_that_holds_a_part_is_sent_that_part(visit):
    network, first = visit(start(FULL), SIZES, 0, 0, ("a",), cached=True, held=("a",))
    assert rows(first)[0] == (SERVER, node(0), 100, "initial")
    _, second = visit(network, SIZES, 1, 1, ("a",), cached=True, held=("a",))
    source = SERVER if visit is visit_client_server else node(0)
    assert rows(second)[0] == (source, node(1), 100, "initial")


def test_an_output_in_bfloat16_is_what_the_step_computes():
    model = mlp()
    params = jax.eval_shape(model.init, jax.random.key(0))
    half = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), params)
    out = jax.eval_shape(
        lambda p, x: model.apply(p, x, 0, 2, train=True),
        half,
        jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.bfloat16),
    )
    assert chains.messages(SPLIT, model, "bfloat16", True)[0].bytes == out.size * out.dtype.itemsize
