"""The methods of the comparison against each other and against hand counts of what they send, compute and wait for."""

import functools
from collections import Counter
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snake_jax import runner
from snake_jax.config import Config
from snake_jax.errors import UserError
from snake_jax.layers import without
from snake_jax.network import SERVER
from snake_jax.schedule import Visit
from snake_jax.steps import local_epoch
from tests.helpers import batches, close, random_examples, same_bits, small_model, small_step, states_for
from tests.launches import write_images

NAMES = ("fc1", "fc2", "fc3", "fc4")
SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8, "eval_every": 100}


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """90 training images of 4x4x3 and 4 classes, for all runs here."""
    SMALL["dataset"] = f"npz:{write_images(tmp_path_factory.mktemp('data') / 'images.npz')}"
    yield
    _kept.cache_clear()


def prepared(**flags):
    return runner.prepare(Config(**{**SMALL, **flags}))


@functools.cache
def _kept(flags):
    setup = prepared(**dict(flags))
    executor, state = runner.make_executor(setup), runner.initial_state(setup)
    return setup, executor, state, list(runner.train(setup, executor, state, lambda state: None))


def run(**flags):
    """The reports of a run, made once for the same flags."""
    return _kept(tuple(sorted(flags.items())))[-1]


def final(**flags):
    """The parameters that a run ends with."""
    return run(**flags)[-1].state.params


# Methods that must coincide


@pytest.mark.parametrize(("cut", "tail"), [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1)])
def test_split_learning_is_sequential_training_wherever_the_cuts_are(cut, tail):
    whole = final(algorithm="sequential", clip_norm=0.0, distill="off")
    assert close(final(algorithm="split", cut=str(cut), tail=tail, clip_norm=0.0), whole)


def test_so_it_is_with_dropout_and_other_rules_and_a_carried_state():
    flags = {"dropout": 0.3, "optimizer": "rmsprop", "learning_rate": 0.002, "carry_optimizer_state": True}
    whole = final(algorithm="sequential", clip_norm=0.0, distill="off", **flags)
    assert close(final(algorithm="split", cut="fc1", clip_norm=0.0, **flags), whole)


def test_a_cut_can_be_named_by_the_last_layer_of_the_node():
    assert prepared(algorithm="split", cut="fc3").chain == prepared(algorithm="split", cut="3").chain


@pytest.mark.parametrize("tail", [0, 1])
def test_splitfed_with_one_node_is_split_learning(tail):
    flags = {"nodes": 1, "tail": tail, "local_epochs": 2}
    alone = final(algorithm="split", **flags)
    assert same_bits(final(algorithm="splitfed", **flags), alone)
    second = final(algorithm="splitfed", splitfed_version="v2", **flags)
    held = ("fc1", "fc2", "fc4")[: 2 + tail]
    # The node's part is examples * w / examples, which rounds once up and once down; the second cycle starts from it.
    after_first = [run(algorithm=a, **f, **flags)[0].state.params for a, f in V2_AND_SPLIT]
    assert same_bits(*(without(params, held) for params in after_first))
    assert close(*after_first, rtol=2**-22, atol=0.0)
    assert close(second, alone)


V2_AND_SPLIT = (("splitfed", {"splitfed_version": "v2"}), ("split", {}))


@pytest.mark.parametrize("changes", [{}, {"partition": "dirichlet_split", "alpha": 0.5}, {"nodes_per_round": 2}])
def test_splitfed_v1_is_fedavg(changes):
    flags = {"clip_norm": 0.0, **changes}
    assert close(final(algorithm="splitfed", **flags), final(algorithm="fedavg", **flags))


def test_splitfed_v2_hands_the_servers_part_from_node_to_node_and_averages_the_nodes_parts():
    flags = {
        "algorithm": "splitfed",
        "splitfed_version": "v2",
        "cycles": 1,
        "partition": "dirichlet_split",
        "alpha": 0.5,
    }
    setup, executor, state, reports = _kept(tuple(sorted(flags.items())))
    order = [report.record["node"] for report in reports]
    assert sorted(order) == [0, 1, 2]
    params, parts = state.params, []
    for turn, node in enumerate(order):
        (result,) = executor.run([Visit(turn, 0, node, NAMES)], params, {}, setup.config.learning_rate)
        params = {**params, **without(result.layers, ("fc1", "fc2"))}
        parts.append((len(setup.shards[node]), without(result.layers, ("fc3", "fc4"))))
        if turn < 2:
            assert same_bits(reports[turn].state.params, params), "the nodes' parts wait for the end of the cycle"
    held = sum(n for n, _ in parts)
    mean = jax.tree.map(
        lambda *w: sum(n / held * np.float64(x) for (n, _), x in zip(parts, w, strict=True)), *(p for _, p in parts)
    )
    assert same_bits(without(reports[-1].state.params, ("fc1", "fc2")), without(params, ("fc1", "fc2")))
    assert close(without(reports[-1].state.params, ("fc3", "fc4")), mean)
    assert len({n for n, _ in parts}) > 1


def test_splitfed_v2_takes_the_nodes_in_a_new_order_every_cycle():
    setup = prepared(algorithm="splitfed", splitfed_version="v2", nodes=9, cycles=3)
    orders = [[r[0].node for r in setup.algorithm.rounds(setup.plan, cycle)] for cycle in range(3)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [r[0].turn for r in runner.rounds(setup)] == list(range(27))


def test_random_walking_snakes_of_length_one_are_sequential_training_in_the_same_order():
    snakes = final(algorithm="random_walking_snakes", snake_length=1)
    assert same_bits(snakes, final(algorithm="sequential", shuffle_nodes=True, distill="off"))
    assert not same_bits(snakes, final(algorithm="sequential", distill="off"))


@pytest.mark.parametrize("length", [2, 3])
def test_longer_snakes_train_the_same_where_nothing_is_clipped(length):
    snakes = final(algorithm="random_walking_snakes", snake_length=length, clip_norm=0.0)
    assert close(snakes, final(algorithm="random_walking_snakes", snake_length=1, clip_norm=0.0))


def test_a_snake_walks_over_other_nodes_whose_order_is_new_every_cycle():
    setup = prepared(algorithm="random_walking_snakes", nodes=8, cycles=4, snake_length=3)
    visits = [visit for (visit,) in runner.rounds(setup)]
    assert [v.turn for v in visits] == list(range(32))
    heads = [tuple(v.node for v in visits if v.cycle == cycle) for cycle in range(4)]
    assert all(sorted(order) == list(range(8)) for order in heads)
    assert len(set(heads)) == 4
    assert all(len({v.node, *v.others}) == 3 for v in visits)
    assert all(after.others == (before.node, before.others[0]) for before, after in pairwise(visits[:8]))
    assert [(s.start, s.stop) for s in setup.chain] == [(0, 2), (2, 3), (3, 4)]


def test_a_snake_of_one_node_at_a_time_is_the_paper_s():
    visits = runner.rounds(prepared(algorithm="snake", parallel=1, cycles=3))
    assert [len(visit) for visit in visits] == [1] * 6
    assert [visit[0].node for visit in visits] == [0, 1, 2, 0, 1, 2]
    assert same_bits(final(algorithm="snake", parallel=1), final(algorithm="snake"))


def test_a_parallel_visit_is_the_mean_of_its_nodes_visits_by_examples():
    flags = {"algorithm": "snake", "parallel": 2, "partition": "dirichlet_split", "alpha": 0.5, "distill": "off"}
    setup, executor, state, reports = _kept(tuple(sorted(flags.items())))
    nodes = [report.record["node"] for report in reports]
    assert nodes == [[0, 1], [2, 0], [1, 2], [0, 1]]
    params = state.params
    for turn, report in enumerate(reports):
        rate, layers = report.record["learning_rate"], tuple(report.record["layers"])
        visits = [Visit(turn, turn // 2, node, layers) for node in nodes[turn]]
        alone = [executor.run([visit], params, {}, rate)[0].layers for visit in visits]
        sizes = [len(setup.shards[node]) for node in nodes[turn]]
        mean = jax.tree.map(
            lambda *w, n=sizes: sum(k * np.float64(x) for k, x in zip(n, w, strict=True)) / sum(n), *alone
        )
        assert close(report.state.params, {**params, **mean})
        assert len(set(sizes)) == 2
        params = report.state.params


def test_accelerated_fl_averages_the_nodes_parts_the_heads_and_the_servers_copies():
    flags = {"algorithm": "accelerated_fl", "cycles": 1, "partition": "dirichlet_split", "alpha": 0.5}
    setup, executor, state, (report,) = _kept(tuple(sorted(flags.items())))
    visits = [Visit(0, 0, node, (*NAMES, "auxiliary")) for node in range(3)]
    alone = [executor.run([visit], state.params, {}, setup.config.learning_rate)[0].layers for visit in visits]
    shares = np.array([len(shard) for shard in setup.shards]) / 90
    mean = jax.tree.map(lambda *w: sum(s * np.float64(x) for s, x in zip(shares, w, strict=True)), *alone)
    assert report.state.params.keys() == {*NAMES, "auxiliary"}
    assert close(report.state.params, mean)


def test_accelerated_fl_learns():
    reports = run(algorithm="accelerated_fl", cycles=12, learning_rate=0.1)
    assert reports[-1].record["accuracy"] > 0.6


def test_each_party_of_a_cut_model_clips_apart():
    def parties(**flags):
        return runner.make_executor(prepared(**flags))._step.parties

    assert parties(algorithm="split", cut="1") == (("fc1",), ("fc2", "fc3", "fc4"))
    assert parties(algorithm="split", cut="1", tail=1) == (("fc1", "fc4"), ("fc2", "fc3"))
    assert parties(algorithm="splitfed") == (("fc1", "fc2"), ("fc3", "fc4"))
    assert parties(algorithm="accelerated_fl") == (("fc1", "fc2", "auxiliary"), ("fc3", "fc4"))
    assert parties(algorithm="random_walking_snakes") == (("fc1", "fc2"), ("fc3",), ("fc4",))
    assert parties(algorithm="random_walking_snakes", snake_length=1) == parties(algorithm="fedavg") == ()
    assert not close(
        final(algorithm="split", clip_norm=0.05), final(algorithm="sequential", clip_norm=0.05, distill="off")
    )


# FedProx


def test_without_a_proximal_term_fedavg_keeps_nothing_it_received():
    assert same_bits(final(algorithm="fedavg", proximal=0.0), final(algorithm="fedavg"))
    assert not runner.make_executor(prepared(algorithm="fedavg", proximal=0.0))._step.needs_received
    assert runner.make_executor(prepared(algorithm="fedavg", proximal=0.1))._step.needs_received


def test_a_proximal_step_descends_fedprox_s_objective():
    model, params = small_model("mlp")
    examples, rate, mu = random_examples(12), 0.1, 0.7
    step = small_step(model, rule=optax.identity(), proximal=mu)
    rows = batches([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    epoch = jax.jit(local_epoch(step, model.layer_names))
    found, *_ = epoch(params, states_for(step, params), {}, params, examples, rows, jax.random.key(0), rate)

    def objective(w, start):
        x = jax.lax.dynamic_slice_in_dim(step.normalise(examples.images), start, 4)
        labels = jax.lax.dynamic_slice_in_dim(examples.labels, start, 4)
        task = -jnp.take_along_axis(jax.nn.log_softmax(model.apply(w, x)), labels[:, None], 1).mean()
        away = sum(((a - b) ** 2).sum() for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(params), strict=True))
        return task + mu / 2 * away

    descend, w = jax.jit(jax.grad(objective)), params
    for start in (0, 4, 8):
        w = jax.tree.map(lambda a, g: a - rate * g, w, descend(w, start))
    assert close(found, {name: w[name] for name in found})


def test_a_large_proximal_term_keeps_the_weights_near_what_was_received():
    flags = {"algorithm": "fedavg", "cycles": 1, "momentum": 0.0, "clip_norm": 0.0, "local_epochs": 5}
    rate = 0.02
    _, _, state, _ = _kept(tuple(sorted(flags.items())))

    def moved(mu):
        away = jax.tree.map(lambda a, b: ((a - b) ** 2).sum(), final(**flags, proximal=mu), state.params)
        return float(sum(jax.tree.leaves(away))) ** 0.5

    distances = [moved(mu) for mu in (0.0, 1.0, 10.0, 1 / rate)]
    assert distances == sorted(distances, reverse=True)
    # With mu = 1/rate a step forgets where the last one led: twenty of them lead no further than one.
    assert distances[-1] < distances[0] / 5


def test_snake_learning_takes_a_proximal_term_on_the_layers_it_trains():
    free, held = (run(algorithm="snake", proximal=mu)[0].state.params for mu in (0.0, 5.0))
    assert same_bits(free["fc3"], held["fc3"])
    assert not same_bits(free["fc2"], held["fc2"])


# What travels: 4x4x3 images, hidden layers of 16, 4 classes, 30 examples a node

FC1, FC2, FC3, FC4 = 4 * (48 * 16 + 16), 4 * (16 * 16 + 16), 4 * (16 * 16 + 16), 4 * (16 * 4 + 4)
WHOLE = FC1 + FC2 + FC3 + FC4
HEAD = 4 * (16 * 4 + 4)
ACTIVATIONS, LABELS = 4 * 16 * 30, 4 * 30


def ledger(**flags):
    """`{(source, destination, layers, bytes, why)}` of each round, how often each row."""
    return [
        Counter((t.source, t.destination, "+".join(t.layers), t.bytes, t.why) for t in report.transfers)
        for report in run(**flags)
    ]


def split_rows(node):
    return [
        (node, SERVER, "fc2", ACTIVATIONS, "activations"),
        (node, SERVER, "labels", LABELS, "labels"),
        (SERVER, node, "fc2", ACTIVATIONS, "gradients"),
    ]


@pytest.mark.parametrize("cached", [True, False])
def test_split_learning_sends_its_part_activations_labels_and_gradients(cached):
    found = ledger(algorithm="split", cached=cached)
    for visit, node in enumerate(["node0", "node1", "node2"] * 2):
        why = "initial" if visit < 3 else "catch-up"
        down = (SERVER, node, "fc1+fc2", FC1 + FC2, why)
        up = (node, SERVER, "fc1+fc2", FC1 + FC2, "update")
        assert found[visit] == Counter([down, up, *split_rows(node)])


def test_a_split_node_that_comes_back_at_once_has_its_part_still():
    cached, uncached = (ledger(algorithm="split", nodes=1, cached=cached)[1] for cached in (True, False))
    assert (SERVER, "node0", "fc1+fc2", FC1 + FC2, "catch-up") not in cached
    assert uncached - cached == Counter([(SERVER, "node0", "fc1+fc2", FC1 + FC2, "catch-up")])


@pytest.mark.parametrize("cached", [True, False])
def test_split_learning_from_node_to_node(cached):
    found = ledger(algorithm="split", mode="peer_to_peer", cached=cached)
    sources = [SERVER, "node0", "node1", "node2", "node0", "node1"]
    for visit, node in enumerate(["node0", "node1", "node2"] * 2):
        why = "initial" if visit < 3 else "update"
        part = (sources[visit], node, "fc1+fc2", FC1 + FC2, why)
        assert found[visit] == Counter([part, *split_rows(node)])


def test_a_carried_state_travels_with_the_nodes_part_alone():
    flags = {"algorithm": "split", "carry_optimizer_state": True, "mode": "peer_to_peer"}
    part = next(t for t in run(**flags)[1].transfers if t.source == "node0")
    assert set(part.layers) == {"fc1", "fc2", "fc1/optimizer", "fc2/optimizer"}
    assert part.bytes == 2 * (FC1 + FC2)  # momentum: a number for each weight


def test_the_u_shape_sends_no_labels():
    for found, node in zip(ledger(algorithm="split", cut="1", tail=1), ["node0", "node1", "node2"] * 2, strict=True):
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
        rows = [
            row
            for node in ("node0", "node1", "node2")
            for row in (
                (SERVER, node, "fc1+fc2", FC1 + FC2, why),
                (node, SERVER, "fc1+fc2", FC1 + FC2, "update"),
                *split_rows(node),
            )
        ]
        assert together == Counter(rows)


@pytest.mark.parametrize("cached", [True, False])
def test_accelerated_fl_sends_a_head_along_and_no_gradients(cached):
    for cycle, found in enumerate(ledger(algorithm="accelerated_fl", cached=cached)):
        rows = [
            row
            for node in ("node0", "node1", "node2")
            for row in (
                (SERVER, node, "fc1+fc2+auxiliary", FC1 + FC2 + HEAD, "catch-up" if cycle else "initial"),
                (node, SERVER, "fc1+fc2+auxiliary", FC1 + FC2 + HEAD, "update"),
                (node, SERVER, "fc2", ACTIVATIONS, "activations"),
                (node, SERVER, "labels", LABELS, "labels"),
            )
        ]
        assert found == Counter(rows)


@pytest.mark.parametrize("cached", [True, False])
def test_random_walking_snakes_need_the_server_for_the_first_visit_only(cached):
    flags = {"algorithm": "random_walking_snakes", "cached": cached}
    visits = [visit for (visit,) in runner.rounds(prepared(**flags))]
    layers = [("fc1+fc2", FC1 + FC2), ("fc3", FC3), ("fc4", FC4)]
    sources, known = [SERVER] * 3, set()
    for visit, found in zip(visits, ledger(**flags), strict=True):
        nodes = [f"node{n}" for n in (visit.node, *visit.others)]
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
    a, b = (f"node{visit.node}" for (visit,) in runner.rounds(prepared(**flags))[:2])
    assert first == Counter([(SERVER, a, "+".join(NAMES), WHOLE, "initial")])
    assert second == Counter([(a, b, "+".join(NAMES), WHOLE, "initial")])


def test_parallel_snakes_send_each_node_what_a_visit_needs():
    flags = {"algorithm": "snake", "parallel": 2, "always_train": "none", "cycles": 1}
    first, second, third, fourth = ledger(**flags)

    def handed_in(layer, size, *nodes):
        return [(node, SERVER, layer, size, "update") for node in nodes]

    down = [(SERVER, node, "+".join(NAMES), WHOLE, "initial") for node in ("node0", "node1", "node2")]
    assert first == Counter(down[:2] + handed_in("fc1", FC1, "node0", "node1"))
    # What node0 handed in was averaged, so its own fc1 is old; fc2 it has, for frozen layers are stored in full here.
    down = [down[2], (SERVER, "node0", "fc1", FC1, "catch-up")]
    assert second == Counter(down + handed_in("fc2", FC2, "node2", "node0"))
    down = [(SERVER, "node1", "fc1+fc2", FC1 + FC2, "catch-up"), (SERVER, "node2", "fc2", FC2, "catch-up")]
    assert third == Counter(down + handed_in("fc3", FC3, "node1", "node2"))
    down = [(SERVER, "node0", "fc2+fc3", FC2 + FC3, "catch-up"), (SERVER, "node1", "fc3", FC3, "catch-up")]
    assert fourth == Counter(down + handed_in("fc4", FC4, "node0", "node1"))


def test_a_lone_node_that_stores_frozen_layers_in_full_is_sent_the_model_once():
    once, *later = ledger(algorithm="snake", nodes=1, always_train="none", cycles=2)
    assert (SERVER, "node0", "+".join(NAMES), WHOLE, "initial") in once
    assert all(source != SERVER for rows in later for source, *_ in rows)


def test_fedavg_with_sampled_nodes_sends_the_model_to_those():
    for report in run(algorithm="fedavg", nodes_per_round=2):
        nodes = {f"node{n}" for n in report.record["node"]}
        assert len(nodes) == 2
        assert {t.destination for t in report.transfers if t.source == SERVER} == nodes
        assert (report.record["bytes_up"], report.record["bytes_down"]) == (2 * WHOLE, 2 * WHOLE)


EVERY = {
    "snake": {},
    "snake, parallel": {"algorithm": "snake", "parallel": 2, "distill": "off"},
    "fedavg": {},
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


@pytest.mark.parametrize("method", EVERY)
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
        assert over("gradients") == (Counter() if method == "accelerated_fl" else over("activations"))
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
        ({"algorithm": "fedavg", "cut": "1"}, "--cut=1: fedavg has no use for it; it is for split, splitfed"),
        ({"algorithm": "random_walking_snakes", "cut": "1"}, "--cut=1: random_walking_snakes has no use for it"),
        ({"algorithm": "snake", "snake_length": 2}, "--snake_length=2: snake has no use for it; it is for random_walk"),
        ({"algorithm": "snake", "shuffle_nodes": True}, "--shuffle_nodes=True: snake has no use for it; it is for seq"),
        ({"algorithm": "fedavg", "parallel": 2}, "--parallel=2: fedavg has no use for it; it is for snake"),
        ({"algorithm": "accelerated_fl", "tail": 1}, "--tail=1: accelerated_fl has no use for it; it is for split"),
        ({"algorithm": "split", "splitfed_version": "v2"}, "--splitfed_version=v2: split has no use for it"),
        ({"algorithm": "split", "nodes_per_round": 2}, "--nodes_per_round=2: split has no use for it"),
        ({"algorithm": "split", "proximal": 0.1}, "--proximal=0.1: split has no use for it"),
        ({"algorithm": "split", "distill": "on"}, "--distill=on: split has no use for it"),
        ({"algorithm": "splitfed", "mode": "peer_to_peer"}, "--mode=peer_to_peer: splitfed has no use for it"),
        ({"algorithm": "splitfed", "server_momentum": 0.5}, "--server_momentum=0.5: splitfed has no use for it"),
        ({"algorithm": "splitfed", "nodes_per_round": 4}, "--nodes_per_round=4 is more than --nodes=3"),
        ({"algorithm": "accelerated_fl", "frozen_dtype": "int8"}, "--frozen_dtype=int8: accelerated_fl has no use"),
        (
            {"algorithm": "split", "cut": "0"},
            "--cut=0 with --tail=0: node and server need at least one of the 4 layers",
        ),
        (
            {"algorithm": "split", "cut": "4"},
            "--cut=4 with --tail=0: node and server need at least one of the 4 layers",
        ),
        ({"algorithm": "split", "cut": "3", "tail": 1}, "--cut=3 with --tail=1: node and server need at least one"),
        ({"algorithm": "splitfed", "tail": 4}, "--cut=2 with --tail=4: node and server need at least one"),
        ({"algorithm": "accelerated_fl", "cut": "all"}, "--cut=all: want a number of layers or the name of the node's"),
        ({"algorithm": "split", "cut": "-1"}, "--cut=-1: want a number of layers or the name of the node's last one"),
        ({"algorithm": "split", "cut": "fc9"}, "--cut=fc9: want a number .*: fc1, fc2, fc3, fc4"),
        ({"algorithm": "snake", "parallel": 4}, "--parallel=4 is more than --nodes=3"),
        ({"algorithm": "snake", "parallel": 2, "mode": "peer_to_peer"}, "--parallel=2: the server averages the nodes"),
        ({"algorithm": "snake", "parallel": 2, "interrupt": "1"}, "--parallel=2: an idle node can take over for one"),
        (
            {"algorithm": "snake", "parallel": 2, "carry_optimizer_state": True},
            "--parallel=2: side by side there is no",
        ),
        ({"algorithm": "random_walking_snakes", "snake_length": 4}, "there are 3 nodes and 4 layers"),
        ({"algorithm": "random_walking_snakes", "snake_length": 5, "nodes": 9}, "there are 9 nodes and 4 layers"),
        ({"algorithm": "random_walking_snakes", "nodes": 2}, "--snake_length=3: a snake needs a node and a layer"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        prepared(**flags)
