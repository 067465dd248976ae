"""The learning rate within a visit: what its steps are multiplied by, for images and for text."""

import jax
import numpy as np
import pytest

from snake_jax.algorithms.visits import Visit
from snake_jax.config import TextConfig
from snake_jax.engines.build import image_engine
from snake_jax.engines.contract import run_visits
from snake_jax.engines.epochs import VisitSettings, rate_factors
from snake_jax.runs import loop
from snake_jax.runs.job import make_rule
from snake_jax.training.update import Client
from tests.helpers import close, random_examples, same_bits, small_model, small_step
from tests.launches import write_model, write_pairs
from tests.sweeps import sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")
SETTINGS = VisitSettings(2, 4, "float32", 0.0, 7)
WARM = SETTINGS._replace(warmup_steps=3, lr_in_visit="linear")
TRAINED = ("fc2", "fc4")


def test_the_factors_rise_and_fall_as_counted_by_hand():
    linear = SETTINGS._replace(warmup_steps=2, lr_in_visit="linear")
    assert rate_factors(linear, 0, 6, 6).tolist() == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rate_factors(linear, 3, 2, 6).tolist() == [0.75, 0.5]
    cosine = SETTINGS._replace(lr_in_visit="cosine")
    np.testing.assert_allclose(rate_factors(cosine, 0, 3, 3), [1, 0.75, 0.25], atol=1e-7)
    # A visit that is shorter than its warm-up never gets there.
    longer = SETTINGS._replace(warmup_steps=4)
    assert rate_factors(longer, 0, 2, 2).tolist() == [0.25, 0.5]
    assert rate_factors(SETTINGS, 0, 2, 2).tolist() == [1.0, 1.0]


def engine(settings, emulation="loop", **step):
    model, params = small_model("mlp")
    made = small_step(model, **step)._replace(rule=make_rule(TextConfig(optimizer="sgd")))
    shards = [np.arange(10), np.arange(10, 31)]
    train, test = random_examples(31), random_examples(4, seed=1)
    return image_engine(made, train, test, shards, settings, emulation), params


def visit(settings, shares=((0.0, 1.0),), node=0, **step):
    """What a node's visit, in so many parts, trains."""
    made, params = engine(settings, **step)
    for share in shares:
        (done,) = run_visits(made, [Visit(3, 1, node, TRAINED, share)], params, {}, 0.05)
        params = params | done.layers
    return done, params


def test_a_step_of_a_warm_up_moves_as_far_as_its_factor_says():
    one_step = SETTINGS._replace(local_epochs=1, batch_size=10)
    _, start = engine(one_step)
    _, whole = visit(one_step)
    _, quarter = visit(one_step._replace(warmup_steps=4))
    far = jax.tree.map(lambda new, old: 0.25 * (new - old), whole["fc2"], start["fc2"])
    near = jax.tree.map(np.subtract, quarter["fc2"], start["fc2"])
    assert close(near, far)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(near)) > 1e-4


def test_who_goes_on_with_a_visit_goes_on_with_its_rates():
    _, whole = visit(WARM)
    _, parts = visit(WARM, ((0.0, 0.5), (0.5, 1.0)))
    _, plain = visit(SETTINGS)
    assert close(parts, whole)
    assert not close(plain, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("emulation", sweep(["vmap", "pmap", "shard_map"], quick=["vmap"]))
def test_nodes_side_by_side_have_rates_of_their_own(emulation):
    visits = [Visit(3, 1, node, TRAINED) for node in range(2)]
    made, params = engine(WARM, emulation)
    together = run_visits(made, visits, params, {}, 0.05)
    for done in together:
        alone, _ = visit(WARM, node=done.visit.node)
        assert close(done.layers, alone.layers, rtol=1e-4, atol=1e-5)


def test_a_node_of_other_epochs_falls_to_zero_at_its_own_last_step():
    # Node 0 passes its ten examples once, not twice: three steps of a visit.
    once = WARM._replace(node_epochs=(1, 2), warmup_steps=0)
    _, alone = visit(once)
    _, same = visit(once._replace(node_epochs=(), local_epochs=1))
    assert same_bits(alone, same)


def test_a_client_is_told_the_mean_rate():
    def finish(memory, shared, received, trained, steps, learning_rate):
        return memory, (steps, learning_rate)

    client = Client(lambda params: {}, lambda *_: {}, lambda g, *_: g, finish, False)
    done, _ = visit(WARM, client=client)
    # Ten examples in batches of four, twice: six steps, the rate of three of them rises.
    factors = [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]
    assert done.report == (6, pytest.approx(0.05 * np.mean(factors)))


@pytest.mark.parametrize("executor", sweep(["loop", "vmap"], quick=["loop"]))
def test_text_trains_at_the_same_rates(executor, tmp_path):
    """One step of a visit, alone and beside another node's."""
    files = {
        "model": str(write_model(tmp_path / "model")),
        "data": str(write_pairs(tmp_path / "pairs.jsonl")),
    }
    flags = {"max_length": 64, "nodes": 2, "batch_size": 32, "lora_rank": 0, "optimizer": "sgd"}
    flags["learning_rate"] = 1.0
    flags |= {"algorithm": "fedavg", **files}

    def change(**more):
        setup = loop.prepare(TextConfig(**flags, **more))
        state = loop.initial_state(setup)
        (report,) = loop.train(setup, loop.make_engine(setup), state, lambda state: None)
        return jax.tree.map(np.subtract, report.state.params, state.params)["block_01"]

    whole = change()
    quarter = jax.tree.map(lambda w: 0.25 * w, whole)
    warm = change(warmup_steps=4, executor=executor)
    assert close(warm, quarter, rtol=1e-3, atol=1e-7)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(quarter)) > 1e-4
