"""The model on what each node has held out of its own data: whose examples, and what is said."""

import math

import numpy as np
import pytest

from snake_jax.config import ImageConfig, TextConfig
from snake_jax.data.images.dataset import normalise
from snake_jax.data.node_hold_out import held_out
from snake_jax.engines.choice import Choice, check
from snake_jax.engines.contract import Scores
from snake_jax.errors import UserError
from snake_jax.report import columns, rows
from snake_jax.report.runs import Run
from snake_jax.runs import loop, records
from tests.launches import write_images, write_model, write_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Setup and reports of a short run of FedAvg on unlike nodes that hold a fifth out."""
    file = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    small = {"model": "mlp", "width": 0.25, "nodes": 4, "cycles": 2, "batch_size": 8, "seed": 3}
    split = {"partition": "dirichlet_split", "alpha": 0.7, "evaluate_nodes": 0.2, "eval_every": 2}
    config = ImageConfig(algorithm="fedavg", dataset=f"npz:{file}", **small, **split)
    setup = loop.prepare(config)
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    return setup, list(loop.train(setup, engine, state, lambda state: None))


def test_nodes_hold_out_their_own_and_train_on_the_rest(images):
    setup, reports = images
    plain = loop.prepare(ImageConfig(**{**vars(setup.config), "evaluate_nodes": 0.0}))
    for own, rest, every in zip(setup.data.own, setup.data.shards, plain.data.shards, strict=True):
        assert sorted([*own, *rest]) == sorted(every)
        assert len(own) == max(round(0.2 * len(every)), 1)
    assert plain.data.own == []
    seen = sum(report.record["examples"] for report in reports)
    assert seen == 2 * sum(map(len, setup.data.shards)) < 2 * 90


def test_a_node_s_score_is_that_of_its_own_examples(images):
    setup, (first, last) = images
    assert not [name for name in first.record if name.startswith("node_accuracy")]
    data, params = setup.data.dataset, last.state.params
    wanted = []
    for own in setup.data.own:
        x = normalise(data.train.images[own], data.mean, data.std)
        hits = setup.model.apply(params, x).argmax(-1) == data.train.labels[own]
        wanted.append(float(np.mean(hits)))
    assert last.record["node_accuracy"] == pytest.approx(wanted)
    assert len(set(wanted)) > 1
    assert last.record["node_accuracy_mean"] == pytest.approx(np.mean(wanted))
    assert last.record["node_accuracy_worst_tenth"] == pytest.approx(min(wanted))
    assert last.record["node_accuracy_spread"] == pytest.approx(np.std(wanted))
    # The global figure stands beside them, on the test data.
    assert last.record["accuracy"] not in (None, last.record["node_accuracy_mean"])


def test_tables_and_the_page_say_it_where_it_was_measured(images, tmp_path):
    _, reports = images
    lines = [report.record for report in reports]
    run = Run(tmp_path, {"algorithm": "fedavg"}, lines, None, "mine")
    without = [{k: v for k, v in line.items() if "node_" not in k} for line in lines]
    labels = [row.label for _, group in rows.groups([run]) for row in group]
    assert "worst tenth of nodes" in labels
    assert "accuracy worst tenth of nodes" in [c.label for c in columns.columns_of([run])]
    bare = run._replace(metrics=without)
    assert "worst tenth of nodes" not in [r.label for _, g in rows.groups([bare]) for r in g]


def test_the_worst_tenth_of_perplexities_is_the_largest():
    nodes = tuple(Scores(0.5, math.log(value)) for value in range(1, 21))
    scores = Scores(0.5, 1.0, (*nodes, None))
    found = records.of_nodes(scores, "perplexity", lambda one: math.exp(one.loss))
    assert found["node_perplexity_worst_tenth"] == pytest.approx(19.5)
    assert found["node_perplexity"][-1] is None
    assert found["node_perplexity_mean"] == pytest.approx(10.5)
    assert records.of_nodes(Scores(0.5, 1.0), "accuracy", lambda s: s.accuracy) == {}


def test_of_text_a_node_s_perplexity_is_of_its_own_rows(tmp_path):
    model, pairs = write_model(tmp_path / "model"), write_pairs(tmp_path / "pairs.jsonl")
    flags = {"model": str(model), "data": str(pairs), "max_length": 64, "nodes": 2, "lora_rank": 2}
    setup = loop.prepare(TextConfig(**flags, batch_size=4, evaluate_nodes=0.3, cycles=1))
    own = [sum(map(len, shard.values())) for shard in setup.data.own]
    assert min(own) >= 1
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    scores = engine.evaluate(state.params)
    assert len(scores.nodes) == 2
    # The same rows as the test data of another engine.
    data = setup.data
    for node, shard in enumerate(data.own):
        test = {}
        for length, numbers in shard.items():
            every = data.rows.train.rows[length]
            test[length] = type(every)(*(part[numbers] for part in every))
        other = setup._replace(data=data._replace(rows=data.rows._replace(test=test), own=()))
        alone = loop.make_engine(other).evaluate(state.params)
        assert alone[:2] == pytest.approx(scores.nodes[node][:2])


def test_what_is_held_out_follows_seed_and_node_and_leaves_one_to_train_on():
    one, again, other = held_out(50, 0.2, 1, 0), held_out(50, 0.2, 1, 0), held_out(50, 0.2, 1, 1)
    assert one.sum() == other.sum() == 10
    assert (one == again).all()
    assert (one != other).any()
    assert [int(held_out(count, 0.5, 0, 0).sum()) for count in (1, 2, 3)] == [0, 1, 2]
    assert not held_out(50, 0.0, 1, 0).any()


def test_nodes_that_are_processes_are_not_asked_to_score():
    with pytest.raises(UserError, match=r"leave --evaluate_nodes=0\.1 out"):
        check(Choice("ray"), ImageConfig(evaluate_nodes=0.1))
