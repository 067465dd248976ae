"""Pictures of fine-tuning runs: what is drawn, on which axes, and that 26 layers can be read."""

import itertools

import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.report import figures, plots
from snake_jax.report.figures import Line, plot_figure
from snake_jax.report.plots import layer_order, plot_curves, plot_run
from snake_jax.report.runs import read_run, read_runs
from tests.run_folders import (
    BEFORE,
    BLOCKS,
    image_line,
    language_config,
    language_line,
    language_summary,
    write_language_fedavg,
    write_language_snake,
    write_run,
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    kept = []
    for module in (plots, figures):
        monkeypatch.setattr(module, "save", lambda picture, path: kept.append(picture) or path)
    return kept


@pytest.fixture
def pair(tmp_path):
    return read_runs(
        [write_language_snake(tmp_path / "snake"), write_language_fedavg(tmp_path / "fedavg")]
    )


def from_scratch(path):
    """A run whose perplexity falls from 259 to 4.2."""
    lines = [language_line(visit, 4 + 252 * 0.5**visit) for visit in range(11)]
    return read_run(
        write_run(
            path, lines, language_config(), summary=language_summary(lines, perplexity_before=259.0)
        )
    )


def test_curves_are_of_perplexity_on_tokens_too(drawn, pair):
    plot_curves(pair, "curves.png")
    panels = drawn[0].axes
    labels = [panel.get_xlabel() for panel in panels[:5]]
    assert labels == [
        "iterations (thousands)",
        "tokens seen (millions)",
        "bytes sent, up and down (GB)",
        "training work (PFLOP)",
        "training time (min)",
    ]
    assert panels[0].get_ylabel() == "held-out perplexity"
    np.testing.assert_array_equal(panels[1].lines[1].get_xdata(), [0, 1.44, 2.88, 4.32])
    np.testing.assert_array_equal(panels[1].lines[1].get_ydata(), [BEFORE, 9.0, 7.5, 7.0])
    assert "perplexity 6.33\n2.72 GB sent" in panels[5].get_legend().texts[0].get_text()


def test_other_axes_can_be_asked_for(drawn, pair):
    plot_curves(pair, "curves.png", ["examples"])
    assert drawn[0].axes[0].get_xlabel() == "examples seen (thousands)"


def shown_ticks(panel):
    low, high = panel.get_ylim()
    panel.figure.draw_without_rendering()
    return [
        tick.get_text() for tick in panel.get_yticklabels() if low <= tick.get_position()[1] <= high
    ]


def test_an_axis_is_logarithmic_where_perplexity_spans_much(drawn, pair, tmp_path):
    plot_run(pair[0], "run.png")
    plot_run(from_scratch(tmp_path / "scratch"), "run.png")
    plot_curves([pair[0], from_scratch(tmp_path / "other")], "curves.png")
    linear, logarithmic, both = (figure.axes[0] for figure in drawn)
    assert [panel.get_yscale() for panel in (linear, logarithmic, both)] == ["linear", "log", "log"]
    assert shown_ticks(logarithmic) == ["5", "10", "20", "50", "100", "200"]
    assert {panel.get_yscale() for panel in drawn[2].axes[:5]} == {"log"}


def test_four_to_twenty_has_ticks_enough(drawn, tmp_path):
    lines = [language_line(0, 20.0), language_line(1, 6.0)]
    plot_run(read_run(write_run(tmp_path / "run", lines)), "run.png")
    assert shown_ticks(drawn[0].axes[0]) == ["6", "8", "10", "15", "20"]


def test_the_loss_is_held_out_and_the_caption_short(drawn, pair):
    plot_run(pair[0], "run.png")
    panels = drawn[0].axes
    assert [text.get_text() for text in panels[1].get_legend().texts] == ["training", "held-out"]
    assert panels[0].get_title() == "snake: snake, opt-1.3b, rm-static, by_category, 24 nodes"


@pytest.mark.parametrize("which", [0, 1])
def test_names_of_many_layers_do_not_touch(drawn, pair, which):
    plot_run(pair[which], "run.png")
    figure = drawn[0]
    figure.draw_without_rendering()
    names = [label for label in figure.axes[3].get_yticklabels() if label.get_text()]
    assert len(names) == [24, 26][which]
    boxes = [label.get_window_extent() for label in names]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert figure.get_size_inches()[1] < 11


def test_numbers_in_the_strip_fit_their_row(drawn, tmp_path):
    plot_run(read_run(write_language_snake(tmp_path / "run", 48)), "run.png")
    strip = drawn[0].axes[3]
    drawn[0].draw_without_rendering()
    row = abs(strip.transData.transform((0, 1))[1] - strip.transData.transform((0, 0))[1])
    assert len(strip.texts) == 48
    assert max(text.get_window_extent().height for text in strip.texts) < 0.9 * row


def test_embedding_and_head_are_the_ends_of_the_order():
    separately = [
        {"layers": [name]} for name in ("head", "block_10.lora", "embed", "block_02.lora")
    ]
    assert layer_order(separately) == ["embed", "block_02.lora", "block_10.lora", "head"]
    together = [{"layers": ["embed", name, "head"]} for name in reversed(BLOCKS)]
    assert layer_order(together) == ["embed", *BLOCKS, "head"]


def test_a_figure_of_the_papers_marks_the_target(drawn, pair, tmp_path):
    lines = [Line("snake", pair[:1], 0), Line("fedavg", pair[1:], 1)]
    plot_figure(
        {"IID": lines, "by category": [Line("scratch", [from_scratch(tmp_path / "a")], 2)]},
        "a.png",
        "x",
        8.0,
    )
    panels = drawn[0].axes
    labels = [panel.get_xlabel() for panel in panels[4:]][:2]
    assert labels == ["iterations per node", "bytes sent, up and down (GB)"]
    assert (panels[0].get_ylabel(), panels[0].get_yscale()) == ("IID\nheld-out perplexity", "log")
    assert panels[1].lines[-1].get_ydata() == [8.0, 8.0]


def test_pictures_of_both_kinds_are_refused(drawn, pair, tmp_path):
    images = read_run(write_run(tmp_path / "images", [image_line(visit) for visit in range(4)]))
    with pytest.raises(UserError, match="no common measure"):
        plot_curves([pair[0], images], "curves.png")
    with pytest.raises(UserError, match="no common measure"):
        plot_figure(
            {"IID": [Line("one", [images], 0), Line("two", pair, 1)]}, "figure.png", "title"
        )
    assert drawn == []


def test_nothing_evaluated_yet_is_drawn(drawn, tmp_path):
    run = read_run(write_run(tmp_path / "run", [language_line(0), language_line(1)]))
    plot_run(run, "run.png")
    plot_curves([run], "curves.png")
    assert "no perplexity yet" in drawn[1].axes[5].get_legend().texts[0].get_text()
