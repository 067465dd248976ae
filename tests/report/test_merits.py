"""A figure of merit is one value: a new one is read, tabled, drawn, averaged and paged from it."""

import json
import re
from pathlib import Path

import pytest

from snake_jax.errors import UserError
from snake_jax.report import merits, plots
from snake_jax.report.columns import columns_of
from snake_jax.report.html import find_runs, page_data, write_page
from snake_jax.report.merits import ACCURACY, LOSSES, PERPLEXITY, Curve, Merit, merit_of_lines
from snake_jax.report.plots import plot_curves, plot_run
from snake_jax.report.progress import progress_text
from snake_jax.report.runs import best, common_merit, cost_to_reach, final, merit_of, read_run
from snake_jax.report.spread import spread, spread_table
from snake_jax.report.table import comparison_table, headline
from tests.run_folders import image_line, language_line, write_run

REPORT = Path(plots.__file__).parent
F1 = Merit(
    field="f1",
    name="F1",
    split="validation",
    title="F1 on the validation set",
    final="final_f1",
    best="best_f1",
    target="target_f1",
    beside=(*LOSSES, Curve("accuracy", "accuracy", "test accuracy", "%", in_tables=True)),
)
# Lower is better, plain numbers, known before training: all that F1 is not.
ERROR = Merit(
    field="word_errors",
    name="word errors",
    split="test",
    title="Word errors a sentence",
    final="final_errors",
    best="best_errors",
    target="target_errors",
    before="errors_before",
    lower_is_better=True,
    unit="",
    show="{:.2f}".format,
)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(merits, "MERITS", (*merits.MERITS, F1, ERROR))
    for module in ("columns", "html", "spread"):
        monkeypatch.setattr(f"snake_jax.report.{module}.MERITS", merits.MERITS)


def write_f1(path, values, **summary):
    lines = [image_line(visit, f1=value) for visit, value in enumerate(values)]
    known = [value for value in values if value is not None]
    reached = {"final_f1": known[-1], "best_f1": max(known), "divergence": 0.1}
    config = {"algorithm": "mine", "model": "package.module:net", "target_f1": 0.5, "nodes": 3}
    return write_run(path, lines, config, {**reached, **summary})


@pytest.fixture
def pair(tmp_path):
    write_f1(tmp_path / "a", [0.3, None, 0.6, 0.55], seed=0)
    write_f1(tmp_path / "b", [0.2, 0.4, 0.45, 0.45], seed=1)
    return [read_run(tmp_path / name) for name in "ab"]


def write_errors(path):
    lines = [image_line(visit, word_errors=value) for visit, value in enumerate((90.0, 30.0, 9.0))]
    summary = {"errors_before": 120.0, "final_errors": 9.0, "best_errors": 9.0}
    return write_run(path, lines, {"target_errors": 30.0}, summary)


def test_a_run_is_measured_by_the_last_figure_of_merit_that_its_lines_have(pair):
    assert merit_of(pair[0]) == F1
    assert merit_of_lines([language_line(0)]) == PERPLEXITY
    assert merit_of_lines([image_line(0)]) == merit_of_lines([{}]) == ACCURACY


def test_runs_of_another_figure_of_merit_are_not_compared(pair, tmp_path):
    images = read_run(write_run(tmp_path / "images", [image_line(0)]))
    with pytest.raises(UserError, match="a is measured by its F1 and images by its accuracy"):
        common_merit([pair[0], images])


def test_a_new_figure_of_merit_is_read(pair):
    assert [(final(run), best(run)) for run in pair] == [(0.55, 0.6), (0.45, 0.45)]
    assert [cost_to_reach(run, 0.5, "iterations") for run in pair] == [30, None]
    assert progress_text(pair[0].metrics[0]).startswith("loss 2.000  F1 30.0 %")


def cells(table, label):
    (line,) = [line for line in table.splitlines() if line.strip().startswith(f"{label}  ")]
    return re.split(r"\s{2,}", line.strip())[1:]


def test_a_new_figure_of_merit_is_tabled(pair):
    assert headline(*pair).startswith("a against b: final F1 +10.0 points")
    table = comparison_table(pair)
    assert "F1 on the validation set" in table
    assert cells(table, "final") == ["55.0 %", "45.0 %", "-10.0 points"]
    assert cells(table, "best") == ["60.0 %", "45.0 %", "-15.0 points"]
    assert cells(table, "test accuracy") == ["50.0 %", "50.0 %", "+0.0 points"]
    reached = table.split("Cost to reach 50.0 % F1")[1].split("Work")[0]
    assert cells(reached, "bytes") == ["12.0 kB", "-"]
    (ours, _) = json.loads(comparison_table(pair, "json"))["runs"]
    assert (ours["final_f1"], ours["best_f1"], ours["accuracy"]) == (0.55, 0.6, 0.5)


def test_a_new_figure_of_merit_is_spread_over_seeds(pair):
    found = spread(pair)
    assert list(found["fields"])[:3] == ["final_f1", "best_f1", "divergence"]
    assert found["fields"]["final_f1"]["values"] == [0.55, 0.45]
    assert found["fields"]["final_f1"]["mean"] == pytest.approx(0.5)
    assert cells(spread_table(found), "final_f1") == ["50.0 %", "7.1 %", "55.0 %", "45.0 %"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    kept = []
    monkeypatch.setattr(plots, "save", lambda picture, path: kept.append(picture) or path)
    return kept


def test_a_new_figure_of_merit_is_drawn(drawn, pair):
    plot_curves(pair, "curves.png")
    plot_run(pair[0], "run.png")
    curves, run = drawn
    assert curves.axes[0].get_ylabel() == run.axes[0].get_ylabel() == "validation F1"
    assert list(curves.axes[0].lines[0].get_ydata()) == [0.3, 0.6, 0.55]
    assert "55.0 % F1" in curves.axes[5].get_legend().texts[0].get_text()
    assert curves.axes[0].yaxis.get_major_formatter()(0.5) == "50%"


def test_one_that_is_better_lower_begins_before_training_on_an_axis_of_factors(drawn, tmp_path):
    run = read_run(write_errors(tmp_path / "run"))
    plot_run(run, "run.png")
    (panel, *_) = drawn[0].axes
    assert list(panel.lines[0].get_ydata()) == [120, 90, 30, 9]
    assert panel.get_yscale() == "log"
    table = comparison_table([run])
    assert cells(table, "before training") == ["120.00"]
    reached = table.split("Cost to reach word errors 30.00")[1].split("Work")[0]
    assert cells(reached, "iterations") == ["20"]
    nothing = run._replace(config={"target_errors": 0})
    assert "Cost to reach" not in comparison_table([nothing])


def texts(run):
    return {key: cell["text"] for key, cell in run["cells"].items()}


def test_a_new_figure_of_merit_is_on_the_page(pair, tmp_path):
    write_errors(tmp_path / "c")
    write_run(tmp_path / "images", [image_line(0)], {"algorithm": "snake"})
    data = page_data(find_runs(tmp_path), "")
    ours, _, errors, images = data["runs"]
    assert (texts(ours)["final_f1"], texts(ours)["best_f1"]) == ("55.0 %", "60.0 %")
    assert (texts(images)["final_f1"], texts(ours)["final_accuracy"]) == ("–", "–")
    assert texts(errors)["errors_before"] == "120.00"
    values = {value["key"]: value for value in data["values"]}
    assert list(values) == ["accuracy", "test_loss", "loss", "f1", "word_errors"]
    assert (values["f1"]["label"], values["f1"]["factors"]) == ("validation F1", False)
    assert values["word_errors"]["factors"]
    assert ours["y"]["f1"] == [0.3, None, 0.6, 0.55]
    assert ours["y"]["accuracy"] == [0.2, None, 0.6, 0.5], "beside the accuracy of other runs"
    assert (errors["start"], ours["start"]) == ({"word_errors": 120}, {})
    path, count = write_page(tmp_path, tmp_path / "page.html")
    assert (count, '"validation F1"' in path.read_text()) == (4, True)


def test_columns_without_a_value_are_left_out(tmp_path):
    run = read_run(write_run(tmp_path / "run", [image_line(0)]))
    keys = [column.key for column in columns_of([run])]
    assert not {"tokens", "tokens_per_s", "lora_rank", "state_bytes", "clock"} & set(keys)
    assert {"algorithm", "final_accuracy", "peak_train_bytes", "status"} <= set(keys)


def test_a_run_of_one_s_own_method_has_the_same_page(tmp_path):
    """As the front door writes it: a method, a model and layers that no launch knows."""
    lines = [
        image_line(0, node=0, layers=["stem"], event="asleep"),
        image_line(1, node=[0, 1], layers=["stem", "tail"], cycle=0),
    ]
    ledger = [
        {"source": "server", "destination": "node0", "why": "gossip", "bytes": 3000},
        {"source": "node0", "destination": "node1", "why": "update", "bytes": 1000},
    ]
    config = {"algorithm": "my_method", "model": "my_package.nets:small", "dataset": "own"}
    write_run(tmp_path / "mine", lines, config, ledger=ledger)
    data = page_data(find_runs(tmp_path), "")
    (run,) = data["runs"]
    shown = texts(run)
    assert (shown["algorithm"], shown["model"]) == ("my_method", "my_package.nets:small")
    assert run["layers"] == ["stem", "tail"]
    assert run["visits"][0] | {"layers": [0], "event": "asleep"} == run["visits"][0]
    assert run["ledger"]["reasons"] == ["update", "gossip"]
    assert run["x"]["iterations_per_node"] == [5, 10]


def test_no_report_asks_for_a_method_by_its_name():
    """Reports read what runs recorded. (Pictures may speak of a snake: the shape that is drawn.)"""
    names = r"""["'](snake|fedavg|sequential|centralised|split|splitfed|accelerated_fl)["']"""
    for path in sorted(REPORT.iterdir()):
        if path.suffix == ".py":
            assert not re.search(names, path.read_text()), path.name


def test_no_report_asks_which_figure_of_merit_it_is():
    names = r"\b(ACCURACY|PERPLEXITY)\b"
    for path in sorted(REPORT.glob("*.py")):
        if path.name != "merits.py":
            assert not re.search(names, path.read_text()), path.name
