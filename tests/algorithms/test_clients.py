"""Methods with code and memory at the nodes, against their papers' algorithms written out here."""

import jax
import jax.numpy as jnp
import optax
import pytest

from snake_jax.algorithms.base import planned_rounds
from snake_jax.config import ImageConfig
from snake_jax.data.images.dataset import normalise
from snake_jax.engines.contract import run_visits
from snake_jax.errors import UserError
from snake_jax.params import num_bytes
from snake_jax.runs import loop
from snake_jax.runs.workdir import Workdir
from tests.helpers import close, same_bits
from tests.launches import json_lines, write_images

# A step sees all that a node has.
PLAIN = {
    "model": "mlp",
    "width": 0.25,
    "nodes": 3,
    "cycles": 3,
    "local_epochs": 2,
    "batch_size": 1000,
    "momentum": 0.0,
    "clip_norm": 0.0,
    "learning_rate": 0.05,
    "lr_schedule": "constant",
    "partition": "dirichlet_split",
    "alpha": 0.5,
    "eval_every": 100,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**PLAIN, "dataset": f"npz:{images}"}


def run(plain, **flags):
    setup = loop.prepare(ImageConfig(**{**plain, **flags}))
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    return setup, list(loop.train(setup, engine, state, lambda state: None))


def gradient_of(setup, node):
    """Gradient of the mean loss over all that a node holds, written without the project's step."""
    dataset = setup.data.dataset
    shard = setup.data.shards[node]
    x = normalise(dataset.train.images[shard], dataset.mean, dataset.std)
    labels = jnp.asarray(dataset.train.labels[shard])

    def loss(params):
        logits = setup.model.apply(params, x, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.jit(jax.grad(loss))


def added(*terms):
    """The sum of trees, each given with its factor."""
    total = None
    for factor, tree in terms:
        part = jax.tree.map(lambda w, factor=factor: factor * w, tree)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total


def test_scaffold_is_algorithm_1_of_its_paper(plain):
    setup, reports = run(plain, algorithm="scaffold")
    config, nodes = setup.config, range(3)
    gradients = [gradient_of(setup, node) for node in nodes]
    x = loop.initial_state(setup).params
    c = jax.tree.map(jnp.zeros_like, x)
    own = [c, c, c]
    for report in reports:
        ends, changes = [], []
        for node in nodes:
            y = x
            for _ in range(config.local_epochs):
                step = added((1, gradients[node](y)), (-1, own[node]), (1, c))
                y = added((1, y), (-config.learning_rate, step))
            per_step = 1 / (config.local_epochs * config.learning_rate)
            new = added((1, own[node]), (-1, c), (per_step, x), (-per_step, y))
            ends.append(y)
            changes.append(added((1, new), (-1, own[node])))
            own[node] = new
        x = added(*((1 / 3, y) for y in ends))
        c = added((1, c), *((1 / 3, change) for change in changes))
        assert close(report.state.params, x)
        # Control variates are weights over K eta, and so are their rounding errors.
        rounding = 1e-6 * per_step
        assert close(report.state.memory, c, atol=rounding)
        for node in nodes:
            assert close(report.state.nodes[node], own[node], atol=rounding)
    assert max(float(jnp.abs(w).max()) for w in jax.tree.leaves(c)) > 1e-3


def test_fedprox_pulls_every_step_towards_what_was_received(plain):
    mu = 0.5
    setup, reports = run(plain, algorithm="fedprox", proximal=mu, cycles=1)
    received = loop.initial_state(setup).params
    ends, held = [], []
    for node in range(3):
        y, gradient = received, gradient_of(setup, node)
        for _ in range(setup.config.local_epochs):
            step = added((1, gradient(y)), (mu, y), (-mu, received))
            y = added((1, y), (-setup.config.learning_rate, step))
        ends.append(y)
        held.append(len(setup.data.shards[node]))
    mean = added(*((count / sum(held), y) for count, y in zip(held, ends, strict=True)))
    assert close(reports[0].state.params, mean)


def test_fedprox_is_fedavg_with_its_term(plain):
    _, prox = run(plain, algorithm="fedprox", proximal=0.5, cycles=1)
    _, average = run(plain, algorithm="fedavg", proximal=0.5, cycles=1)
    _, without = run(plain, algorithm="fedavg", cycles=1)
    assert same_bits(prox[-1].state.params, average[-1].state.params)
    assert not same_bits(prox[-1].state.params, without[-1].state.params)


@pytest.mark.parametrize("executor", ["vmap", "pmap", "shard_map"])
def test_scaffold_is_the_same_however_nodes_are_emulated(plain, executor):
    one = run(plain, algorithm="scaffold")[1][-1].state
    other = run(plain, algorithm="scaffold", executor=executor)[1][-1].state
    assert close(one.params, other.params)
    assert close(one.memory, other.memory, atol=1e-5)
    assert close(one.nodes, other.nodes, atol=1e-5)


def test_control_variates_travel_beside_the_weights(plain):
    _, average = run(plain, algorithm="fedavg", cycles=2)
    setup, scaffold = run(plain, algorithm="scaffold", cycles=2)
    for ours, theirs in zip(scaffold, average, strict=True):
        assert ours.record["bytes_up"] == 2 * theirs.record["bytes_up"]
        assert ours.record["bytes_down"] == 2 * theirs.record["bytes_down"]
    items = set()
    for transfer in scaffold[0].transfers:
        items.update(transfer.layers)
    names = setup.model.layer_names
    assert items == {*names, *(f"{name}/control" for name in names)}


def test_what_nodes_remember_is_kept_over_a_kill(plain, tmp_path):
    config = ImageConfig(**plain, algorithm="scaffold", nodes_per_round=2)
    setup = loop.prepare(config)
    unbroken = run(plain, algorithm="scaffold", nodes_per_round=2)[1][-1].state
    workdir = Workdir(tmp_path / "run", config)
    engine = loop.make_engine(setup)
    for report in loop.train(setup, engine, workdir.resume(setup, pytest.fail), print):
        workdir.add(report, engine.compilations)
        break
    workdir.close()
    workdir = Workdir(tmp_path / "run", config)
    state = workdir.resume(setup, pytest.fail)
    workdir.close()
    assert len(state.nodes) == 2
    *_, last = loop.train(setup, loop.make_engine(setup), state, print)
    assert same_bits(last.state.params, unbroken.params)
    assert same_bits(last.state.nodes, unbroken.nodes)
    assert len(json_lines(tmp_path / "run" / "metrics.jsonl")) == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"algorithm": "scaffold"}, "set --optimizer=sgd --momentum=0 --clip_norm=0"),
        ({"algorithm": "fedprox"}, "set --proximal, as 0.1"),
    ],
)
def test_settings_that_a_method_cannot_work_with_are_refused(flags, line):
    with pytest.raises(UserError, match=line):
        loop.prepare(ImageConfig(model="mlp", **flags))


def test_fednova_counts_every_nodes_change_by_the_step(plain):
    """Nodes of unlike data, so of unlike numbers of steps; the paper's equation 7 written out."""
    flags = {"algorithm": "fednova", "cycles": 1, "batch_size": 20, "momentum": 0.9}
    setup, reports = run(plain, **flags)
    config, received = setup.config, loop.initial_state(setup).params
    outcomes = run_visits(
        loop.make_engine(setup),
        next(setup.algorithm.rounds(setup.plan)),
        received,
        {},
        config.learning_rate,
    )
    steps = [outcome.iterations for outcome in outcomes]
    assert len(set(steps)) > 1
    total = sum(outcome.examples_held for outcome in outcomes)
    shares = [outcome.examples_held / total for outcome in outcomes]
    # |a|_1 step by step: a gradient of step j is in all momentum buffers from j on.
    worths = [sum(0.9**k for j in range(n) for k in range(n - j)) for n in steps]
    effective = sum(p * worth for p, worth in zip(shares, worths, strict=True))
    wanted = received
    for share, worth, outcome in zip(shares, worths, outcomes, strict=True):
        wanted = added(
            (1, wanted),
            (effective * share / worth, outcome.layers),
            (-effective * share / worth, received),
        )
    assert close(reports[0].state.params, wanted)


def test_fednova_with_equal_steps_is_fedavg(plain):
    flags = {"cycles": 2, "momentum": 0.9}
    _, nova = run(plain, algorithm="fednova", **flags)
    _, average = run(plain, algorithm="fedavg", **flags)
    assert close(nova[-1].state.params, average[-1].state.params)


def test_fednova_refuses_what_is_no_sum_of_gradients(plain):
    with pytest.raises(UserError, match="set --optimizer=sgd --clip_norm=0"):
        run(plain, algorithm="fednova", optimizer="adam")


def test_fedpart_with_all_layers_in_every_round_is_fedavg(plain):
    _, average = run(plain, algorithm="fedavg")
    flags = {"always_train": "all", "full_rounds": 0, "rounds_per_layer": 1}
    _, one = run(plain, algorithm="fedpart", **flags)
    assert same_bits(one[-1].state.params, average[-1].state.params)
    assert [r.record["bytes_up"] for r in one] == [r.record["bytes_up"] for r in average]


def test_fedpart_trains_everything_then_layer_after_layer(plain):
    flags = {"always_train": "none", "full_rounds": 2, "rounds_per_layer": 1, "cycles": 1}
    setup, reports = run(plain, algorithm="fedpart", **flags)
    names = setup.model.layer_names
    assert [tuple(r.record["layers"]) for r in reports] == [names, names] + [(n,) for n in names]
    params = reports[1].state.params
    sizes = {name: num_bytes(params[name]) for name in names}
    for report, name in zip(reports[2:], names, strict=True):
        assert report.record["bytes_up"] == 3 * sizes[name]
        for other in names:
            same = same_bits(params[other], report.state.params[other])
            assert same == (other != name)
        params = report.state.params


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
def test_server_optimizers_are_algorithm_2_of_their_paper(kind, plain):
    flags = {"server_momentum": 0.8, "server_learning_rate": 0.05, "server_tau": 0.01}
    setup, reports = run(plain, algorithm="fedavg", server_optimizer=kind, **flags)
    x = loop.initial_state(setup).params
    engine = loop.make_engine(setup)
    m, v = added((0, x)), jax.tree.map(lambda w: jnp.full_like(w, 1e-4), x)
    for report, visits in zip(reports, planned_rounds(setup.algorithm, setup.plan), strict=True):
        outcomes = run_visits(engine, visits, x, {}, setup.config.learning_rate)
        total = sum(outcome.examples_held for outcome in outcomes)
        mean = added(*((o.examples_held / total, o.layers) for o in outcomes))
        delta = added((1, mean), (-1, x))
        m = added((0.8, m), (0.2, delta))
        squared = jax.tree.map(jnp.square, delta)
        if kind == "adagrad":
            v = added((1, v), (1, squared))
        elif kind == "adam":
            v = added((0.99, v), (0.01, squared))
        else:
            sign = jax.tree.map(lambda v, s: jnp.sign(v - s) * s, v, squared)
            v = added((1, v), (-0.01, sign))
        way = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 0.01), m, v)
        x = added((1, x), (0.05, way))
        assert close(report.state.params, x, rtol=1e-4, atol=1e-5)
        x = report.state.params


def test_the_servers_rate_scales_the_step_to_the_mean(plain):
    _, whole = run(plain, algorithm="fedavg", cycles=1)
    setup, half = run(plain, algorithm="fedavg", cycles=1, server_learning_rate=0.5)
    start = loop.initial_state(setup).params
    wanted = added((0.5, start), (0.5, whole[0].state.params))
    assert close(half[0].state.params, wanted)
