"""Runs until accuracy no longer rises: the rule by which it does not, and what is told of whom."""

import json

import pytest

from experiments.reproduction import convergence, convergence_figures, figures, runs
from experiments.reproduction.cases import Case
from experiments.reproduction.convergence import flat, flat_since
from experiments.reproduction.runs import Clock, Study
from experiments.reproduction.verdict import CANNOT_TELL, HOLDS
from snake_jax.runs import loop
from tests.experiments.test_reproduce import launch
from tests.sweeps import sweep

TOPIC = convergence.TOPIC


def test_a_curve_is_flat_where_the_best_of_its_last_values_is_hardly_above_the_best_before():
    assert flat([0.5, 0.6, 0.601, 0.55], within=2, most_rise=0.002)
    assert not flat([0.5, 0.6, 0.603, 0.55], within=2, most_rise=0.002)
    # What falls rises no longer; too few evaluations say nothing.
    assert flat([0.6, 0.5, 0.4], within=2, most_rise=0.0)
    assert not flat([0.6, 0.6], within=2, most_rise=0.0)
    assert not flat([], within=2, most_rise=0.0)


def test_a_curve_is_flat_since_it_was_so_to_its_end():
    # Flat after three, then it rises once more, and is flat again two evaluations later.
    curve = [0.5, 0.5, 0.5, 0.7, 0.7, 0.7]
    assert flat_since(curve, within=2, most_rise=0.01) == 6
    assert flat_since([*curve, 0.7], within=2, most_rise=0.01) == 6
    assert flat_since(curve[:3], within=2, most_rise=0.01) == 3
    assert flat_since(curve[:5], within=2, most_rise=0.01) is None


@pytest.mark.parametrize("size", sweep(convergence.SCALES, quick=["cpu"]))
@pytest.mark.parametrize("method", sweep(convergence.METHODS, quick=["fedavg", "snake"]))
def test_a_run_is_planned_to_pass_all_examples_as_often_and_is_scored_once_a_pass(method, size):
    scale = convergence.SCALES[size]._replace(train_examples=0)
    case = Case(method, "dirichlet")
    config = convergence.config_of(case, scale, {"data": "digits"}, 0.1)
    setup = loop.prepare(config)
    rounds = loop.planned(setup)
    passed = 0.0
    for visits in rounds:
        for visit in visits:
            begin, end = visit.share
            passed += (end - begin) / config.nodes
    assert passed == pytest.approx(scale.cycles[1])
    assert len(rounds) == scale.cycles[1] * config.eval_every
    if config.algorithm == "snake":
        assert config.distill == ("on" if method == "snake_distilled" else "off")


def test_every_method_has_runs_of_three_seeds_and_distillation_where_nodes_differ():
    found = TOPIC.of_figure(convergence.FIGURE, TOPIC.scales["cpu"])
    assert len(set(found)) == len(found) == (3 + 4) * 3
    assert Case("snake_distilled", "iid") not in found
    claimed = set()
    for claim in convergence.CLAIMS:
        for partition in claim.partitions:
            for method in (*claim.side, *claim.rival):
                claimed.add((method, partition))
    assert claimed == {(case.method, case.partition) for case in found}


def rows_of(accuracies, still_rising=()):
    rows = []
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            row = {"method": method, "partition": "iid", "seed": seed, "merit": value}
            row |= {"finished": True, "flat": (method, seed) not in still_rising}
            rows.append(row)
    return rows


def test_nothing_is_told_of_a_run_that_still_rises_or_of_a_rival_at_the_edge(tmp_path):
    study = Study(TOPIC, "cpu", TOPIC.scales["cpu"], {"data": "cifar10"}, tmp_path, tmp_path, {})
    reached = {"snake": (60.0, 61.2, 62.1), "fedavg": (59.0, 60.0, 61.0)}
    above_share, higher = convergence_figures.told(study, rows_of(reached))
    assert (above_share.verdict, higher.verdict) == (HOLDS, HOLDS)
    assert above_share.found.mean == pytest.approx(61.1 - 0.95 * 60)
    assert higher.found.mean == pytest.approx(61.1 - 60)

    # Two runs of six still rise, of which one is enough.
    told = convergence_figures.told(study, rows_of(reached, still_rising=[("fedavg", 1)]))
    assert [line.verdict for line in told] == [CANNOT_TELL, CANNOT_TELL]
    edge = {"fedavg/iid": {"chosen": 0.1, "at_the_edge_of_the_grid": True}}
    told = convergence_figures.told(study._replace(rates=edge), rows_of(reached))
    assert [(line.verdict, line.at_edge) for line in told] == [(CANNOT_TELL, ("fedavg",))] * 2


def test_what_ran_is_told_and_drawn_and_the_others_are_missing(tmp_path):
    scale = TOPIC.scales["smoke"]
    folders = tmp_path / "runs", tmp_path / "results"
    study = Study(TOPIC, "smoke", scale, {"data": "digits"}, *folders, {})
    runs.carry_out(
        study, [Case("fedavg", "iid"), Case("snake", "iid")], Clock(0), lambda line: None
    )
    picture, text, numbers = figures.write(study, convergence.FIGURE)
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(numbers.read_text())
    fedavg, snake = found["rows"]
    assert fedavg["passes"] == snake["passes"] == scale.cycles[1]
    assert fedavg["iterations"] == snake["iterations"]
    assert fedavg["flat"] == (fedavg["flat_since"] is not None)
    assert found["flat"] == {"last_evaluations": 10, "most_rise": 0.0025}
    assert [line["verdict"] for line in found["claims"]] == [CANNOT_TELL, CANNOT_TELL]
    assert found["claims"][0]["share"] == 0.95
    assert len(found["missing"]) == 5
    said = text.read_text()
    assert said.startswith("# Trained until accuracy no longer rises\n")
    assert "| Snake ends above 95 % of FL | IID | Snake against FL | " in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_figure_from_one_launch_and_what_a_night_would_take(tmp_path):
    flags = ("--figure=convergence", f"--results={tmp_path / 'results'}")
    flags += (f"--workdir={tmp_path / 'runs'}",)
    (code, out, errors), again, listed = launch(
        flags, flags, [*flags, "--scale=cpu", "--list", "--data=cifar10"]
    )
    assert (code, errors) == (0, "")
    assert "run 1 of 7: " in out
    assert "7 of 7 runs were finished before" in again[1]
    assert listed[1].splitlines()[-1].startswith("21 runs, about ")
