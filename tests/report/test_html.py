"""The report page: what goes into it, and the launch that writes it."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.models import registry
from snake_jax.report.html import find_runs, page, page_data, write_page
from snake_jax.runs import front
from tests.launches import Launcher
from tests.page_runs import LAYERS, NASTY, line, write_runs
from tests.run_folders import lines_of, write_language_fedavg, write_language_snake, write_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("all") / "runs")


@pytest.fixture(scope="session")
def data(folder):
    return page_data(find_runs(folder), "Runs & more")


def texts(run):
    return {key: cell["text"] for key, cell in run["cells"].items()}


def test_runs_are_found_at_any_depth_and_named_by_their_path(data):
    names = ["a_snake", "c <script>alert(1)</script>", "deep/er/b_fedavg"]
    assert [run["name"] for run in data["runs"]] == names


def test_a_run_can_be_given_itself(folder):
    (run,) = find_runs(folder / "a_snake")
    assert run.name == "a_snake"


def test_the_runs_table(data):
    snake, unfinished, fedavg = map(texts, data["runs"])
    assert snake["status"] == "finished"
    assert unfinished["status"] == "1 of 2 cycles"
    assert (snake["iterations"], snake["bytes_up"], snake["bytes_down"]) == (
        "60",
        "6.00 kB",
        "30.0 kB",
    )
    assert (snake["flops"], snake["seconds"], snake["clock"]) == ("12.0 GFLOP", "3.00 s", "12.0 s")
    assert (snake["final_accuracy"], fedavg["final_accuracy"]) == ("61.0 %", "70.0 %")
    assert (snake["peak_train_bytes"], unfinished["peak_train_bytes"]) == ("50.0 MB", "–")
    assert (snake["partition"], unfinished["partition"], fedavg["clock"]) == ("iid", "–", "–")
    assert {column["key"] for column in data["columns"]} == set(snake)


def test_axes_add_up_and_are_there_where_something_was_measured(data):
    snake, unfinished, fedavg = (run["x"] for run in data["runs"])
    assert snake["bytes"] == [6000, 12000, 18000, 24000, 30000, 36000]
    assert snake["clock"] == [2, 4, 6, 8, 10, 12]
    assert "clock" not in fedavg
    assert fedavg["iterations_per_node"] == [10, 20]
    assert unfinished["number"] == [1]
    assert {axis["key"] for axis in data["axes"]} == set(snake)
    assert data["runs"][0]["y"]["accuracy"] == [0.2, None, 0.6] * 2
    assert data["runs"][1]["y"]["loss"] == [None], "JSON has no NaN"


def test_axes_that_no_run_measured_are_left_out(folder):
    keys = {axis["key"] for axis in page_data(find_runs(folder / "deep"), "deep")["axes"]}
    assert "clock" not in keys
    assert "iterations" in keys


def test_the_ledger_adds_up_to_the_metrics(data):
    snake, unfinished, fedavg = (run["ledger"] for run in data["runs"])
    assert unfinished is None
    assert snake["reasons"] == ["initial", "catch-up", "update"]
    server, *nodes = snake["places"]
    assert server == {"name": "server", "sent": [15000, 15000, 0], "received": [0, 0, 6000]}
    assert nodes == [
        {"name": f"node{n}", "sent": [0, 0, 2000], "received": [5000, 5000, 0]} for n in range(3)
    ]
    assert (
        (fedavg["bytes_up"], fedavg["bytes_down"])
        == (fedavg["metrics_up"], fedavg["metrics_down"])
        == (6000, 30000)
    )


def test_events_are_told_from_the_first_one_on(data):
    snake, unfinished, fedavg = (run["events"] for run in data["runs"])
    assert [event["time"] for event in snake] == [0.0, 90.5, 92.0]
    assert [event["event"] for event in snake] == ["admitted", "lost", "taken over"]
    assert snake[1]["cause"] == NASTY
    assert unfinished == fedavg == []


def test_ledgers_of_runs_add_up_to_their_summaries(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8), np.arange(40) % 4
    model = registry.build("mlp", 4, (4, 4, 3), width=0.1)
    for algorithm in ("snake", "fedavg"):
        job = front.Job(model, algorithm, nodes=3, cycles=2, eval_every=9)
        data = front.image_data(job, train=images, test=images)
        assert [*front.train(job, data, tmp_path / algorithm)]
    for run in find_runs(tmp_path):
        (found,) = page_data([run], "")["runs"]
        totals = found["ledger"]["bytes_up"], found["ledger"]["bytes_down"]
        assert totals == (run.summary["bytes_up"], run.summary["bytes_down"])
        assert sum(sum(place["sent"]) for place in found["ledger"]["places"]) == sum(totals)
        assert sum(sum(place["received"]) for place in found["ledger"]["places"]) == sum(totals)


def test_unknown_reasons_and_places_come_last_and_in_order(tmp_path):
    write_run(tmp_path / "run", [line(0)])
    rows = [
        ("node10", "node9", "update", 1),
        ("server", "node9", "gossip", 2),
        ("node9", "aux", "activations", 4),
    ]
    ledger = [
        dict(zip(("source", "destination", "why", "bytes"), row, strict=True)) for row in rows
    ]
    (tmp_path / "run" / "ledger.jsonl").write_text(lines_of(ledger) + '{"visit": 9, "sour')
    (found,) = page_data(find_runs(tmp_path), "")["runs"]
    assert found["ledger"]["reasons"] == ["update", "activations", "gossip"]
    assert [place["name"] for place in found["ledger"]["places"]] == [
        "server",
        "aux",
        "node9",
        "node10",
    ]
    assert (found["ledger"]["bytes_up"], found["ledger"]["bytes_down"]) == (5, 2)


def test_the_schedule_is_in_model_order(data):
    snake, _, fedavg = data["runs"]
    assert snake["layers"] == LAYERS
    assert snake["visits"][4] == {
        "visit": 4,
        "cycle": 1,
        "nodes": [1],
        "layers": [0, 2, 4],
        "event": "interrupted",
    }
    assert fedavg["visits"][0]["nodes"] == [0, 1, 2]


@pytest.fixture
def language(tmp_path):
    write_language_fedavg(tmp_path / "fedavg")
    write_language_snake(tmp_path / "snake", 12, finished=False)
    return tmp_path


def test_the_runs_table_of_language_runs(language):
    data = page_data(find_runs(language), "")
    fedavg, snake = map(texts, data["runs"])
    assert (fedavg["perplexity_before"], fedavg["perplexity_after"], fedavg["best_perplexity"]) == (
        "18.0",
        "7.00",
        "7.00",
    )
    assert (snake["perplexity_before"], snake["perplexity_after"]) == ("–", "12.6")
    assert (snake["model"], snake["dataset"], snake["lora_rank"], snake["frozen_dtype"]) == (
        "opt-1.3b",
        "rm-static",
        "128",
        "int8",
    )
    assert (snake["tokens"], snake["tokens_per_s"], snake["token_accuracy"]) == (
        "720,000",
        "4,000",
        "36.3 %",
    )
    assert (fedavg["trainable_params"], fedavg["state_bytes"]) == ("1,315,758,080", "21.0 GB")
    assert {column["key"] for column in data["columns"]} == set(snake)
    assert "final_accuracy" not in snake
    assert data["values"][0]["key"] == "perplexity"


def test_curves_of_language_runs(language):
    fedavg, snake = page_data(find_runs(language), "")["runs"]
    assert fedavg["y"]["perplexity"] == [9.0, 7.5, 7.0]
    assert fedavg["x"]["tokens"] == [1_440_000, 2_880_000, 4_320_000]
    assert (fedavg["start"], snake["start"]) == ({"perplexity": 18}, {})
    beside = {"token_accuracy", "text_exact_match", "token_test_loss", "token_loss"}
    assert set(snake["y"]) == {"perplexity", *beside}


def test_both_kinds_of_run_on_one_page_share_no_measure(language):
    write_run(language / "vgg", [line(0)], {"algorithm": "snake", "dataset": "digits"})
    data = page_data(find_runs(language), "")
    fedavg, _, vgg = data["runs"]
    assert not set(fedavg["y"]) & set(vgg["y"])
    assert (texts(fedavg)["final_accuracy"], texts(vgg)["perplexity_after"]) == ("–", "–")
    assert (texts(fedavg)["dataset"], texts(vgg)["dataset"], texts(vgg)["tokens"]) == (
        "rm-static",
        "digits",
        "–",
    )
    assert {axis["key"] for axis in data["axes"]} == set(fedavg["x"])


def test_bare_lines_are_enough(tmp_path):
    write_run(tmp_path / "run", [{"iterations": 1}])
    (run,) = page_data(find_runs(tmp_path), "")["runs"]
    assert texts(run)["status"] == "unfinished, 1 cycles"
    assert run["visits"] == [{"visit": 0, "cycle": None, "nodes": [], "layers": [], "event": ""}]


def test_without_config_the_summary_s_copy_serves(tmp_path):
    write_run(
        tmp_path / "run",
        [line(0)],
        summary={"final_accuracy": 0.5, "config": {"algorithm": "split"}},
    )
    (run,) = page_data(find_runs(tmp_path), "")["runs"]
    assert (run["config"], texts(run)["algorithm"]) == ({"algorithm": "split"}, "split")


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of the data script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self._inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.data += data if self._inside else ""


def test_nothing_from_a_run_becomes_markup(data):
    text = page(data)
    found = Elements(text)
    assert json.loads(found.data) == json.loads(json.dumps(data))
    assert found.data.count("<") == 0
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "<title>Runs &amp; more</title>" in text
    assert not re.search(r"\{\{\w+\}\}", text.replace(found.data, ""))


def test_the_page_refers_to_nothing_outside(data):
    text = page(data)
    assert set(re.findall(r"\w+://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    outside = []
    for _, attrs in Elements(text).tags:
        for key, value in attrs.items():
            if key in ("src", "href") and not value.startswith("#"):
                outside.append(value)
    assert outside == ["data:,"]
    assert not re.search(
        r"@import|url\(|\beval\(|innerHTML|insertAdjacentHTML|document\.write|new Function", text
    )


def test_the_same_runs_give_the_same_page(folder, tmp_path):
    first, second = (
        write_page(folder, tmp_path / name)[0].read_bytes() for name in ("one.html", "two.html")
    )
    assert first == second


def damage(file, text):
    return lambda root: (root / "run" / file).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: shutil.rmtree(root / "run"), "no runs in it"),
        (damage("metrics.jsonl", ""), "no runs in it"),
        (damage("metrics.jsonl", "{\n"), "metrics.jsonl, line 1: broken JSON"),
        (
            damage("ledger.jsonl", '\n{"source": "server"}\n'),
            "ledger.jsonl, line 2: no row of a ledger",
        ),
        (damage("ledger.jsonl", "[]\n"), "ledger.jsonl, line 1: no row of a ledger"),
        (lambda root: (root / "page").mkdir(), "cannot write the page"),
    ],
)
def test_wrong_input_is_named(tmp_path, change, message):
    write_run(tmp_path / "runs" / "run", [line(0)])
    change(tmp_path / "runs")
    with pytest.raises(UserError, match=message) as error:
        write_page(tmp_path / "runs", tmp_path / "runs" / "page")
    assert "\n" not in str(error.value)


@pytest.fixture
def report(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd, "report")


def test_the_launch_says_what_it_wrote(report, tmp_path):
    write_run(tmp_path / "runs" / "run", [line(0)])
    done = report(tmp_path / "runs")
    path = tmp_path / "runs" / "report.html"
    size = f"{path.stat().st_size / 1e3:.0f} kB"
    assert done == (0, f"{path}: 1 run, {size}\n", "")


def test_the_launch_teaches_and_refuses(report, tmp_path):
    taught = report("--help")
    assert (taught.code, taught.stderr) == (0, "")
    assert "snake-jax report RUNS_DIR [--output=report.html]" in taught.stdout
    for arguments, message in (((), "one folder of runs"), ((tmp_path,), "no runs in it")):
        done = report(*arguments)
        assert (done.code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert message in done.stderr
