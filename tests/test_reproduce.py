"""Every figure at smoke scale from one launch; what is kept adds up, goes on, and is tuned on no test example."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.reproduction import cases, runs, tables
from experiments.reproduction.cases import METHODS, ORDERS, SCALES, Case
from experiments.reproduction.runs import Clock, Study
from snake_jax import runner
from snake_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SMOKE = SCALES["smoke"]
pytestmark = pytest.mark.timeout(600)


def launch(*launches):
    """Exit code, output and errors of each launch, given as lists of flags, one after the other in one process."""
    script = f"""
import contextlib, io, json, sys
from absl import flags
from experiments import launch, reproduce
for words in {[list(map(str, words)) for words in launches]!r}:
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.flags_by_module_dict()["experiments.reproduce"]:
        flag.unparse()
    sys.argv = ["reproduce.py", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            launch.run(reproduce.main)
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, out.getvalue(), errors.getvalue()]))
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of one launch of all figures."""
    folder = tmp_path_factory.mktemp("reproduce")
    flags = ("--scale=smoke", f"--workdir={folder / 'runs'}", f"--results={folder / 'results'}")
    ((code, out, errors),) = launch(["--figure=all", *flags, "--jobs=2"])
    assert (code, errors) == (0, "")
    assert "run 1 of 22: " in out
    return folder


def study_of(folder, results="results"):
    place = folder / results / "smoke"
    return Study("smoke", SMOKE, "digits", folder / "runs" / "smoke", place, runs.read_rates(place))


def numbers(made, figure):
    return json.loads((made / "results/smoke" / f"figure{figure}.json").read_text())


@pytest.mark.parametrize("figure", cases.FIGURES)
def test_a_figure_has_its_picture_and_its_tables(made, figure):
    folder = made / "results/smoke"
    assert (folder / f"figure{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert f"# Figure {figure}: " in (folder / f"figure{figure}.md").read_text()
    found = numbers(made, figure)
    assert found.get("missing", []) == []
    rows = {"2": len(METHODS), "4": 11, "5": 12, "7": 4, "8": 6}[figure]
    assert len(found["rows"]) == rows


def test_rows_are_the_sums_of_the_kept_metrics(made):
    for row in numbers(made, "5")["rows"]:
        kept = made / "results/smoke/runs" / row["run"]
        lines = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
        for key in ("iterations", "examples", "train_flops", "server_flops", "synchronisations"):
            assert row[key] == sum(line[key] for line in lines)
        assert row["bytes"] == sum(line["bytes_up"] + line["bytes_down"] for line in lines)
        assert row["iterations_per_node"] == row["iterations"] / 3
        assert row["final_accuracy"] == lines[-1]["accuracy"]
        assert row["final_accuracy"] == json.loads((kept / "summary.json").read_text())["final_accuracy"]
        first = next((i for i, line in enumerate(lines) if (line["accuracy"] or 0) >= SMOKE.target), None)
        upto = None if first is None else sum(line["iterations"] for line in lines[: first + 1]) / 3
        assert row["iterations_per_node_to_target"] == upto


def test_a_run_is_kept_without_ledger_and_checkpoints(made):
    kept = sorted(path.name for path in (made / "results/smoke/runs/snake_iid_e1_lr0.03_s0").iterdir())
    assert kept == ["config.json", "metrics.jsonl", "summary.json"]


def test_figures_share_runs_and_differ_in_what_they_say(made):
    plain = numbers(made, "7")["rows"][0]
    assert plain == numbers(made, "8")["rows"][0]
    assert plain in numbers(made, "5")["rows"]
    assert [row["order"] for row in numbers(made, "8")["rows"]] == 2 * list(ORDERS)


def test_the_interrupted_layers_visit_is_taken_over_in_every_cycle(made):
    run = study_of(made).read(Case("snake", "iid", interrupted=True))
    layer = cases.interrupted_layer(SMOKE)
    cut = [(record["cycle"], record["event"]) for record in run.metrics if record["event"]]
    assert cut == [(cycle, event) for cycle in range(2) for event in ("interrupted", "takeover")]
    assert all(layer in record["layers"] for record in run.metrics if record["event"])
    assert run.metrics[-1]["accuracy"] is not None


def test_the_papers_interrupted_layer_is_the_fifth():
    assert cases.interrupted_layer(SCALES["cpu"]) == "conv5"
    config = cases.config_of(Case("snake", "iid", interrupted=True), SCALES["cpu"], "cifar10", 0.1)
    assert config.interrupt.startswith("3@0.5,12@0.5,21@0.5")


def test_a_nodes_state_is_what_it_holds(made):
    rows = {row["method"]: row for row in numbers(made, "2")["rows"]}
    whole = (
        4 * json.loads((made / "results/smoke/runs" / rows["fedavg"]["run"] / "summary.json").read_text())["num_params"]
    )
    fedavg = rows["fedavg"]["node_memory"]
    assert (fedavg["weights"], fedavg["gradients"], fedavg["optimizer"]) == (whole, whole, whole)
    for method in ("split", "splitfed", "accelerated_fl", "random_walking_snakes"):
        assert rows[method]["node_memory"]["together"] < fedavg["together"]
        assert rows[method]["compiled_peak_bytes"] is None
    snake = rows["snake"]["node_memory"]
    assert snake["weights"] == whole
    assert snake["gradients"] == snake["optimizer"] < whole
    assert rows["fedavg"]["bytes_per_visit"] == 2 * whole


def test_the_layers_table_is_of_the_papers_network():
    rows = tables.layers_table()
    assert sum(row["parameters"] for row in rows) == 9_750_922
    assert rows[0]["input_gradient_flops"] == 0
    assert all(0 < row["visit_flops_share"] < 1 for row in rows)


def test_tuned_rates_are_chosen_by_validation_loss_recorded_and_used(made):
    study = study_of(made, "tuned")
    said = []
    tuned = runs.tune(study, ["7"], Clock(0, SMOKE), said.append)
    for partition in cases.PARTITIONS:
        entry = tuned.rates[f"snake/{partition}"]
        losses = {}
        for rate in SMOKE.grid:
            case = Case("snake", partition, tried=rate)
            losses[rate] = tuned.read(case).metrics[-1]["test_loss"]
            assert tuned.config(case).validation == SMOKE.validation
        assert entry["validation_loss"] == {f"{rate:g}": loss for rate, loss in losses.items()}
        assert entry["chosen"] == min(losses, key=losses.get)
        assert tuned.config(Case("snake", partition)).learning_rate == entry["chosen"]
    assert study_of(made, "tuned").rates == tuned.rates
    assert tuned.rate(Case("fedavg", "iid")) == SMOKE.rates["fedavg"]


def test_tuning_holds_out_training_examples(made):
    study = study_of(made)
    tuning = runner.prepare(study.config(Case("snake", "iid", tried=0.03))).dataset
    study_data = runner.prepare(study.config(Case("snake", "iid"))).dataset
    assert (len(tuning.train.labels), len(tuning.test.labels)) == (72, 24)
    assert len(study_data.train.labels) == 96
    train = {image.tobytes() for image in study_data.train.images}
    assert all(image.tobytes() in train for image in tuning.test.images)


def test_when_time_is_up_the_rest_waits(made):
    study = study_of(made)._replace(workdir=made / "later")
    said = []
    runs.carry_out(study, [Case("fedavg", "iid"), Case("snake", "iid")], Clock(1e-9, SMOKE), said.append)
    assert said == ["not finished: 2 of 2 runs; the same command goes on"]


def test_a_folder_of_other_flags_is_refused(made):
    study = study_of(made)
    with pytest.raises(UserError, match=r"holds a run with other flags: --cycles=2 \(here 3\)"):
        study._replace(scale=SMOKE._replace(cycles={1: 3})).finished(Case("snake", "iid"))


def test_data_paths_of_this_machine_are_not_kept():
    assert runs.public_name("npz:/home/someone/cifar10") == "cifar10"


@pytest.mark.parametrize("scale", SCALES)
def test_every_case_of_every_scale_is_a_configuration(scale):
    study = Study(scale, SCALES[scale], SCALES[scale].data, Path("w"), Path("r"), {})
    wanted = cases.ordered(case for figure in cases.FIGURES for case in cases.of_figure(figure, study.scale))
    assert len({study.name(case) for case in wanted}) == len(wanted)
    assert [case.epochs for case in wanted] == sorted(case.epochs for case in wanted)
    assert all(study.config(case).seed == case.seed for case in [*wanted, *cases.tuning(cases.FIGURES, study.scale)])


def test_a_second_launch_runs_nothing_and_wrong_flags_are_one_line(made, tmp_path):
    before = (made / "results/smoke/figure8.md").read_text()
    nowhere = (f"--workdir={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}")
    wrong = {
        "--figure=6": "--figure=6: not one of 2, 4, 5, 7, 8",
        "--scale=tiny": "--scale=tiny: not one of smoke, cpu, full",
        f"--data=npz:{tmp_path / 'missing'}": "missing",
        "--seeds=0,x": "--seeds=0,x: x is no seed",
    }
    again, listing, *refused = launch(
        ["--figure=8", f"--workdir={made / 'runs'}", f"--results={made / 'results'}"],
        ["--figure=5", "--list", *nowhere],
        *(["--figure=5", *nowhere, flag] for flag in wrong),
    )
    assert (again[0], again[2]) == (0, "")
    assert "6 of 6 runs were finished before" in again[1]
    assert "run 1 of" not in again[1]
    assert (made / "results/smoke/figure8.md").read_text() == before
    assert listing[0] == 0
    assert "snake_iid_e2_lr0.03_s0: figure 5; 12 steps" in listing[1]
    assert "12 runs, about" in listing[1]
    for (code, _, errors), said in zip(refused, wrong.values(), strict=True):
        assert (code, errors.count("\n")) == (2, 1)
        assert said in errors
    assert list(tmp_path.iterdir()) == []
