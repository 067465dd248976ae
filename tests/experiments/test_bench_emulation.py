"""The benchmark of whole rounds: everybody does the same work, and whoever cannot take part is
named with a reason.
"""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import contestants, federated, work
from experiments.bench.rows import Request
from snake_jax.errors import UserError

SIZES = federated.Sizes(nodes=2, examples=12, batch=8, dataset="", executors=("loop",))
QUIET = Request(1, True, sys.executable, sys.executable, 1, lambda _: None)


def some_orders(seed: int) -> list[list[np.ndarray]]:
    """Four rounds of two nodes that hold 12 and 8 examples."""
    return federated.orders([np.arange(12), np.arange(12, 20)], 4, seed)


def some_work(**changes) -> work.Work:
    rng = np.random.default_rng(0)
    sizes = {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 6), "fc3": (2 * 2 * 6, 5), "fc4": (5, 10)}
    fields = {
        "images": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "labels": np.arange(20, dtype=np.int32) % 10,
        "orders": some_orders(3),
        "mean": np.full(3, 0.5, np.float32),
        "std": np.full(3, 0.25, np.float32),
        "params": {
            k: (rng.normal(size=s).astype(np.float32), np.zeros(s[-1], np.float32))
            for k, s in sizes.items()
        },
        "batch_size": 8,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "clip_norm": 0.0,
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
    for nodes, others in zip(read.orders, made.orders, strict=True):
        assert [list(order) for order in nodes] == [list(order) for order in others]
    assert read[6:] == made[6:]
    assert (read.rounds, read.nodes, read.examples) == (4, 2, 20)


def test_work_imports_numpy_alone():
    script = """
import sys
import numpy
before = set(sys.modules)  # with what numpy brings
import experiments.bench.work
ours = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(ours - set(sys.stdlib_module_names)))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=contestants.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['experiments']\n"


def test_a_round_takes_every_example_of_a_node_once_and_each_round_in_its_own_order():
    task = some_work()
    orders = [nodes[0] for nodes in task.orders]
    assert [sorted(order) for order in orders] == [list(range(12))] * 4
    assert len({tuple(order) for order in orders}) == 4
    assert task.shares() == [0.6, 0.4]


def network(params: work.Params, x: jax.Array) -> jax.Array:
    """Convolutions with ReLU and pooling, then dense layers, from jax.lax alone."""
    last = list(params)[-1]
    for name, (kernel, bias) in params.items():
        if kernel.ndim == 4:
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
            window = (1, 2, 2, 1)
            x = jax.lax.reduce_window(
                jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, window, window, "VALID"
            )
        else:
            x = x.reshape(len(x), -1) @ kernel + bias
            x = x if name == last else jax.nn.relu(x)
    return x


def plain_round(task: work.Work, number: int, start: work.Params) -> work.Params:
    """A round from the words of `Work`: heavy ball from zero at every node, the mean by shares."""

    @jax.jit
    def gradient(params, x, y):
        def loss(params):
            log_p = jax.nn.log_softmax(network(params, x))
            return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

        return jax.grad(loss)(params)

    x, y = task.normalised(), task.labels
    mean = jax.tree.map(np.zeros_like, start)
    for order, share in zip(task.orders[number], task.shares(), strict=True):
        params, velocity = start, jax.tree.map(np.zeros_like, start)
        for begin in range(0, len(order), task.batch_size):
            index = order[begin : begin + task.batch_size]
            grads = gradient(params, x[index], y[index])
            velocity = jax.tree.map(lambda v, g: task.momentum * v + g, velocity, grads)
            params = jax.tree.map(lambda p, v: p - task.learning_rate * v, params, velocity)
        mean = jax.tree.map(lambda m, p, part=share: m + part * p, mean, params)
    return mean


def test_this_library_does_the_work_that_is_in_the_file(tmp_path):
    config, task = federated.prepare(SIZES, 1, tmp_path)
    work.save(task, tmp_path / "work.npz")
    options = {"config": {**config, "executor": "loop"}, "reports": 1}
    ours = contestants.Contestant("ours", "loop", sys.executable, options, {})
    ours.start(tmp_path / "work.npz")
    ours.round()
    ours.close()
    assert ours.missing == ""
    assert (ours.first["steps"], ours.first["examples"]) == (4, 24)

    read = work.load(tmp_path / "work.npz")
    expected = read.params
    for number in range(work.CHECKED_ROUNDS):
        expected = plain_round(read, number, expected)
    checked = work.load_params(ours.checked)
    assert work.difference(checked, expected, read.params) < federated.GREATEST_DIFFERENCE / 10
    # Another order of the same examples ends elsewhere: that the draws are ours is seen.
    orders = []
    for nodes in read.orders:
        orders.append([order[::-1] for order in nodes])
    other = read._replace(orders=orders)
    after_one = plain_round(other, 0, read.params)
    turned = plain_round(other, 1, after_one)
    assert work.difference(turned, expected, read.params) > federated.GREATEST_DIFFERENCE


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
            expected = [
                e + share * p.detach().numpy()
                for e, p in zip(expected, trainer.params, strict=True)
            ]
        for ours, theirs in zip(mean, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "change",
        [{"orders": some_orders(4)}, {"momentum": 0.8}, {"batch_size": 7}, {"clip_norm": 0.1}],
    )
    def test_other_work_is_told_apart(self, change):
        from experiments.bench import torch_side

        ended = []
        for task in (some_work(), some_work(**change)):
            weights = torch_side.to_torch(task.params)
            for number in range(work.CHECKED_ROUNDS):
                weights, _ = torch_side.Trainer(task, 1, channels_last=False).round(number, weights)
            ended.append(torch_side.from_torch(weights, task.params))
        assert work.difference(ended[1], ended[0], some_work().params) > 0.02

    @pytest.mark.slow
    def test_ours_and_pytorch_do_the_same_work(self):
        found = federated.run(SIZES._replace(snake=True), "T", {"torch": 1.0}, 2, QUIET)
        values = {(row.subject, row.name): row for row in found.rows}
        assert {subject for subject, _ in values} == {
            "snake_jax, loop",
            "snake_jax, Snake cycle",
            "PyTorch loop",
        }
        told = {one["name"]: one for one in found.detail["contestants"]}
        assert told["snake_jax, loop"]["difference"] == 0
        assert 0 < told["PyTorch loop"]["difference"] < federated.GREATEST_DIFFERENCE
        firsts = [
            told[name]["first"]
            for name in ("snake_jax, loop", "PyTorch loop", "snake_jax, Snake cycle")
        ]
        # Two nodes of 12 examples, batch 8; a Snake cycle visits a node for each of the three
        # middle layers.
        assert [(first["steps"], first["examples"]) for first in firsts] == [
            (4, 24),
            (4, 24),
            (6, 36),
        ]
        assert firsts[0]["loss"] == pytest.approx(firsts[1]["loss"], rel=1e-2)
        assert values["snake_jax, loop", "over ours"].value == 1
        peer = values["PyTorch loop", "over ours"]
        assert (peer.better, peer.limit, peer.repeats) == ("higher", 1.0, 2)
        if not contestants._importable(sys.executable, "flwr"):
            assert (
                found.peers["Flower simulation"]
                == "flwr: not installed (pip install 'flwr[simulation]')"
            )


def contestant(name: str, steps: int, params: work.Params, folder: Path) -> contestants.Contestant:
    made = contestants.Contestant("torch", name, sys.executable, {}, {})
    made.first, made.told, made.checked = (
        {"steps": steps, "examples": 20},
        {"parameters": 1},
        folder / f"{name}.npz",
    )
    work.save_params(params, made.checked)
    return made


def test_other_steps_or_other_parameters_are_other_work(tmp_path):
    task = some_work()
    trained = {name: (kernel + 1, bias + 1) for name, (kernel, bias) in task.params.items()}
    base = contestant("base", 3, trained, tmp_path)
    assert federated.difference(task, contestant("same", 3, trained, tmp_path), base) == 0
    assert federated.difference(task, contestant("untrained", 3, task.params, tmp_path), base) == 1
    assert federated.difference(task, contestant("lazy", 2, trained, tmp_path), base) == 1


def test_too_few_examples_are_named():
    with pytest.raises(UserError, match="digits: 20000 examples wanted, 1437 there"):
        federated.run(SIZES._replace(nodes=2, examples=10000, dataset="digits"), "T", {}, 1, QUIET)


def test_who_cannot_take_part_is_named_with_the_reason(tmp_path):
    missing = contestants.Contestant("flower", "1 CPU a client", sys.executable, {}, {})
    if contestants._importable(sys.executable, "flwr"):
        pytest.skip("flwr is installed")
    missing.start(tmp_path / "work.npz")
    missing.round()
    missing.close()
    assert missing.missing == "flwr: not installed (pip install 'flwr[simulation]')"


def test_who_fails_is_named_with_its_last_words(tmp_path):
    failing = contestants.Contestant("ours", "loop", sys.executable, {"config": {}}, {})
    failing.start(tmp_path / "nothing.npz")
    failing.close()
    assert failing.missing.startswith("failed: FileNotFoundError: ")
    assert failing.rounds == []
