"""The comparison of all methods that fine-tune: the same text in every run, and what it took."""

import json

import pytest

from experiments.reproduction import cases, kept, methods_text, methods_text_figures
from experiments.reproduction.cases import Case, Given
from experiments.reproduction.runs import Study
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.runs import loop
from tests.experiments.test_reproduce import launch
from tests.sweeps import sweep

SCALES = methods_text.SCALES
SOURCES = {"model": "tiny-llama", "data": "pydoc"}


def test_every_method_that_fine_tunes_has_a_run():
    compared = set()
    for name, method in methods_text.METHODS.items():
        compared.add(method.flags.get("algorithm", name))
    assert compared == {name for name, one in ALGORITHMS.items() if not one.local_losses}
    found = methods_text.of_figure(methods_text.FIGURE, SCALES["cpu"])
    assert len(found) == len(methods_text.METHODS) * 2 * 3
    assert len({cases.name(case, 0.1) for case in found}) == len(found)


@pytest.mark.parametrize("partition", sweep(methods_text.PARTITIONS, quick=["iid"]))
@pytest.mark.parametrize(
    "method", sweep(methods_text.METHODS, quick=["snake_three", "fedpart", "lisa", "split"])
)
def test_a_run_is_planned_to_pass_all_text_as_often_as_the_others(method, partition):
    scale = SCALES["smoke"]
    setup = loop.prepare(methods_text.config_of(Case(method, partition), scale, SOURCES, 0.1))
    rounds = loop.planned(setup)

    # In one place a whole visit passes all nodes' text, at a node its own.
    whole = 1.0 if setup.algorithm.at_server else 1 / setup.config.nodes
    passed = 0.0
    for visits in rounds:
        for visit in visits:
            begin, end = visit.share
            passed += (end - begin) * whole
    assert passed == pytest.approx(scale.cycles[1])
    assert len(rounds) == 3 * setup.config.eval_every


def test_what_does_not_tune_reads_no_part_of_the_text_for_it():
    topic = methods_text.TOPIC
    assert topic.sources("smoke", SCALES["smoke"], Given()) == SOURCES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_methods_from_one_launch(tmp_path):
    flags = ("--figure=methods_text", "--scale=smoke", f"--results={tmp_path / 'results'}")
    flags += (f"--workdir={tmp_path / 'runs'}",)
    ((code, out, errors), again, redrawn) = launch(flags, flags, [*flags, "--redraw"])
    assert (code, errors) == (0, "")
    assert "run 1 of 42: " in out
    assert "42 of 42 runs were finished before" in again[1]
    folder = tmp_path / "results/smoke_methods_text"
    assert (folder / "methods_text.png").read_bytes().startswith(b"\x89PNG")
    assert redrawn[0] == 0

    # All passed the same texts; bytes and work are the sums of the lines that are kept.
    found = json.loads((folder / "methods_text.json").read_text())
    assert found["missing"] == []
    for partition in methods_text.PARTITIONS:
        rows = [row for row in found["rows"] if row["partition"] == partition]
        assert len({row["examples"] for row in rows}) == 1
        assert len({row["tokens"] for row in rows}) == 1
    runs = kept.read_runs(folder / kept.FILE)
    for row in found["rows"]:
        lines = runs[row["run"]].metrics
        assert row["train_flops"] == sum(line["train_flops"] for line in lines)
        assert row["bytes"] == sum(line["bytes_up"] + line["bytes_down"] for line in lines)
        assert row["final_perplexity"] == lines[-1]["perplexity"]
        assert row["worst_tenth"] == lines[-1]["node_perplexity_worst_tenth"]
    seconds = {row["method"]: row["simulated_s"] for row in found["rows"]}
    assert seconds["snake_three"] < seconds["snake_lora"]
    text = (folder / "methods_text.md").read_text()
    for method in methods_text.METHODS.values():
        assert f"| {method.label} |" in text


def test_a_case_of_several_seeds_is_one_line_of_its_partition(tmp_path):
    rows = []
    for seed, perplexity in enumerate((20.0, 40.0)):
        rows.append(
            {
                "method": "lisa",
                "partition": "by_category",
                "epochs": 1,
                "seed": seed,
                "finished": True,
                "skipped_visits": 0,
                "learning_rate": 0.001,
                "perplexity_before": 76.0,
                "final_perplexity": perplexity,
                "node_mean": perplexity,
                "worst_tenth": 2 * perplexity,
                "bytes": 1e6,
                "train_flops": 1e9,
                "memory": None,
                "simulated_s": 3.0,
            }
        )
    place = tmp_path, tmp_path
    sources = {
        "model": "/home/someone/stories",
        "data": "/home/someone/a.jsonl,/home/someone/b.jsonl",
    }
    study = Study(methods_text.TOPIC, "cpu", SCALES["cpu"], sources, *place, {})
    about, heading, table = methods_text_figures.sections(study, "methods_text", rows, {})
    assert heading == "## by data set"
    assert "stories on a.jsonl,b.jsonl" in about
    assert "before training the perplexity is 76" in about
    line = table.splitlines()[-1]
    assert line.startswith("| LISA, whole blocks and ends (2 seeds) | 30.0 (20.0 to 40.0) |")
    assert "| 60.0 (40.0 to 80.0) | 1.00 MB (1.00 MB to 1.00 MB) |" in line
    picture = methods_text_figures.draw(
        study, "methods_text", rows, {}, tmp_path / "methods.png", "two seeds"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
