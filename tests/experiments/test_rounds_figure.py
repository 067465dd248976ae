"""FedAvg's rounds to an accuracy: counted as its paper counts them, and told beside its numbers."""

import json

import pytest

from experiments.reproduction import figures, rounds, rounds_figures, runs
from experiments.reproduction.cases import Given
from experiments.reproduction.rounds import ROW_OF, ROWS, TOPIC
from experiments.reproduction.runs import Clock, Study
from experiments.reproduction.verdict import CANNOT_TELL, DOES_NOT_HOLD, HOLDS
from snake_jax.errors import UserError

CPU = TOPIC.scales["cpu"]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.5, 0.9, 0.98), 2.875),
        ((0.97,), 1.0),
        ((0.5, 0.97), 2.0),
        # Of a curve that falls the best so far counts.
        ((0.5, 0.95, 0.6, 0.99), 3.5),
        ((0.5, 0.6, 0.969), None),
    ],
)
def test_rounds_are_interpolated_on_the_best_so_far(accuracies, expected):
    found = rounds.rounds_to(0.97, accuracies)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_flags_are_those_of_the_paper():
    for case in TOPIC.of_figure(rounds.FIGURE, CPU):
        config = rounds.config_of(case, CPU, {"data": rounds.MNIST}, CPU.rates[case.method])
        row = ROW_OF[case.method]
        assert (config.nodes, config.nodes_per_round) == (100, row.clients)
        assert (config.local_epochs, config.batch_size) == (1, 10)
        assert (config.momentum, config.weight_decay, config.clip_norm) == (0, 0, 0)
        assert (config.lr_schedule, config.optimizer) == ("constant", "sgd")
        assert (config.stop_accuracy, config.eval_every) == (row.target, 1)
        assert config.partition in row.published
        assert config.cycles == round(1.5 * row.published[config.partition])


def test_rates_are_a_third_of_a_power_of_ten_apart():
    for row in ROWS.values():
        for less, more in zip(row.rates, row.rates[1:], strict=False):
            assert more / less == pytest.approx(10 ** (1 / 3), rel=0.01)


def rows_of(method, partition, found, reached=True):
    case = {"method": method, "partition": partition, "finished": True, "reached": reached}
    return [{**case, "seed": seed, "rounds": one} for seed, one in enumerate(found)]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((60.0, 62.0, 64.0), HOLDS),
        ((90.0, 91.0, 92.0), HOLDS),  # a tenth more than 87 is allowed
        ((60.0, 90.0, 130.0), CANNOT_TELL),
        ((110.0, 112.0, 114.0), DOES_NOT_HOLD),
    ],
)
def test_the_best_rate_is_told_beside_the_published_number(found, verdict):
    side = "2nn_10_0.1"
    rows = rows_of(side, "iid", found)
    for rate in ("0.0464", "0.215"):
        rows += rows_of(f"2nn_10_{rate}", "iid", (131.0, 131.0, 131.0), reached=False)
    (line,) = rounds_figures.told(rows)
    assert (line.side, line.rival, line.verdict) == (side, "2nn_10", verdict)
    assert line.found.mean == pytest.approx(87 - sum(found) / 3)


def test_what_ran_is_told_and_drawn(tmp_path):
    scale = TOPIC.scales["smoke"]
    folders = tmp_path / "runs", tmp_path / "results"
    study = Study(TOPIC, "smoke", scale, {"data": "digits"}, *folders, {})
    every = TOPIC.of_figure(rounds.FIGURE, scale)
    cases = [case for case in every if case.method == "2nn_10_0.1"]
    runs.carry_out(study, cases, Clock(0), lambda line: None)
    picture, text, numbers = figures.write(study, rounds.FIGURE)
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(numbers.read_text())
    assert [row["partition"] for row in found["rows"]] == ["iid", "pathological"]
    assert all(row["rounds"] == 3 and not row["reached"] for row in found["rows"])
    assert len(found["missing"]) == len(every) - 2
    assert "| 2NN, 10 clients, rate 0.1 | 3.0 | 0 of 1 | 87 | " in text.read_text()


def test_other_images_are_refused():
    with pytest.raises(UserError, match="wants MNIST, tfds:mnist"):
        rounds.sources("cpu", CPU, Given(data="cifar10"))
    assert rounds.public("npz:/somewhere/mnist.npz") == rounds.MNIST
