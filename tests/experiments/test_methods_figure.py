"""The comparison of all methods: every run sees the same examples, the table says what it took."""

import json

import pytest

from experiments.reproduction import cases, kept, methods, methods_figures
from experiments.reproduction.cases import Case
from experiments.reproduction.runs import Study
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.runs import loop
from tests.experiments.test_reproduce import launch
from tests.launches import write_images
from tests.sweeps import sweep

SCALES = methods.SCALES


def test_every_method_there_is_has_a_run():
    compared = {methods.METHODS[name].flags.get("algorithm", name) for name in methods.METHODS}
    assert compared == set(ALGORITHMS)
    found = methods.of_figure(methods.FIGURE, SCALES["cpu"])
    assert len(found) == len(methods.METHODS) * 2 * 3
    assert len({cases.name(case, 0.1) for case in found}) == len(found)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.mark.parametrize("size", sweep(SCALES, quick=["cpu"]))
@pytest.mark.parametrize(
    "method", sweep(methods.METHODS, quick=["snake", "snake_three", "fedpart", "badam", "split"])
)
def test_a_run_is_planned_to_pass_all_examples_as_often_as_the_others(method, size, images):
    scale = SCALES[size]._replace(train_examples=0)
    scale = scale._replace(settings={**scale.settings, "model": "mlp"})
    config = methods.config_of(Case(method, "iid"), scale, {"data": f"npz:{images}"}, 0.1)
    setup = loop.prepare(config)
    rounds = loop.planned(setup)

    # In one place a whole visit passes all nodes' examples, at a node its own.
    whole = 1.0 if setup.algorithm.at_server else 1 / config.nodes
    passed = 0.0
    for visits in rounds:
        for visit in visits:
            begin, end = visit.share
            passed += (end - begin) * whole
    assert passed == pytest.approx(scale.cycles[1])
    assert len(rounds) == 6 * config.eval_every


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_methods_from_one_launch(tmp_path):
    flags = ("--figure=methods", "--scale=smoke", f"--results={tmp_path / 'results'}")
    flags += (f"--workdir={tmp_path / 'runs'}",)
    ((code, out, errors), again, redrawn) = launch(flags, flags, [*flags, "--redraw"])
    assert (code, errors) == (0, "")
    assert "run 1 of 42: " in out
    assert "42 of 42 runs were finished before" in again[1]
    folder = tmp_path / "results/smoke_methods"
    assert (folder / "methods.png").read_bytes().startswith(b"\x89PNG")
    assert redrawn[0] == 0

    # All passed the same examples; bytes and work are the sums of the lines that are kept.
    found = json.loads((folder / "methods.json").read_text())
    assert found["missing"] == []
    assert len({row["examples"] for row in found["rows"]}) == 1
    runs = kept.read_runs(folder / kept.FILE)
    for row in found["rows"]:
        lines = runs[row["run"]].metrics
        assert row["train_flops"] == sum(line["train_flops"] for line in lines)
        assert row["bytes"] == sum(line["bytes_up"] + line["bytes_down"] for line in lines)
        assert row["final_accuracy"] == lines[-1]["accuracy"]
        assert row["worst_tenth"] == lines[-1]["node_accuracy_worst_tenth"]
    seconds = {row["method"]: row["simulated_s"] for row in found["rows"]}
    assert seconds["snake_three"] < seconds["snake_one"]
    text = (folder / "methods.md").read_text()
    for method in methods.METHODS.values():
        assert f"| {method.label} |" in text


def test_a_case_of_several_seeds_is_one_line_of_its_partition(tmp_path):
    rows = []
    for seed, accuracy in enumerate((0.2, 0.4)):
        rows.append(
            {
                "method": "snake_three",
                "partition": "dirichlet",
                "epochs": 1,
                "seed": seed,
                "finished": True,
                "skipped_visits": 0,
                "learning_rate": 0.05,
                "final_accuracy": accuracy,
                "node_mean": accuracy,
                "worst_tenth": accuracy / 2,
                "bytes": 1e6,
                "train_flops": 1e9,
                "memory": None,
                "simulated_s": 3.0,
            }
        )
    study = Study(methods.TOPIC, "cpu", SCALES["cpu"], {"data": "cifar10"}, tmp_path, tmp_path, {})
    _, heading, table = methods_figures.sections(study, "methods", rows, {})
    assert heading == "## Dirichlet(0.3)"
    line = table.splitlines()[-1]
    assert line.startswith("| three snakes, no ends (2 seeds) | 30.0 % (20.0 % to 40.0 %) |")
    assert "| 15.0 % (10.0 % to 20.0 %) | 1.00 MB (1.00 MB to 1.00 MB) |" in line
    picture = methods_figures.draw(
        study, "methods", rows, {}, tmp_path / "methods.png", "two seeds"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
