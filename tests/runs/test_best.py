"""The best evaluated model is kept, whatever comes after it and whenever the run is killed."""

import json
import shutil

import pytest

from snake_jax.config import ImageConfig, TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import best, front, loop
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import write_images


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    """A run that is best in the middle: its rate grows until it forgets."""
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    flags = {"model": "mlp", "width": 0.25, "nodes": 2, "batch_size": 8, "algorithm": "fedavg"}
    flags |= {"cycles": 6, "learning_rate": 0.05, "lr_decay": 4.0, "save_best": True}
    return loop.prepare(ImageConfig(**flags, dataset=f"npz:{images}"))


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "run"
    return folder, list(front.train(small.job, small.data, folder))


def kept(setup, folder):
    workdir = Workdir(folder, setup.config)
    workdir.resume(setup, pytest.fail)
    found = best.restored(setup, workdir, pytest.fail)
    workdir.close()
    return found


def test_the_best_model_is_kept_and_not_the_last(small, unbroken):
    folder, reports = unbroken
    accuracies = [report.record["accuracy"] for report in reports]
    first = accuracies.index(max(accuracies))
    assert first < len(reports) - 1
    found = kept(small, folder)
    assert found.rounds == first + 1
    assert same_bits(found.params, reports[first].state.params)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_round"] == first + 1


def test_a_kill_between_checkpoint_and_best_loses_nothing(small, unbroken, tmp_path):
    _, reports = unbroken
    rounds = kept(small, unbroken[0]).rounds
    for report in front.train(small.job, small.data, tmp_path):
        if report.state.rounds == rounds:
            break
    # As if the kill had come before it was written: without it, or with that of a round before.
    shutil.rmtree(tmp_path / "best" / str(rounds))
    list(front.train(small.job, small.data, tmp_path))
    found = kept(small, tmp_path)
    assert found.rounds == rounds
    assert same_bits(found.params, reports[rounds - 1].state.params)


def test_a_metric_says_which_is_best():
    lines = [
        {"perplexity": 3.0, "accuracy": 0.5, "exact_match": 0.0},
        {"perplexity": 2.0, "accuracy": 0.4, "exact_match": 0.1},
        {"perplexity": None, "accuracy": None, "exact_match": None},
        {"perplexity": 2.0, "accuracy": 0.6, "exact_match": 0.1},
    ]
    wanted = {"perplexity": 2, "token_accuracy": 4, "exact_match": 2}
    for metric, rounds in wanted.items():
        assert best.best_round(TextConfig(metric=metric), lines) == rounds
    assert best.best_round(ImageConfig(), lines[2:3]) == 0


def test_a_best_model_that_is_gone_is_one_line(small, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    shutil.rmtree(folder / "best")
    with pytest.raises(UserError, match="best holds no model"):
        kept(small, folder)
