"""Node, link and server at the same time: hand counts, and a simulation batch by batch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snake_jax.nodes import overlap
from snake_jax.nodes.clock import Faults, VisitWork, elapse
from snake_jax.nodes.fleet import Fleet, Node
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.overlap import StageSeconds
from snake_jax.nodes.places import SERVER, node

POSITIVE = st.floats(0.0, 100.0)


def simulated(stages):
    """The seconds of the visit, and of its node, with each stage one batch at a time."""
    node_s, link_s, server_s = (
        seconds / stages.batches for seconds in (stages.node_s, stages.link_s, stages.server_s)
    )
    computed, sent, trained = stages.before_s, stages.before_s, 0.0
    for _ in range(stages.batches):
        computed += node_s
        sent = max(computed, sent) + link_s
        trained = max(sent + stages.latency_s, trained) + server_s
    done = sent + stages.after_s
    return max(done, trained), done


@given(
    st.builds(StageSeconds, st.integers(1, 20), *[POSITIVE] * 6),
)
@settings(max_examples=100, deadline=None)
def test_the_formula_is_what_batches_take_one_by_one(stages):
    assert overlap.seconds(stages) == pytest.approx(simulated(stages))


def test_a_visit_of_four_batches_by_hand():
    # The node computes 1000 and the server 10000 FLOP/s; 0.75 s of latency; 50 B/s up, 100 down.
    figures = Node(1e3, 1000, 50.0, 100.0, 0.5, 0.0, 0.0)
    fleet = Fleet((figures,), Node(1e4, 1000, 200.0, 400.0, 0.25, 0.0, 0.0))
    down = Transfer(0, SERVER, node(0), ("conv1",), 200, "initial")
    up = Transfer(0, node(0), SERVER, ("conv1",), 100, "update")
    streamed = (
        Transfer(0, node(0), SERVER, ("conv1",), 350, "activations"),
        Transfer(0, node(0), SERVER, ("labels",), 50, "labels"),
    )
    work = VisitWork(
        {node(0): 4000, SERVER: 120000}, (down, up, *streamed), 4, node(0), 0, 4, streamed
    )
    took = elapse(fleet, Faults(), 0.0, 0, [work], False)
    # Layers in 2.75 s; then 1 s of computing and 2 s of sending a batch, and 3 s at the server,
    # which sets the pace: 1 + 2 + 0.75 + 3, and three times 3 more.
    assert took.seconds == pytest.approx(2.75 + 6.75 + 9)
    # The node has sent its last batch after 1 + 2 + 3 x 2, and handed in 2.75 s later.
    assert took.wait_s == pytest.approx(took.seconds - (2.75 + 9 + 2.75))
    in_turn = work._replace(batches=0, streamed=())
    assert took.seconds < elapse(fleet, Faults(), 0.0, 0, [in_turn], False).seconds
