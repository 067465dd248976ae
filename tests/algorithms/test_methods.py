"""The methods of the comparison against each other: those that must coincide do."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snake_jax.algorithms.proximal import proximal_client
from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig
from snake_jax.engines.contract import run_visits
from snake_jax.params import without
from snake_jax.runs import loop
from snake_jax.training.image_step import local_epoch
from tests.helpers import (
    batches,
    close,
    random_examples,
    same_bits,
    small_model,
    small_step,
    states_for,
)
from tests.method_runs import NAMES, final, images, kept, prepared, run  # noqa: F401  (images is a fixture)
from tests.sweeps import sweep


@pytest.mark.parametrize(
    ("cut", "tail"), sweep([(1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1)], quick=[(2, 0), (1, 1)])
)
def test_split_learning_is_sequential_training_wherever_the_cuts_are(cut, tail):
    whole = final(algorithm="sequential", clip_norm=0.0, distill="off")
    assert close(final(algorithm="split", cut=str(cut), tail=tail, clip_norm=0.0), whole)


def test_so_it_is_with_dropout_and_other_rules_and_a_carried_state():
    flags = {
        "dropout": 0.3,
        "optimizer": "rmsprop",
        "learning_rate": 0.002,
        "carry_optimizer_state": True,
    }
    whole = final(algorithm="sequential", clip_norm=0.0, distill="off", **flags)
    assert close(final(algorithm="split", cut="fc1", clip_norm=0.0, **flags), whole)


def test_a_cut_can_be_named_by_the_last_layer_of_the_node():
    assert (
        prepared(algorithm="split", cut="fc3").chain == prepared(algorithm="split", cut="3").chain
    )


@pytest.mark.parametrize("tail", sweep([0, 1], quick=[1]))
def test_splitfed_with_one_node_is_split_learning(tail):
    flags = {"nodes": 1, "tail": tail, "local_epochs": 2}
    alone = final(algorithm="split", **flags)
    assert same_bits(final(algorithm="splitfed", **flags), alone)
    second = final(algorithm="splitfed", splitfed_version="v2", **flags)
    held = ("fc1", "fc2", "fc4")[: 2 + tail]
    # The node's part is examples * w / examples, which rounds once up and once down; the second
    # cycle starts from it.
    after_first = [run(algorithm=a, **f, **flags)[0].state.params for a, f in V2_AND_SPLIT]
    assert same_bits(*(without(params, held) for params in after_first))
    assert close(*after_first, rtol=2**-22, atol=0.0)
    assert close(second, alone)


V2_AND_SPLIT = (("splitfed", {"splitfed_version": "v2"}), ("split", {}))


@pytest.mark.parametrize(
    "changes",
    sweep(
        [{}, {"partition": "dirichlet_split", "alpha": 0.5}, {"nodes_per_round": 2}],
        quick=[{"partition": "dirichlet_split", "alpha": 0.5}],
    ),
)
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
    setup, executor, state, reports = kept(tuple(sorted(flags.items())))
    order = [report.record["node"] for report in reports]
    assert sorted(order) == [0, 1, 2]
    params, parts = state.params, []
    for turn, node in enumerate(order):
        (result,) = run_visits(
            executor, [Visit(turn, 0, node, NAMES)], params, {}, setup.config.learning_rate
        )
        params = {**params, **without(result.layers, ("fc1", "fc2"))}
        parts.append((len(setup.data.shards[node]), without(result.layers, ("fc3", "fc4"))))
        if turn < 2:
            assert same_bits(reports[turn].state.params, params), (
                "the nodes' parts wait for the end of the cycle"
            )
    held = sum(n for n, _ in parts)
    mean = jax.tree.map(
        lambda *w: sum(n / held * np.float64(x) for (n, _), x in zip(parts, w, strict=True)),
        *(p for _, p in parts),
    )
    assert same_bits(
        without(reports[-1].state.params, ("fc1", "fc2")), without(params, ("fc1", "fc2"))
    )
    assert close(without(reports[-1].state.params, ("fc3", "fc4")), mean)
    assert len({n for n, _ in parts}) > 1


def test_splitfed_v2_takes_the_nodes_in_a_new_order_every_cycle():
    setup = prepared(algorithm="splitfed", splitfed_version="v2", nodes=9, cycles=3)
    visits = [visit for (visit,) in loop.planned(setup)]
    orders = []
    for cycle in range(3):
        orders.append([visit.node for visit in visits if visit.cycle == cycle])
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [r[0].turn for r in loop.planned(setup)] == list(range(27))


def test_random_walking_snakes_of_length_one_are_sequential_training_in_the_same_order():
    snakes = final(algorithm="random_walking_snakes", snake_length=1)
    assert same_bits(snakes, final(algorithm="sequential", shuffle_nodes=True, distill="off"))
    assert not same_bits(snakes, final(algorithm="sequential", distill="off"))


@pytest.mark.parametrize("length", sweep([2, 3], quick=[3]))
def test_longer_snakes_train_the_same_where_nothing_is_clipped(length):
    snakes = final(algorithm="random_walking_snakes", snake_length=length, clip_norm=0.0)
    assert close(snakes, final(algorithm="random_walking_snakes", snake_length=1, clip_norm=0.0))


def test_a_snake_walks_over_other_nodes_whose_order_is_new_every_cycle():
    setup = prepared(algorithm="random_walking_snakes", nodes=8, cycles=4, snake_length=3)
    visits = [visit for (visit,) in loop.planned(setup)]
    assert [v.turn for v in visits] == list(range(32))
    heads = []
    for cycle in range(4):
        heads.append(tuple(visit.node for visit in visits if visit.cycle == cycle))
    assert all(sorted(order) == list(range(8)) for order in heads)
    assert len(set(heads)) == 4
    assert all(len({v.node, *v.others}) == 3 for v in visits)
    assert all(
        after.others == (before.node, before.others[0]) for before, after in pairwise(visits[:8])
    )
    assert [(s.start, s.stop) for s in setup.chain] == [(0, 2), (2, 3), (3, 4)]


def test_a_snake_of_one_node_at_a_time_is_the_paper_s():
    visits = loop.planned(prepared(algorithm="snake", parallel=1, cycles=3))
    assert [len(visit) for visit in visits] == [1] * 6
    assert [visit[0].node for visit in visits] == [0, 1, 2, 0, 1, 2]
    assert same_bits(final(algorithm="snake", parallel=1), final(algorithm="snake"))


def test_a_parallel_visit_is_the_mean_of_its_nodes_visits_by_examples():
    flags = {
        "algorithm": "snake",
        "parallel": 2,
        "partition": "dirichlet_split",
        "alpha": 0.5,
        "distill": "off",
    }
    setup, executor, state, reports = kept(tuple(sorted(flags.items())))
    nodes = [report.record["node"] for report in reports]
    assert nodes == [[0, 1], [2, 0], [1, 2], [0, 1]]
    params = state.params
    for turn, report in enumerate(reports):
        rate, layers = report.record["learning_rate"], tuple(report.record["layers"])
        visits = [Visit(turn, turn // 2, node, layers) for node in nodes[turn]]
        alone = [run_visits(executor, [visit], params, {}, rate)[0].layers for visit in visits]
        sizes = [len(setup.data.shards[node]) for node in nodes[turn]]
        mean = jax.tree.map(
            lambda *w, n=sizes: sum(k * np.float64(x) for k, x in zip(n, w, strict=True)) / sum(n),
            *alone,
        )
        assert close(report.state.params, {**params, **mean})
        assert len(set(sizes)) == 2
        params = report.state.params


def test_accelerated_fl_averages_the_nodes_parts_the_heads_and_the_servers_copies():
    flags = {
        "algorithm": "accelerated_fl",
        "cycles": 1,
        "partition": "dirichlet_split",
        "alpha": 0.5,
    }
    setup, executor, state, (report,) = kept(tuple(sorted(flags.items())))
    visits = [Visit(0, 0, node, (*NAMES, "auxiliary")) for node in range(3)]
    alone = [
        run_visits(executor, [visit], state.params, {}, setup.config.learning_rate)[0].layers
        for visit in visits
    ]
    shares = np.array([len(shard) for shard in setup.data.shards]) / 90
    mean = jax.tree.map(
        lambda *w: sum(s * np.float64(x) for s, x in zip(shares, w, strict=True)), *alone
    )
    assert report.state.params.keys() == {*NAMES, "auxiliary"}
    assert close(report.state.params, mean)


def test_accelerated_fl_learns():
    reports = run(algorithm="accelerated_fl", cycles=12, learning_rate=0.1)
    assert reports[-1].record["accuracy"] > 0.6


def test_each_party_of_a_cut_model_clips_apart():
    def parties(**flags):
        return loop.make_engine(prepared(**flags))._step.parties

    assert parties(algorithm="split", cut="1") == (("fc1",), ("fc2", "fc3", "fc4"))
    assert parties(algorithm="split", cut="1", tail=1) == (("fc1", "fc4"), ("fc2", "fc3"))
    assert parties(algorithm="splitfed") == (("fc1", "fc2"), ("fc3", "fc4"))
    assert parties(algorithm="accelerated_fl") == (("fc1", "fc2", "auxiliary"), ("fc3", "fc4"))
    assert parties(algorithm="random_walking_snakes") == (("fc1", "fc2"), ("fc3",), ("fc4",))
    assert (
        parties(algorithm="random_walking_snakes", snake_length=1)
        == parties(algorithm="fedavg")
        == ()
    )
    assert not close(
        final(algorithm="split", clip_norm=0.05),
        final(algorithm="sequential", clip_norm=0.05, distill="off"),
    )


# FedProx


def test_without_a_proximal_term_fedavg_keeps_nothing_it_received():
    assert same_bits(final(algorithm="fedavg", proximal=0.0), final(algorithm="fedavg"))
    assert not loop.make_engine(prepared(algorithm="fedavg", proximal=0.0))._step.needs_received
    assert loop.make_engine(prepared(algorithm="fedavg", proximal=0.1))._step.needs_received


def test_a_proximal_step_descends_fedprox_s_objective():
    model, params = small_model("mlp")
    examples, rate, mu = random_examples(12), 0.1, 0.7
    step = small_step(
        model, rule=optax.identity(), client=proximal_client(ImageConfig(proximal=mu))
    )
    rows = batches([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    epoch = jax.jit(local_epoch(step, model.layer_names))
    found, *_ = epoch(
        params, states_for(step, params), {}, params, examples, rows, jax.random.key(0), rate
    )

    def objective(w, start):
        x = jax.lax.dynamic_slice_in_dim(step.normalise(examples.images), start, 4)
        labels = jax.lax.dynamic_slice_in_dim(examples.labels, start, 4)
        task = -jnp.take_along_axis(
            jax.nn.log_softmax(model.apply(w, x)), labels[:, None], 1
        ).mean()
        away = sum(
            ((a - b) ** 2).sum()
            for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(params), strict=True)
        )
        return task + mu / 2 * away

    descend, w = jax.jit(jax.grad(objective)), params
    for start in (0, 4, 8):
        w = jax.tree.map(lambda a, g: a - rate * g, w, descend(w, start))
    assert close(found, {name: w[name] for name in found})


def test_a_large_proximal_term_keeps_the_weights_near_what_was_received():
    flags = {
        "algorithm": "fedavg",
        "cycles": 1,
        "momentum": 0.0,
        "clip_norm": 0.0,
        "local_epochs": 5,
    }
    rate = 0.02
    _, _, state, _ = kept(tuple(sorted(flags.items())))

    def moved(mu):
        away = jax.tree.map(
            lambda a, b: ((a - b) ** 2).sum(), final(**flags, proximal=mu), state.params
        )
        return float(sum(jax.tree.leaves(away))) ** 0.5

    distances = [moved(mu) for mu in (0.0, 1.0, 10.0, 1 / rate)]
    assert distances == sorted(distances, reverse=True)
    # With mu = 1/rate a step forgets where the last one led: twenty of them lead no further than
    # one.
    assert distances[-1] < distances[0] / 5


def test_snake_learning_takes_a_proximal_term_on_the_layers_it_trains():
    free, held = (run(algorithm="snake", proximal=mu)[0].state.params for mu in (0.0, 5.0))
    assert same_bits(free["fc3"], held["fc3"])
    assert not same_bits(free["fc2"], held["fc2"])
