"""Every figure at smoke scale from one launch; what is kept adds up, goes on, and is tuned on no
test example.
"""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.reproduction import cases, figures, kept, language, runs, tables, tuning, vision
from experiments.reproduction.cases import Case, Given
from experiments.reproduction.runs import Clock, Study
from experiments.reproduction.vision import METHODS, ORDERS
from snake_jax.errors import UserError
from snake_jax.report.runs import read_run
from snake_jax.runs import loop

ROOT = Path(__file__).parents[2]
SMOKE = vision.SCALES["smoke"]
pytestmark = pytest.mark.timeout(600)


def launch(*launches):
    """Exit code, output and errors of each launch, given as lists of flags, one after the other in
    one process.
    """
    script = f"""
import contextlib, io, json, sys
from absl import flags
from experiments import reproduce
from snake_jax.cli import launch
for words in {[list(map(str, words)) for words in launches]!r}:
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.flags_by_module_dict()["experiments.reproduce"]:
        flag.unparse()
    sys.argv = ["reproduce.py", *words]
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
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
    assert "run 1 of 24: " in out
    return folder


def study_of(folder, results="results", topic=vision.TOPIC):
    place, workdir, scale = folder / results / "smoke", folder / "runs/smoke", topic.scales["smoke"]
    sources = topic.sources("smoke", scale, Given(workdir=workdir))
    return Study(topic, "smoke", scale, sources, workdir, place, tuning.read_rates(place, topic))


def numbers(made, figure):
    return json.loads((made / "results/smoke" / f"figure{figure}.json").read_text())


def kept_of(made, row):
    """(metrics, summary, configuration) of the run of a row, as kept."""
    run = kept.read_runs(made / "results/smoke" / kept.FILE)[row["run"]]
    return run.metrics, run.summary, run.config


@pytest.mark.parametrize("figure", figures.FIGURES)
@pytest.mark.slow
def test_a_figure_has_its_picture_and_its_tables(made, figure):
    folder = made / "results/smoke"
    assert (folder / f"figure{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert f"# Figure {figure}: " in (folder / f"figure{figure}.md").read_text()
    found = numbers(made, figure)
    assert found.get("missing", []) == []
    texts = 2 * len(language.METHODS)
    rows = {"2": len(METHODS), "4": 11, "5": 12, "6": texts, "7": 4, "8": 6, "9": texts}[figure]
    assert len(found["rows"]) == rows


@pytest.mark.slow
def test_rows_are_the_sums_of_the_kept_metrics(made):
    for row in numbers(made, "5")["rows"]:
        lines, summary, _ = kept_of(made, row)
        for key in ("iterations", "examples", "train_flops", "server_flops", "synchronisations"):
            assert row[key] == sum(line[key] for line in lines)
        assert row["bytes"] == sum(line["bytes_up"] + line["bytes_down"] for line in lines)
        assert row["iterations_per_node"] == row["iterations"] / 3
        assert row["final_accuracy"] == lines[-1]["accuracy"] == summary["final_accuracy"]
        first = next(
            (i for i, line in enumerate(lines) if (line["accuracy"] or 0) >= SMOKE.target), None
        )
        upto = None if first is None else sum(line["iterations"] for line in lines[: first + 1]) / 3
        assert row["iterations_per_node_to_target"] == upto


@pytest.mark.slow
def test_a_run_is_kept_without_ledger_and_checkpoints(made):
    folder = made / "results/smoke"
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    lines = [json.loads(line) for line in kept.read_lines(folder / kept.FILE)]
    assert {tuple(line) for line in lines} == {("run", "config", "summary", "metrics")}
    names = [line["run"] for line in lines]
    assert names == sorted(path.parent.name for path in made.glob("runs/smoke/*/summary.json"))
    assert "snake_iid_e1_lr0.03_s0" in names


@pytest.mark.slow
def test_kept_runs_are_the_runs_and_are_folders_again(made, tmp_path):
    file = made / "results/smoke" / kept.FILE
    assert kept.main([str(file), str(tmp_path)]) == 0
    for name, run in kept.read_runs(file).items():
        before, after = read_run(made / "runs/smoke" / name), read_run(tmp_path / name)
        assert after[1:] == run[1:] == before[1:]
    assert kept.main([str(file), str(tmp_path)]) == 2  # they are there already


@pytest.mark.slow
def test_runs_are_added_to_those_that_are_kept_and_the_same_ones_change_nothing(made, tmp_path):
    study = study_of(made)._replace(results=tmp_path)
    first, second = Case("fedavg", "iid"), Case("snake", "iid")
    runs.keep(study, [second])
    runs.keep(study, [first, second])
    assert list(kept.read_runs(tmp_path / kept.FILE)) == [study.name(first), study.name(second)]
    before = (tmp_path / kept.FILE).read_bytes()
    runs.keep(study, [second])
    assert (tmp_path / kept.FILE).read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"[]\n", mtime=0), gzip.compress(b"{\n", mtime=0)]
)
def test_a_damaged_file_of_kept_runs_is_one_line(tmp_path, content):
    (tmp_path / kept.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"runs\.jsonl\.gz.* take it from git again"):
        kept.read_runs(tmp_path / kept.FILE)


def redrawn(results, tmp_path, scale, figures, *more):
    """The folder of what `--redraw` makes of a copy of the kept runs, and the names it wrote."""
    folder = tmp_path / scale
    folder.mkdir()
    for path in [results / kept.FILE, *results.glob("learning_rates*"), *results.glob("study*")]:
        shutil.copy(path, folder)
    given = [f"--figure={figures}", f"--scale={scale}", f"--results={tmp_path}", *more]
    ((code, out, errors),) = launch([*given, "--redraw", f"--workdir={tmp_path / 'nothing'}"])
    assert (code, errors) == (0, "")
    assert "run 1 of" not in out
    assert not (tmp_path / "nothing").exists()
    return folder


def same_tables(folder, other, figure):
    texts = [(place / f"figure{figure}.md").read_text() for place in (folder, other)]
    numbers = [
        json.loads((place / f"figure{figure}.json").read_text()) for place in (folder, other)
    ]
    return texts[0] == texts[1] and numbers[0] == numbers[1]


@pytest.mark.slow
def test_figures_are_redrawn_from_the_kept_runs(made, tmp_path):
    folder = redrawn(made / "results/smoke", tmp_path, "smoke", "all")
    for figure in figures.FIGURES:
        assert same_tables(folder, made / "results/smoke", figure)
        assert (folder / f"figure{figure}.png").read_bytes().startswith(b"\x89PNG")


# Of figure 2 the data is needed, and figure 4 has no runs.
@pytest.mark.parametrize(
    ("study", "drawn", "seeds"),
    [("reproduce", "6,9", "0"), ("reproduce_seeds", "5,7,8", "0,1,2,3,4")],
)
def test_committed_figures_are_those_of_the_committed_runs(tmp_path, study, drawn, seeds):
    committed = ROOT / "experiments/results" / study / "cpu"
    folder = redrawn(committed, tmp_path, "cpu", drawn, f"--seeds={seeds}")
    for figure in drawn.split(","):
        assert same_tables(folder, committed, figure)


@pytest.mark.parametrize("study", ["cifar10", "demo", "reproduce/cpu", "reproduce_seeds/cpu"])
def test_every_committed_file_of_runs_is_read(study):
    runs_kept = kept.read_runs(ROOT / "experiments/results" / study / kept.FILE)
    assert len(runs_kept) > 10
    assert all(run.summary["algorithm"] == run.config["algorithm"] for run in runs_kept.values())


@pytest.mark.slow
def test_figures_share_runs_and_differ_in_what_they_say(made):
    plain = numbers(made, "7")["rows"][0]
    assert plain == numbers(made, "8")["rows"][0]
    assert plain in numbers(made, "5")["rows"]
    assert [row["order"] for row in numbers(made, "8")["rows"]] == 2 * list(ORDERS)


@pytest.mark.slow
def test_the_interrupted_layers_visit_is_taken_over_in_every_cycle(made):
    run = study_of(made).read(Case("snake", "iid", interrupted=True))
    layer = vision.interrupted_layer(SMOKE)
    cut = [record for record in run.metrics if record["event"]]
    assert [(record["cycle"], record["event"]) for record in cut] == [
        (0, "interrupted"),
        (0, "takeover"),
        (1, "interrupted"),
        (1, "takeover"),
    ]
    assert all(layer in record["layers"] for record in cut)
    assert run.metrics[-1]["accuracy"] is not None


def test_the_papers_interrupted_layer_is_the_fifth():
    assert vision.interrupted_layer(vision.SCALES["cpu"]) == "conv5"
    config = vision.config_of(
        Case("snake", "iid", interrupted=True), vision.SCALES["cpu"], {"data": "cifar10"}, 0.1
    )
    assert config.interrupt.startswith("3@0.5,12@0.5,21@0.5")


@pytest.mark.slow
def test_a_nodes_state_is_what_it_holds(made):
    rows = {row["method"]: row for row in numbers(made, "2")["rows"]}
    whole = 4 * kept_of(made, rows["fedavg"])[1]["num_params"]
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


@pytest.mark.slow
def test_tuned_rates_are_chosen_by_validation_loss_recorded_and_used(made):
    study = study_of(made, "tuned")
    said = []
    tuned = tuning.tune(study, ["7"], Clock(0), said.append)
    for partition in vision.PARTITIONS:
        entry = tuned.rates[f"snake/{partition}"]
        losses = {}
        tried = [float(rate) for rate in entry["validation_loss"]]
        assert set(tried) >= set(SMOKE.grid)
        assert not entry["at_the_edge_of_the_grid"]
        assert entry["chosen"] not in (min(tried), max(tried))
        for rate in tried:
            case = Case("snake", partition, tried=rate)
            losses[rate] = tuned.read(case).metrics[-1]["test_loss"]
            assert tuned.config(case).validation == SMOKE.validation
        assert entry["validation_loss"] == {f"{rate:g}": loss for rate, loss in losses.items()}
        assert entry["chosen"] == min(losses, key=losses.get)
        assert tuned.config(Case("snake", partition)).learning_rate == entry["chosen"]
    assert study_of(made, "tuned").rates == tuned.rates
    assert tuned.rate(Case("fedavg", "iid")) == SMOKE.rates["fedavg"]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({0.01: 2.0, 0.03: 1.0, 0.1: 3.0}, None),
        ({0.01: 1.0, 0.03: 2.0, 0.1: 3.0}, 0.003),
        ({0.01: 3.0, 0.03: 2.0, 0.1: 1.0}, 0.3),
        ({0.03: 1.0, 0.1: 1.0}, 0.01),
        ({0.001: None, 0.003: None}, 3e-4),
        ({0.01: 1.0, 0.03: None, 0.1: None}, 0.003),
    ],
)
def test_the_grid_is_widened_on_the_side_where_the_best_rate_lies(losses, expected):
    assert tuning.beyond(losses) == expected


@pytest.mark.slow
def test_tuning_holds_out_training_examples(made):
    study = study_of(made)
    tuning = loop.prepare(study.config(Case("snake", "iid", tried=0.03))).data.dataset
    study_data = loop.prepare(study.config(Case("snake", "iid"))).data.dataset
    assert (len(tuning.train.labels), len(tuning.test.labels)) == (72, 24)
    assert len(study_data.train.labels) == 96
    train = {image.tobytes() for image in study_data.train.images}
    assert all(image.tobytes() in train for image in tuning.test.images)


@pytest.mark.slow
def test_when_time_is_up_the_rest_waits(made):
    study = study_of(made)._replace(workdir=made / "later")
    said = []
    runs.carry_out(study, [Case("fedavg", "iid"), Case("snake", "iid")], Clock(1e-9), said.append)
    assert said == ["not finished: 2 of 2 runs; the same command goes on"]


@pytest.mark.slow
def test_a_folder_of_other_flags_is_refused(made):
    study = study_of(made)
    with pytest.raises(UserError, match=r"holds a run with other flags: --cycles=2 \(here 1\)"):
        study._replace(scale=SMOKE._replace(cycles={1: 1})).finished(Case("snake", "iid"))


def test_paths_of_this_machine_are_not_kept(tmp_path):
    assert vision.TOPIC.public("npz:/home/someone/cifar10") == "cifar10"
    assert language.TOPIC.public("/home/someone/opt-1.3b") == "opt-1.3b"
    assert (
        language.TOPIC.public("/home/a.jsonl,pydoc, Dahoas/rm-static")
        == "a.jsonl,pydoc,Dahoas/rm-static"
    )


@pytest.mark.parametrize("topic", figures.TOPICS, ids=[topic.name for topic in figures.TOPICS])
@pytest.mark.parametrize("scale", vision.SCALES)
def test_every_case_of_every_scale_is_a_configuration(scale, topic):
    given = Given(data="cifar10", text_model="tiny-llama", text_data="x", listing=True)
    sources = topic.sources(scale, topic.scales[scale], given)
    study = Study(topic, scale, topic.scales[scale], sources, Path("w"), Path("r"), {})
    wanted = cases.of_figures(topic, topic.figures, study.scale)
    assert len({study.name(case) for case in wanted}) == len(wanted)
    assert [case.epochs for case in wanted] == sorted(case.epochs for case in wanted)
    tried = cases.tuning(topic, topic.figures, study.scale)
    assert all(study.config(case).seed == case.seed for case in [*wanted, *tried])


@pytest.mark.slow
def test_fine_tuning_rows_are_the_sums_of_the_kept_metrics(made):
    for row in numbers(made, "6")["rows"] + numbers(made, "9")["rows"]:
        lines, summary, config = kept_of(made, row)
        for key in ("iterations", "tokens", "target_tokens", "train_flops"):
            assert row[key] == sum(line[key] for line in lines)
        assert row["bytes"] == sum(line["bytes_up"] + line["bytes_down"] for line in lines)
        assert row["iterations_per_node"] == row["iterations"] / config["nodes"]
        assert row["perplexity_after"] == lines[-1]["perplexity"] == summary["perplexity_after"]
        assert row["perplexity_before"] == summary["perplexity_before"] > row["perplexity_after"]
        assert all(
            row[key] == summary[key] > 0
            for key in ("peak_train_bytes", "state_bytes", "trainable_params")
        )


@pytest.mark.parametrize(("figure", "partition"), language.FIGURES.items())
@pytest.mark.slow
def test_fine_tuning_runs_are_what_the_figure_says(made, figure, partition):
    rows = numbers(made, figure)["rows"]
    assert [row["method"] for row in rows] == [*language.METHODS, *language.METHODS]
    each = len(language.METHODS)
    assert [row["epochs"] for row in rows[:each]] == [1] * each
    assert [row["epochs"] for row in rows[each:]] == [3] * each
    for row in rows:
        lines, _, config = kept_of(made, row)
        assert (config["partition"], config["local_epochs"], config["nodes"]) == (
            partition,
            row["epochs"],
            4,
        )
        trains = "fedavg" if row["method"].startswith("fedavg") else "snake"
        assert [config["algorithm"], config["lora_rank"] > 0] == [trains, "lora" in row["method"]]
        if trains == "snake":
            assert config["distill"] == ("on" if row["method"].startswith("distilled") else "off")
        evaluated = sum(line["perplexity"] is not None for line in lines)
        assert evaluated == language.SCALES["smoke"].cycles[row["epochs"]]


@pytest.mark.slow
def test_a_row_says_what_it_took_to_be_as_good_as_fl(made):
    rows = {(row["method"], row["epochs"]): row for row in numbers(made, "6")["rows"]}
    for (method, epochs), row in rows.items():
        goal, lines = (
            rows[language.FL_OF.get(method, method), epochs]["perplexity_after"],
            kept_of(made, row)[0],
        )
        first = next(
            (i for i, line in enumerate(lines) if (line["perplexity"] or goal + 1) <= goal), None
        )
        upto = None if first is None else sum(line["train_flops"] for line in lines[: first + 1])
        assert row["flops_to_fl"] == upto
    text = (made / "results/smoke/figure6.md").read_text()
    assert text.count("of the final perplexity of FL") == 8
    assert text.count("| distillation lowers Snake's perplexity |") == 4


@pytest.mark.slow
def test_language_is_tuned_on_training_text_alone(made):
    study = study_of(made, "tuned", language.TOPIC)
    tuned = tuning.tune(study, ["6"], Clock(1e-9), list[str]().append)
    assert tuned.rates == {}
    config = study.config(Case("snake_lora", "iid", tried=1e-3))
    trained_on = {
        pair.prompt
        for pair in loop.prepare(study.config(Case("snake_lora", "iid"))).data.rows.samples
    }
    assert {
        json.loads(line)["prompt"] for line in Path(config.data).read_text().splitlines()
    } == trained_on
    assert len(loop.prepare(config).data.rows.samples) == 18  # three quarters of the study's 24


def test_a_pretrained_model_and_text_are_asked_for_where_the_scale_needs_them():
    with pytest.raises(UserError, match="give --text_model=DIR"):
        language.sources("cpu", language.SCALES["cpu"], Given(text_data="a.jsonl"))
    with pytest.raises(UserError, match=r"give --text_data=A.jsonl,B.jsonl"):
        language.sources("cpu", language.SCALES["cpu"], Given(text_model="tests"))
    with pytest.raises(UserError, match="give --text_model=DIR"):
        language.sources("full", language.SCALES["full"], Given())
    listed = language.sources("full", language.SCALES["full"], Given(listing=True))
    assert listed["model"] == "opt-1.3b"


def test_the_papers_models_have_a_node_for_each_block():
    for model, nodes in (("opt-1.3b", 24), ("llama-3-8b", 32)):
        given = Given(text_model=model, listing=True)
        sources = language.sources("full", language.SCALES["full"], given)
        config = language.config_of(
            Case("snake_lora", "by_category"), language.SCALES["full"], sources, 1e-4
        )
        assert (config.nodes, config.lora_rank, config.batch_size, config.frozen_dtype) == (
            nodes,
            128,
            6,
            "int8",
        )


@pytest.mark.slow
def test_a_second_launch_runs_nothing_and_wrong_flags_are_one_line(made, tmp_path):
    before = (made / "results/smoke/figure8.md").read_text()
    nowhere = (f"--workdir={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}")
    wrong = {
        "--figure=3": "--figure=3: not one of 2, 4, 5, 6, 7, 8, 9",
        "--scale=tiny": "--scale=tiny: not one of smoke, cpu, full",
        f"--data=npz:{tmp_path / 'missing'}": "missing",
        "--seeds=0,x": "--seeds=0,x: x is no seed",
        "--figure=9 --scale=cpu": "figures on text fine-tune a pretrained model: give "
        "--text_model=DIR",
        "--figure=6 --text_data=missing.jsonl": "--data=missing.jsonl: No such file",
    }
    again, listing, text, *refused = launch(
        ["--figure=8", f"--workdir={made / 'runs'}", f"--results={made / 'results'}"],
        ["--figure=5", "--list", *nowhere],
        ["--figure=6,9", "--list", "--scale=full", *nowhere],
        *(["--figure=5", *nowhere, *flag.split()] for flag in wrong),
    )
    assert (again[0], again[2]) == (0, "")
    assert "6 of 6 runs were finished before" in again[1]
    assert "run 1 of" not in again[1]
    assert (made / "results/smoke/figure8.md").read_text() == before
    assert listing[0] == 0
    assert "snake_iid_e2_lr0.03_s0: figure 5; 12 steps" in listing[1]
    assert "12 runs, about" in listing[1]
    assert "fedavg_full_by_category_e3_lr0.0001_s0: figure 9; 73,000 steps" in text[1]
    for (code, _, errors), said in zip(refused, wrong.values(), strict=True):
        assert (code, errors.count("\n")) == (2, 1)
        assert said in errors
    assert list(tmp_path.iterdir()) == []
