"""The front door: one's own model, arrays and method, kept and gone on with as a launch's run."""

import pickle

import flax.linen as nn
import jax
import numpy as np
import pytest

from snake_jax.algorithms.base import REPLACE, Algorithm, every_cycle
from snake_jax.algorithms.schedule import relay
from snake_jax.algorithms.traffic import RELAY
from snake_jax.config import TextConfig
from snake_jax.errors import UserError
from snake_jax.models.adapter import from_linen
from snake_jax.report.runs import read_run
from snake_jax.runs import loop
from snake_jax.runs.front import Job, image_data, train
from tests.helpers import same_bits
from tests.launches import write_images

SHAPE = (4, 4, 3)
SETTINGS = {"nodes": 3, "cycles": 2, "batch_size": 8, "learning_rate": 0.05, "eval_every": 2}


class Flat(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))


class Classes(nn.Module):
    count: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.count)(x)


MODEL = from_linen("own", [("stem", Flat(8)), ("middle", Flat(8)), ("head", Classes(4))], SHAPE)


def backwards(plan, cycle):
    """One layer a visit, from the last one down."""
    assignments = [(name,) for name in reversed(plan.layer_names)]
    return relay(plan, cycle, assignments)


OWN = Algorithm(name="backwards", rounds=every_cycle(backwards), traffic=RELAY, merge=REPLACE)


def arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 64, (count, *SHAPE)) + 48 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def whole_run(algorithm, workdir="", **settings):
    job = Job(MODEL, algorithm, **{**SETTINGS, **settings})
    data = image_data(job, train=arrays(60), test=arrays(20, seed=1))
    return list(train(job, data, workdir))


@pytest.mark.parametrize("algorithm", ["snake", "fedavg", OWN], ids=["snake", "fedavg", "own"])
def test_ones_own_model_arrays_and_method_train(algorithm):
    reports = whole_run(algorithm)
    assert len(reports) == {"snake": 2, "fedavg": 2}.get(algorithm, 6)
    first, last = reports[0].record, reports[-1].record
    assert last["loss"] < first["loss"]
    assert last["accuracy"] is not None


def test_ones_own_method_trains_what_it_says():
    reports = whole_run(OWN, cycles=1)
    assert [report.record["layers"] for report in reports] == [["head"], ["middle"], ["stem"]]


def test_a_run_goes_on_where_it_was_left_and_ends_with_the_same_bits(tmp_path):
    unbroken = whole_run(OWN)
    job = Job(MODEL, OWN, **SETTINGS)
    data = image_data(job, train=arrays(60), test=arrays(20, seed=1))
    for number, _ in enumerate(train(job, data, tmp_path / "run")):
        if number == 2:
            break
    rest = list(train(job, data, tmp_path / "run"))
    assert [report.record["visit"] for report in rest] == [3, 4, 5]
    assert same_bits(rest[-1].state.params, unbroken[-1].state.params)
    assert [*train(job, data, tmp_path / "run")] == []


def test_its_folder_reads_as_that_of_a_launch(tmp_path):
    whole_run(OWN, tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert len(run.metrics) == 6
    assert run.summary["algorithm"] == "backwards"
    assert run.summary["model"] == "own"
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "ledger.jsonl", "summary.json"} <= files


def test_other_arrays_do_not_go_on_with_a_run(tmp_path):
    whole_run("snake", tmp_path / "run")
    job = Job(MODEL, "snake", **SETTINGS)
    data = image_data(job, train=arrays(60, seed=5), test=arrays(20, seed=1))
    with pytest.raises(UserError, match=r"other flags: --dataset=arrays:\w+ \(here arrays:\w+\)"):
        list(train(job, data, tmp_path / "run"))


def test_settings_without_use_and_unsound_arrays_are_refused():
    with pytest.raises(UserError, match="fedavg has no use for it"):
        Job(MODEL, "fedavg", order="reverse")
    with pytest.raises(UserError, match="not one of snake"):
        Job(MODEL, "snail")
    job = Job(MODEL, "snake", **SETTINGS)
    images, labels = arrays(60)
    with pytest.raises(UserError, match="training images are uint8"):
        image_data(job, train=(images.transpose(0, 3, 1, 2), labels), test=(images, labels))


def leaves_of(tree):
    """All that a tree of tuples, dicts and dataclasses holds."""
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)


@pytest.mark.parametrize("kind", ["images", "text"])
def test_a_job_holds_no_arrays_and_can_be_sent(kind, tmp_path):
    if kind == "images":
        images = write_images(tmp_path / "images.npz")
        job = loop.prepare(loop.ImageConfig(model="mlp", dataset=f"npz:{images}", nodes=3)).job
    else:
        job = loop.prepare(TextConfig(lora_rank=2, limit=30)).job
    assert not any(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves_of(job))
    again = pickle.loads(pickle.dumps(job))
    assert again.config == job.config
    assert again.plan == job.plan
    assert again.layer_names == job.layer_names
    assert str(again.task.like(again)) == str(job.task.like(job))
