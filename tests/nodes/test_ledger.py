"""The ledger against hand counts: both modes, cached and not, lost visits, optimizer states, stored
precisions.
"""

import json

from snake_jax.nodes.ledger import (
    Sizes,
    aggregated,
    bytes_up_down,
    deliveries_from_server,
    from_json,
    optimizer_item,
    start,
    to_json,
    to_row,
)
from snake_jax.nodes.places import SERVER, node
from tests.exchanges import visit_client_server, visit_peer_to_peer

# Three layers of 100, 200 and 400 bytes; a quarter of that as stored frozen.
FULL = {"a": 100, "b": 200, "c": 400}
SAME = Sizes(FULL, FULL)
SMALL = Sizes(FULL, {name: size // 4 for name, size in FULL.items()})


def _run(exchange, visits, sizes=SAME, cached=True):
    """Rows `(visit, source, destination, bytes, why)` of visits `(node, trained)`."""
    network, rows = start(FULL), []
    for index, (visitor, trained) in enumerate(visits):
        network, transfers = exchange(network, sizes, index, visitor, trained, cached=cached)
        rows += [(t.visit, t.source, t.destination, t.bytes, t.why) for t in transfers]
    return rows


def test_client_server_without_cache_sends_everything_down_at_every_visit():
    rows = _run(
        visit_client_server, [(0, ("a", "b")), (1, ("a", "c")), (0, ("a", "b"))], cached=False
    )
    assert rows == [
        (0, SERVER, node(0), 700, "initial"),
        (0, node(0), SERVER, 300, "update"),
        (1, SERVER, node(1), 700, "initial"),
        (1, node(1), SERVER, 500, "update"),
        (2, SERVER, node(0), 700, "catch-up"),
        (2, node(0), SERVER, 300, "update"),
    ]


def test_client_server_with_cache_sends_only_what_changed_since():
    rows = _run(
        visit_client_server, [(0, ("a", "b")), (1, ("a", "c")), (0, ("a", "b")), (0, ("a",))]
    )
    assert rows == [
        (0, SERVER, node(0), 700, "initial"),
        (0, node(0), SERVER, 300, "update"),
        (1, SERVER, node(1), 700, "initial"),
        (1, node(1), SERVER, 500, "update"),
        (
            2,
            SERVER,
            node(0),
            500,
            "catch-up",
        ),  # node1 changed a and c; node0's own b is still the latest
        (2, node(0), SERVER, 300, "update"),
        (3, node(0), SERVER, 100, "update"),  # the node itself holds the latest of all
    ]


def test_peer_to_peer_without_cache_hands_on_everything():
    rows = _run(
        visit_peer_to_peer, [(0, ("a", "b")), (1, ("a", "c")), (0, ("a", "b"))], cached=False
    )
    assert rows == [
        (0, SERVER, node(0), 700, "initial"),
        (1, node(0), node(1), 700, "initial"),
        (2, node(1), node(0), 500, "update"),
        (2, node(1), node(0), 200, "catch-up"),
    ]


def test_peer_to_peer_with_cache_hands_on_the_update_and_what_else_changed():
    visits = [(0, ("a",)), (1, ("b",)), (0, ("a",)), (1, ("c",)), (1, ("b",)), (0, ("a",))]
    rows = _run(visit_peer_to_peer, visits)
    assert rows == [
        (0, SERVER, node(0), 700, "initial"),
        (1, node(0), node(1), 700, "initial"),
        (2, node(1), node(0), 200, "update"),
        (3, node(0), node(1), 100, "update"),
        (5, node(1), node(0), 200, "update"),  # b, trained last
        (5, node(1), node(0), 400, "catch-up"),  # c, trained the visit before
    ]


def test_stored_precision_decides_what_goes_down_and_never_what_comes_up():
    rows = _run(visit_client_server, [(0, ("a",)), (0, ("b",)), (0, ("b",))], SMALL)
    assert rows == [
        (0, SERVER, node(0), 100 + 50 + 100, "initial"),  # a in full, b and c as stored
        (0, node(0), SERVER, 100, "update"),
        (
            1,
            SERVER,
            node(0),
            200,
            "catch-up",
        ),  # b again, now in full: a stored copy is no start for training
        (1, node(0), SERVER, 200, "update"),
        (2, node(0), SERVER, 200, "update"),
    ]


def test_peer_to_peer_sends_full_precision_only():
    rows = _run(visit_peer_to_peer, [(0, ("a",)), (1, ("b",))], SMALL)
    assert [row[3] for row in rows] == [700, 700]


def test_a_lost_node_was_sent_the_model_and_returns_nothing():
    network, down = visit_client_server(start(FULL), SAME, 0, 0, ("a",), cached=True, returns=False)
    assert [(t.destination, t.bytes) for t in down] == [(node(0), 700)]
    assert network.latest == dict.fromkeys(FULL, 0)
    network, _ = visit_peer_to_peer(start(FULL), SAME, 0, 0, ("a",), cached=True)
    network, _ = visit_peer_to_peer(network, SAME, 1, 1, ("b",), cached=True, returns=False)
    assert network.holder == node(0)
    _, again = visit_peer_to_peer(network, SAME, 1, 2, ("b",), cached=True)
    assert [(t.source, t.destination) for t in again] == [(node(0), node(2))]


def test_optimizer_states_travel_once_they_exist():
    state = optimizer_item("a")
    sizes = Sizes({**FULL, state: 50}, {**FULL, state: 50})
    network, first = visit_client_server(start(FULL), sizes, 0, 0, ("a", state), cached=True)
    _, second = visit_client_server(network, sizes, 1, 1, ("a", state), cached=True)
    assert [t.bytes for t in first] == [700, 150]
    assert [t.bytes for t in second] == [750, 150]
    _, other = visit_client_server(network, sizes, 1, 1, ("b",), cached=True)
    assert other[0].bytes == 700  # who does not train a has no use for its state
    network, _ = visit_peer_to_peer(start(FULL), sizes, 0, 0, ("a", state), cached=True)
    _, handed_on = visit_peer_to_peer(network, sizes, 1, 1, ("b",), cached=True)
    assert handed_on[0].bytes == 750  # but a peer passes it on


def test_after_averaging_only_the_server_is_current():
    network = start(FULL)
    for number in (0, 1):
        network, _ = visit_client_server(network, SAME, 0, number, tuple(FULL), cached=True)
    network = aggregated(network, tuple(FULL))
    _, transfers = visit_client_server(network, SAME, 1, 0, tuple(FULL), cached=True)
    assert [(t.bytes, t.why) for t in transfers] == [(700, "catch-up"), (700, "update")]


def test_up_is_what_nodes_send_and_down_what_the_server_sends():
    network, first = visit_peer_to_peer(start(FULL), SAME, 0, 0, ("a",), cached=True)
    _, second = visit_peer_to_peer(network, SAME, 1, 1, ("a",), cached=True)
    assert bytes_up_down(first) == (0, 700)
    assert bytes_up_down(second) == (700, 0)


def test_the_state_survives_json():
    network, _ = visit_peer_to_peer(start(FULL), SAME, 0, 0, ("a",), cached=True)
    assert from_json(to_json(network)) == network


def test_files_have_words_for_places():
    network, (sent,) = visit_peer_to_peer(start(("a",)), SAME, 0, 3, ("a",), cached=True)
    assert to_row(sent) == {
        "visit": 0,
        "source": "server",
        "destination": "node3",
        "layers": ("a",),
        "bytes": 100,
        "why": "initial",
    }
    assert json.loads(json.dumps(to_json(network))) == {
        "latest": {"a": 1},
        "held": {"server": {}, "node3": {"a": [1, True]}},
        "holder": "node3",
        "trained": ["a"],
        "stale": "0",
    }


def test_a_node_whose_copies_are_all_old_is_a_bit_and_not_taken_for_a_new_one():
    network = start(FULL)
    model = tuple(FULL)
    for number in range(40):  # as sampled nodes: each is sent the model, then all is renewed
        network, sent = deliveries_from_server(
            network, SAME, number, node(number), model, cached=True
        )
        assert [transfer.why for transfer in sent] == ["initial"]
        network = aggregated(network, model)
    assert list(network.held) == [SERVER], "what is gone through each round"
    assert from_json(json.loads(json.dumps(to_json(network)))) == network
    network, sent = deliveries_from_server(network, SAME, 40, node(7), model, cached=True)
    assert [transfer.why for transfer in sent] == ["catch-up"]
    assert (network.knows(node(39)), network.knows(node(40))) == (True, False)
