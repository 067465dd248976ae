"""What the methods send, compute and wait for against hand counts, and the flags that do not fit
them.
"""

from collections import Counter

import pytest

from snake_jax.errors import UserError
from snake_jax.nodes import places
from snake_jax.nodes.places import SERVER
from snake_jax.runs import loop
from tests.method_runs import NAMES, images, prepared, run  # noqa: F401  (images is a fixture)
from tests.sweeps import sweep

# What travels: 4x4x3 images, hidden layers of 16, 4 classes, 30 examples a node

FC1, FC2, FC3, FC4 = 4 * (48 * 16 + 16), 4 * (16 * 16 + 16), 4 * (16 * 16 + 16), 4 * (16 * 4 + 4)
WHOLE = FC1 + FC2 + FC3 + FC4
HEAD = 4 * (16 * 4 + 4)
NODE0, NODE1, NODE2 = (places.node(number) for number in range(3))
ACTIVATIONS, LABELS = 4 * 16 * 30, 4 * 30


def ledger(**flags):
    """`{(source, destination, layers, bytes, why)}` of each round, how often each row."""
    found = []
    for report in run(**flags):
        rows = Counter()
        for sent in report.transfers:
            layers = "+".join(sent.layers)
            rows[sent.source, sent.destination, layers, sent.bytes, sent.why] += 1
        found.append(rows)
    return found


def split_rows(node):
    return [
        (node, SERVER, "fc2", ACTIVATIONS, "activations"),
        (node, SERVER, "labels", LABELS, "labels"),
        (SERVER, node, "fc2", ACTIVATIONS, "gradients"),
    ]


@pytest.mark.parametrize("cached", [True, False])
def test_split_learning_sends_its_part_activations_labels_and_gradients(cached):
    found = ledger(algorithm="split", cached=cached)
    for visit, node in enumerate([NODE0, NODE1, NODE2] * 2):
        why = "initial" if visit < 3 else "catch-up"
        down = (SERVER, node, "fc1+fc2", FC1 + FC2, why)
        up = (node, SERVER, "fc1+fc2", FC1 + FC2, "update")
        assert found[visit] == Counter([down, up, *split_rows(node)])


def test_a_split_node_that_comes_back_at_once_has_its_part_still():
    cached, uncached = (
        ledger(algorithm="split", nodes=1, cached=cached)[1] for cached in (True, False)
    )
    assert (SERVER, NODE0, "fc1+fc2", FC1 + FC2, "catch-up") not in cached
    assert uncached - cached == Counter([(SERVER, NODE0, "fc1+fc2", FC1 + FC2, "catch-up")])


@pytest.mark.parametrize("cached", [True, False])
def test_split_learning_from_node_to_node(cached):
    found = ledger(algorithm="split", mode="peer_to_peer", cached=cached)
    sources = [SERVER, NODE0, NODE1, NODE2, NODE0, NODE1]
    for visit, node in enumerate([NODE0, NODE1, NODE2] * 2):
        why = "initial" if visit < 3 else "update"
        part = (sources[visit], node, "fc1+fc2", FC1 + FC2, why)
        assert found[visit] == Counter([part, *split_rows(node)])


def test_a_carried_state_travels_with_the_nodes_part_alone():
    flags = {"algorithm": "split", "carry_optimizer_state": True, "mode": "peer_to_peer"}
    part = next(t for t in run(**flags)[1].transfers if t.source == NODE0)
    assert set(part.layers) == {"fc1", "fc2", "fc1/optimizer", "fc2/optimizer"}
    assert part.bytes == 2 * (FC1 + FC2)  # momentum: a number for each weight


def test_the_u_shape_sends_no_labels():
    for found, node in zip(
        ledger(algorithm="split", cut="1", tail=1), [NODE0, NODE1, NODE2] * 2, strict=True
    ):
        (down,) = (row for row in found if row[4] in ("initial", "catch-up"))
        assert down[:4] == (SERVER, node, "fc1+fc4", FC1 + FC4)
        assert found == Counter(
            [
                down,
                (node, SERVER, "fc1+fc4", FC1 + FC4, "update"),
                (node, SERVER, "fc1", ACTIVATIONS, "activations"),
                (SERVER, node, "fc3", ACTIVATIONS, "activations"),
                (node, SERVER, "fc3", ACTIVATIONS, "gradients"),
                (SERVER, node, "fc1", ACTIVATIONS, "gradients"),
            ]
        )


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("cached", [True, False])
def test_splitfed_sends_what_split_learning_does(version, cached):
    found = ledger(algorithm="splitfed", splitfed_version=version, cached=cached)
    per_cycle = 1 if version == "v1" else 3
    assert len(found) == 2 * per_cycle
    for cycle in range(2):
        together = sum(found[cycle * per_cycle : (cycle + 1) * per_cycle], Counter())
        why = "catch-up" if cycle else "initial"
        rows = []
        for node in (NODE0, NODE1, NODE2):
            rows.append((SERVER, node, "fc1+fc2", FC1 + FC2, why))
            rows.append((node, SERVER, "fc1+fc2", FC1 + FC2, "update"))
            rows += split_rows(node)
        assert together == Counter(rows)


@pytest.mark.parametrize("cached", [True, False])
def test_accelerated_fl_sends_a_head_along_and_no_gradients(cached):
    for cycle, found in enumerate(ledger(algorithm="accelerated_fl", cached=cached)):
        why = "catch-up" if cycle else "initial"
        part, part_bytes = "fc1+fc2+auxiliary", FC1 + FC2 + HEAD
        rows = []
        for node in (NODE0, NODE1, NODE2):
            rows.append((SERVER, node, part, part_bytes, why))
            rows.append((node, SERVER, part, part_bytes, "update"))
            rows.append((node, SERVER, "fc2", ACTIVATIONS, "activations"))
            rows.append((node, SERVER, "labels", LABELS, "labels"))
        assert found == Counter(rows)


@pytest.mark.parametrize("cached", [True, False])
def test_random_walking_snakes_need_the_server_for_the_first_visit_only(cached):
    flags = {"algorithm": "random_walking_snakes", "cached": cached, "seed": 1}
    visits = [visit for (visit,) in loop.planned(prepared(**flags))]
    layers = [("fc1+fc2", FC1 + FC2), ("fc3", FC3), ("fc4", FC4)]
    sources, known = [SERVER] * 3, set()
    for visit, found in zip(visits, ledger(**flags), strict=True):
        nodes = [places.node(n) for n in (visit.node, *visit.others)]
        rows = [
            (source, node, *layer, "update" if node in known else "initial")
            for source, node, layer in zip(sources, nodes, layers, strict=True)
            if source != node
        ]
        head, body, last = nodes
        rows += [
            (head, body, "fc2", ACTIVATIONS, "activations"),
            (body, last, "fc3", ACTIVATIONS, "activations"),
            (head, last, "labels", LABELS, "labels"),
            (last, body, "fc3", ACTIVATIONS, "gradients"),
            (body, head, "fc2", ACTIVATIONS, "gradients"),
        ]
        assert found == Counter(rows)
        sources, known = nodes, known | {*nodes}
    assert visits[0].node != visits[3].node


def test_a_snake_of_length_one_hands_the_whole_model_on():
    flags = {"algorithm": "random_walking_snakes", "snake_length": 1}
    first, second, *_ = ledger(**flags)
    a, b = (places.node(visit.node) for (visit,) in loop.planned(prepared(**flags))[:2])
    assert first == Counter([(SERVER, a, "+".join(NAMES), WHOLE, "initial")])
    assert second == Counter([(a, b, "+".join(NAMES), WHOLE, "initial")])


def test_parallel_snakes_send_each_node_what_a_visit_needs():
    flags = {"algorithm": "snake", "parallel": 2, "always_train": "none", "cycles": 1}
    first, second, third, fourth = ledger(**flags)

    def handed_in(layer, size, *nodes):
        return [(node, SERVER, layer, size, "update") for node in nodes]

    down = [(SERVER, node, "+".join(NAMES), WHOLE, "initial") for node in (NODE0, NODE1, NODE2)]
    assert first == Counter(down[:2] + handed_in("fc1", FC1, NODE0, NODE1))
    # What node0 handed in was averaged, so its own fc1 is old; fc2 it has, for frozen layers are
    # stored in full here.
    down = [down[2], (SERVER, NODE0, "fc1", FC1, "catch-up")]
    assert second == Counter(down + handed_in("fc2", FC2, NODE2, NODE0))
    down = [
        (SERVER, NODE1, "fc1+fc2", FC1 + FC2, "catch-up"),
        (SERVER, NODE2, "fc2", FC2, "catch-up"),
    ]
    assert third == Counter(down + handed_in("fc3", FC3, NODE1, NODE2))
    down = [
        (SERVER, NODE0, "fc2+fc3", FC2 + FC3, "catch-up"),
        (SERVER, NODE1, "fc3", FC3, "catch-up"),
    ]
    assert fourth == Counter(down + handed_in("fc4", FC4, NODE0, NODE1))


def test_a_lone_node_that_stores_frozen_layers_in_full_is_sent_the_model_once():
    once, *later = ledger(algorithm="snake", nodes=1, always_train="none", cycles=2)
    assert (SERVER, NODE0, "+".join(NAMES), WHOLE, "initial") in once
    for rows in later:
        assert SERVER not in {source for source, *_ in rows}


def test_fedavg_with_sampled_nodes_sends_the_model_to_those():
    for report in run(algorithm="fedavg", nodes_per_round=2):
        nodes = {places.node(n) for n in report.record["node"]}
        assert len(nodes) == 2
        assert {t.destination for t in report.transfers if t.source == SERVER} == nodes
        assert (report.record["bytes_up"], report.record["bytes_down"]) == (2 * WHOLE, 2 * WHOLE)


EVERY = {
    "snake": {},
    "snake, parallel": {"algorithm": "snake", "parallel": 2, "distill": "off"},
    "snake, three at once": {
        "algorithm": "snake",
        "snakes": 3,
        "always_train": "none",
        "distill": "off",
    },
    "fedavg": {},
    "progressive": {"rounds_per_layer": 1},
    "badam": {},
    "lisa": {"periods": 2},
    "sequential": {"distill": "off"},
    "centralised": {},
    "split": {},
    "split, U-shape": {"algorithm": "split", "cut": "1", "tail": 1},
    "splitfed": {},
    "splitfed v2": {"algorithm": "splitfed", "splitfed_version": "v2"},
    "accelerated_fl": {},
    "random_walking_snakes": {},
}


def flags_of(method):
    return {"algorithm": method, **EVERY[method]}


# Of the others the bytes are counted by hand above.
COMPANY = ["snake, parallel", "snake, three at once", "progressive", "badam", "lisa", "splitfed v2"]


@pytest.mark.parametrize("method", sweep(EVERY, quick=COMPANY))
def test_bytes_in_the_metrics_are_sums_over_the_ledger(method):
    for report in run(**flags_of(method)):
        down = sum(t.bytes for t in report.transfers if t.source == SERVER)
        up = sum(t.bytes for t in report.transfers if t.source != SERVER)
        assert (report.record["bytes_up"], report.record["bytes_down"]) == (up, down)
        assert all(t.bytes > 0 and t.source != t.destination for t in report.transfers)


@pytest.mark.parametrize("method", EVERY)
def test_what_goes_over_a_cut_comes_back_over_it(method):
    for report in run(**flags_of(method)):
        over = lambda why: Counter((t.layers, t.bytes) for t in report.transfers if t.why == why)  # noqa: B023, E731
        assert over("gradients") == (
            Counter() if method == "accelerated_fl" else over("activations")
        )
        labels = sum(t.bytes for t in report.transfers if t.why == "labels")
        cut = bool(over("activations")) and "U-shape" not in method
        assert labels == (4 * report.record["examples"] if cut else 0)


# What is computed where: a batch is 8 examples, a visit 4 of them, products of 2 * 8 * in * out

F1, F2, F3, F4, AUXILIARY = (2 * 8 * n for n in (48 * 16, 16 * 16, 16 * 16, 16 * 4, 16 * 4))
STEP = 2 * F1 + 3 * (F2 + F3 + F4)


@pytest.mark.parametrize(
    ("method", "node", "server"),
    [
        ("sequential", STEP, 0),
        ("fedavg", STEP, 0),
        ("split", 2 * F1 + 3 * F2, 3 * (F3 + F4)),
        ("split, U-shape", 2 * F1 + 3 * F4, 3 * (F2 + F3)),
        ("splitfed", 2 * F1 + 3 * F2, 3 * (F3 + F4)),
        ("splitfed v2", 2 * F1 + 3 * F2, 3 * (F3 + F4)),
        ("accelerated_fl", 2 * F1 + 3 * F2 + 3 * AUXILIARY, 2 * F3 + 3 * F4),
        ("random_walking_snakes", STEP, 0),
    ],
)
def test_flops_by_place_are_the_hand_count(method, node, server):
    for report in run(**flags_of(method)):
        steps = report.record["iterations"]
        assert steps % 4 == 0
        assert report.record["server_flops"] == steps * server
        assert report.record["train_flops"] == steps * (node + server)


@pytest.mark.parametrize(
    ("method", "waits"),
    [
        ("snake", [0] * 4),
        ("snake, parallel", [1] * 4),
        ("sequential", [0] * 6),
        ("centralised", [0] * 2),
        ("fedavg", [1] * 2),
        ("accelerated_fl", [1] * 2),
        ("split", [4] * 6),
        ("split, U-shape", [8] * 6),
        ("splitfed", [3 * 4 + 1] * 2),
        ("splitfed v2", [4] * 6),  # nodes come one after another: no slowest one
        ("random_walking_snakes", [2 * 4] * 6),
    ],
)
def test_synchronisations_are_the_hand_count(method, waits):
    assert [report.record["synchronisations"] for report in run(**flags_of(method))] == waits


# Flags that do not fit


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"algorithm": "fedavg", "cut": "1"},
            "--cut=1: fedavg has no use for it; it is for split, splitfed",
        ),
        (
            {"algorithm": "random_walking_snakes", "cut": "1"},
            "--cut=1: random_walking_snakes has no use for it",
        ),
        (
            {"algorithm": "snake", "snake_length": 2},
            "--snake_length=2: snake has no use for it; it is for random_walk",
        ),
        (
            {"algorithm": "snake", "shuffle_nodes": True},
            "--shuffle_nodes=True: snake has no use for it; it is for seq",
        ),
        (
            {"algorithm": "fedavg", "parallel": 2},
            "--parallel=2: fedavg has no use for it; it is for snake",
        ),
        (
            {"algorithm": "accelerated_fl", "tail": 1},
            "--tail=1: accelerated_fl has no use for it; it is for split",
        ),
        (
            {"algorithm": "split", "splitfed_version": "v2"},
            "--splitfed_version=v2: split has no use for it",
        ),
        (
            {"algorithm": "split", "nodes_per_round": 2},
            "--nodes_per_round=2: split has no use for it",
        ),
        ({"algorithm": "split", "proximal": 0.1}, "--proximal=0.1: split has no use for it"),
        ({"algorithm": "split", "distill": "on"}, "--distill=on: split has no use for it"),
        (
            {"algorithm": "splitfed", "mode": "peer_to_peer"},
            "--mode=peer_to_peer: splitfed has no use for it",
        ),
        (
            {"algorithm": "splitfed", "server_momentum": 0.5},
            "--server_momentum=0.5: splitfed has no use for it",
        ),
        (
            {"algorithm": "splitfed", "nodes_per_round": 4},
            "--nodes_per_round=4 is more than --nodes=3",
        ),
        (
            {"algorithm": "accelerated_fl", "frozen_dtype": "int8"},
            "--frozen_dtype=int8: accelerated_fl has no use",
        ),
        (
            {"algorithm": "split", "cut": "0"},
            "--cut=0 with --tail=0: node and server need at least one of the 4 layers",
        ),
        (
            {"algorithm": "split", "cut": "4"},
            "--cut=4 with --tail=0: node and server need at least one of the 4 layers",
        ),
        (
            {"algorithm": "split", "cut": "3", "tail": 1},
            "--cut=3 with --tail=1: node and server need at least one",
        ),
        (
            {"algorithm": "splitfed", "tail": 4},
            "--cut=2 with --tail=4: node and server need at least one",
        ),
        (
            {"algorithm": "accelerated_fl", "cut": "all"},
            "--cut=all: want a number of layers or the name of the node's",
        ),
        (
            {"algorithm": "split", "cut": "-1"},
            "--cut=-1: want a number of layers or the name of the node's last one",
        ),
        ({"algorithm": "split", "cut": "fc9"}, "--cut=fc9: want a number .*: fc1, fc2, fc3, fc4"),
        ({"algorithm": "snake", "parallel": 4}, "--parallel=4 is more than --nodes=3"),
        (
            {"algorithm": "snake", "parallel": 2, "mode": "peer_to_peer"},
            "--parallel=2: the server averages the nodes",
        ),
        (
            {"algorithm": "snake", "parallel": 2, "interrupt": "1"},
            "--parallel=2: an idle node can take over for one",
        ),
        (
            {"algorithm": "snake", "parallel": 2, "carry_optimizer_state": True},
            "--parallel=2: side by side there is no",
        ),
        (
            {"algorithm": "random_walking_snakes", "snake_length": 4},
            "there are 3 nodes and 4 layers",
        ),
        (
            {"algorithm": "random_walking_snakes", "snake_length": 5, "nodes": 9},
            "there are 9 nodes and 4 layers",
        ),
        (
            {"algorithm": "random_walking_snakes", "nodes": 2},
            "--snake_length=3: a snake needs a node and a layer",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        prepared(**flags)
