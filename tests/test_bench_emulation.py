"""The benchmark of whole rounds: everybody does the same work, and whoever cannot take part is named with a reason."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.bench import contestants, table, work
from tests.launches import ROOT, strict_json

SIZES = ("--nodes=2", "--examples=12", "--batch=8", "--repeats=2", "--cores=1", "--executors=loop")


def benchmark(*flag_list: str) -> subprocess.CompletedProcess:
    """Runs the script as its users do: its flags have the names of other launches' flags."""
    command = [sys.executable, "-m", "experiments.bench.emulation", *SIZES, *flag_list]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def some_work(**changes) -> work.Work:
    rng = np.random.default_rng(0)
    sizes = {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 6), "fc3": (2 * 2 * 6, 5), "fc4": (5, 10)}
    fields = {
        "images": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "labels": np.arange(20, dtype=np.int32) % 10,
        "shards": [np.arange(12), np.arange(12, 20)],
        "mean": np.full(3, 0.5, np.float32),
        "std": np.full(3, 0.25, np.float32),
        "params": {k: (rng.normal(size=s).astype(np.float32), np.zeros(s[-1], np.float32)) for k, s in sizes.items()},
        "batch_size": 8,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "clip_norm": 0.0,
        "seed": 3,
        "rounds": 4,
    }
    return work.Work(**(fields | changes))


def assert_same(params: work.Params, others: work.Params) -> None:
    assert list(params) == list(others)
    for name in params:
        for array, other in zip(params[name], others[name], strict=True):
            np.testing.assert_array_equal(array, other)


def test_work_comes_back_from_its_file(tmp_path):
    made = some_work()
    work.save(made, tmp_path / "work.npz")
    read = work.load(tmp_path / "work.npz")
    assert_same(read.params, made.params)
    for name in ("images", "labels", "mean", "std"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert [list(shard) for shard in read.shards] == [list(shard) for shard in made.shards]
    assert read[6:] == made[6:]


def test_a_round_takes_every_example_of_a_node_once_and_each_round_in_its_own_order():
    task = some_work()
    orders = [task.order(number, 0) for number in range(3)]
    assert [sorted(order) for order in orders] == [list(range(12))] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert task.shares() == [0.6, 0.4]


def test_difference_is_nothing_for_equals_and_one_for_the_untrained():
    start = some_work().params
    trained = {name: (kernel + 1, bias - 2) for name, (kernel, bias) in start.items()}
    assert work.difference(trained, trained, start) == 0
    assert work.difference(start, trained, start) == 1


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")

    def test_parameters_survive_the_way_there_and_back(self):
        from experiments.bench import torch_side

        params = some_work().params
        assert_same(torch_side.from_torch(torch_side.to_torch(params), params), params)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_a_round_is_the_mean_of_what_each_node_alone_ends_with(self, channels_last):
        from experiments.bench import torch_side

        task = some_work()
        start = torch_side.to_torch(task.params)
        mean, done = torch_side.Trainer(task, 1, channels_last).round(1, start)
        assert done[1:] == (2 + 1, 20)
        expected = [np.zeros(tuple(w.shape), np.float32) for w in start]
        for node, share in enumerate(task.shares()):
            trainer = torch_side.Trainer(task, 1, channels_last=False)
            trainer.epoch(1, node)
            expected = [e + share * p.detach().numpy() for e, p in zip(expected, trainer.params, strict=True)]
        for ours, theirs in zip(mean, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("change", [{"seed": 4}, {"momentum": 0.8}, {"batch_size": 7}, {"clip_norm": 0.1}])
    def test_other_work_is_told_apart(self, change):
        from experiments.bench import torch_side

        ended = []
        for task in (some_work(), some_work(**change)):
            weights = torch_side.to_torch(task.params)
            for number in range(work.CHECKED_ROUNDS):
                weights, _ = torch_side.Trainer(task, 1, channels_last=False).round(number, weights)
            ended.append(torch_side.from_torch(weights, task.params))
        assert work.difference(ended[1], ended[0], some_work().params) > 0.02

    def test_ours_and_pytorch_do_the_same_work(self, tmp_path):
        file = tmp_path / "out.json"
        done = benchmark("--contestants=ours,torch", f"--json={file}")
        assert done.returncode == 0, done.stderr
        result = strict_json(file.read_text())
        assert result["work"] | {"parameters": 0} == {
            "model": "cnn",
            "parameters": 0,
            "nodes": 2,
            "examples_per_node": 12,
            "image_shape": [32, 32, 3],
            "dataset": "noise",
            "batch_size": 8,
            "steps": 4,
            "examples": 24,
            "repeats": 2,
        }
        ours, torch = result["contestants"]
        assert (ours["name"], torch["name"], result["ours"]) == ("snake_jax, loop", "PyTorch loop", "snake_jax, loop")
        for row in (ours, torch):
            assert row["same_work"] is True
            assert (row["steps"], row["examples"], row["parameters"]) == (4, 24, result["work"]["parameters"])
            assert len(row["samples_s"]) == 2
            assert row["round_s"]["fastest"] <= row["round_s"]["q1"] <= row["round_s"]["median"] <= row["round_s"]["q3"]
        assert (ours["ratio"], ours["difference"]) == (1, 0)
        assert 0 < torch["difference"] < 0.01
        np.testing.assert_allclose(torch["losses"], ours["losses"], rtol=1e-2)
        assert [goal["met"] is None for goal in result["goals"]] == [False, True]
        assert done.stdout.strip() == table.report(result)


def test_who_cannot_take_part_is_named_with_the_reason(tmp_path):
    missing = contestants.Contestant("flower", "1 CPU a client", sys.executable, {}, {})
    if contestants._importable(sys.executable, "flwr"):
        pytest.skip("flwr is installed")
    missing.start(tmp_path / "work.npz")
    missing.round()
    missing.close()
    assert missing.missing == "flwr: not installed (pip install 'flwr[simulation]')"
    row = {"name": missing.name, "kind": "flower", "missing": missing.missing}
    assert table._row(row) == "Flower simulation, 1 CPU a client   flwr: not installed (pip install 'flwr[simulation]')"


def test_who_fails_is_named_with_its_last_words(tmp_path):
    failing = contestants.Contestant("ours", "loop", sys.executable, {"config": {}}, {})
    failing.start(tmp_path / "nothing.npz")
    failing.close()
    assert failing.missing.startswith("failed: FileNotFoundError: ")
    assert failing.rounds == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--contestants=ours,tensorflow", "--contestants=tensorflow: not one of ours, torch, flower, fedjax"),
        ("--executors=cluster", "--executors=cluster: not one of loop"),
        ("--json=nowhere/out.json", "--json=nowhere/out.json: no such folder"),
        ("--nodes=0", "flag --nodes=0"),
    ],
)
def test_wrong_input_is_one_line(flag, said):
    done = benchmark(flag)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_committed_results_say_how_they_were_made():
    file = ROOT / "experiments/results/emulation.json"
    if not file.exists():
        pytest.skip("not measured yet")
    result = json.loads(Path(file).read_text())
    assert result["command"].startswith("python -m experiments.bench.emulation")
    assert all(row["same_work"] for row in result["contestants"] if "missing" not in row)
