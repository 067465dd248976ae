"""Methods with code and memory at the nodes, against their papers' algorithms written out here."""

import jax
import jax.numpy as jnp
import optax
import pytest

from snake_jax.config import ImageConfig
from snake_jax.data.images.dataset import normalise
from snake_jax.errors import UserError
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
