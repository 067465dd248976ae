"""Bands over seeds, positions per node, and pictures that are drawn."""

from pathlib import Path

import numpy as np

from experiments.reproduction import language, language_figures
from snake_jax.report import figures
from snake_jax.report.figures import Line, band, curve_on, plot_figure, plot_layers
from snake_jax.report.runs import Run


def run_of(accuracies, nodes=4):
    lines = [
        {
            "iterations": 8,
            "examples": 256,
            "bytes_up": 10,
            "bytes_down": 5,
            "train_flops": 100,
            "accuracy": accuracy,
        }
        for accuracy in accuracies
    ]
    return Run(Path("run"), {"nodes": nodes}, lines, None, "run")


def test_iterations_are_counted_per_node():
    x, y = curve_on(run_of([None, 0.2, 0.4]), "iterations_per_node")
    np.testing.assert_array_equal(x, [4, 6])
    np.testing.assert_array_equal(y, [0.2, 0.4])


def test_a_band_is_the_mean_least_and_greatest_where_all_seeds_are():
    found = band([run_of([0.1, 0.5, 0.9]), run_of([0.3, 0.6])], "bytes")
    np.testing.assert_allclose(found.x, [15, 30])
    np.testing.assert_allclose(found.mean, [0.2, 0.55])
    np.testing.assert_allclose(found.low, [0.1, 0.5])
    np.testing.assert_allclose(found.high, [0.3, 0.6])


def test_pictures_are_drawn(tmp_path):
    lines = [
        Line("one", [run_of([0.1, 0.2])], 0),
        Line("two", [run_of([0.1, 0.3]), run_of([0.2, 0.5])], 1, 2),
    ]
    drawn = plot_figure({"IID": lines, "Non-IID": lines[:1]}, tmp_path / "a.png", "title", 0.3)
    bars = plot_layers(["conv1", "fc2"], {"parameters": [0.1, 0.9]}, tmp_path / "b.png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (drawn, bars))


def test_no_row_runs_out_of_the_axis_that_it_shares(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda picture, path: kept.append(picture) or path)
    rows = {
        "short": [Line("one", [run_of([0.1])], 0)],
        "long": [Line("two", [run_of([0.1, 0.2, 0.3])], 1)],
    }
    for ordered in (rows, dict(reversed(rows.items()))):
        plot_figure(ordered, tmp_path / "a.png", "title")
        panels = kept.pop().axes
        assert panels
        for panel in panels:
            _, end = panel.get_xlim()
            for line in panel.lines:
                assert line.get_xdata().max() <= end


def perplexity_run(values, before):
    lines = [
        {
            "iterations": 8,
            "tokens": 512,
            "bytes_up": 10,
            "bytes_down": 5,
            "train_flops": 9,
            "train_s": 1.0,
        }
        | {"perplexity": value}
        for value in values
    ]
    return Run(Path("run"), {"nodes": 4}, lines, {"perplexity_before": before}, "run")


def test_a_figure_of_fine_tuning_has_a_row_for_each_e_and_a_look_for_each_method(tmp_path):
    scale = language.SCALES["smoke"]._replace(seeds=(0, 1))
    found = {case: perplexity_run([30.0, 20.0], 80.0) for case in language.of_figure("6", scale)}
    rows = language_figures.lines("6", found)
    labels = [method.label for method in language.METHODS.values()]
    assert list(rows) == ["E = 1", "E = 3"]
    for lines in rows.values():
        assert [line.label for line in lines] == labels
        assert [len(line.runs) for line in lines] == [2] * len(labels)
    assert len({(line.colour, line.style) for line in rows["E = 1"]}) == len(labels)
    assert [line[2:] for line in rows["E = 1"]] == [line[2:] for line in rows["E = 3"]]
    assert plot_figure(rows, tmp_path / "a.png", "title").read_bytes().startswith(b"\x89PNG")
