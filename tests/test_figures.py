"""Bands over seeds, positions per node, and pictures that are drawn."""

from pathlib import Path

import numpy as np

from snake_jax.report import figures
from snake_jax.report.figures import Line, band, curve_on, plot_figure, plot_layers
from snake_jax.report.runs import Run


def run_of(accuracies, nodes=4):
    lines = [
        {"iterations": 8, "examples": 256, "bytes_up": 10, "bytes_down": 5, "train_flops": 100, "accuracy": accuracy}
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
    lines = [Line("one", [run_of([0.1, 0.2])], 0), Line("two", [run_of([0.1, 0.3]), run_of([0.2, 0.5])], 1, 2)]
    drawn = plot_figure({"IID": lines, "Non-IID": lines[:1]}, tmp_path / "a.png", "title", 0.3)
    bars = plot_layers(["conv1", "fc2"], {"parameters": [0.1, 0.9]}, tmp_path / "b.png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (drawn, bars))


def test_no_row_runs_out_of_the_axis_that_it_shares(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda picture, path: kept.append(picture) or path)
    rows = {"short": [Line("one", [run_of([0.1])], 0)], "long": [Line("two", [run_of([0.1, 0.2, 0.3])], 1)]}
    for ordered in (rows, dict(reversed(rows.items()))):
        plot_figure(ordered, tmp_path / "a.png", "title")
        panels = kept.pop().axes
        assert all(line.get_xdata().max() <= panel.get_xlim()[1] for panel in panels for line in panel.lines)
