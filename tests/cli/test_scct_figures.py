"""Figures of `snake-jax scct`: drawn at smoke scale, and the committed ones beside what the page
says of them.
"""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from snake_jax.cli.scct_figures import algorithm1, compared, write
from snake_jax.cli.scct_figures.scales import SCALES
from snake_jax.report.canvas import save
from snake_jax.scct.drawing import LAW
from tests.launches import ROOT, Launcher


@pytest.fixture
def run(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd, "scct")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.mark.parametrize("figure", write.FIGURES)
def test_a_figure_is_drawn_and_says_how(figure, run, drawn):
    ended = run(f"--figure={figure}", "--scale=smoke", f"--out={drawn}")
    assert ended.code == 0, ended.stderr
    name, _ = write.FIGURES[figure]
    picture, plain = drawn / f"{name}.png", drawn / f"{name}.json"
    assert ended.stdout == f"{picture}\n{plain}\n"
    assert np.ptp(imread(picture)[..., :3]) > 0.5
    said = json.loads(plain.read_text())
    assert said["command"] == f"snake-jax scct --figure={figure} --scale=smoke --out={drawn}"
    assert said["settings"]["seeds"] == list(SCALES["smoke"].seeds)
    assert {"processor", "cores", "load_1min"} <= set(said["machine"])


# Committed results


def committed(name):
    return json.loads((ROOT / f"experiments/results/scct/{name}.json").read_text())


def mean_s(nodes, mechanism, part="rest_s"):
    return compared.mean_of(committed("figure9")["numbers"], nodes, mechanism, part)


@pytest.mark.parametrize("figure", write.FIGURES)
def test_committed_figures_are_of_the_large_scale_and_can_be_drawn_again(figure, tmp_path):
    name, maker = write.FIGURES[figure]
    said = committed(name)
    line = f"snake-jax scct --figure={figure} --scale=cpu --out=experiments/results/scct"
    assert said["command"] == line
    assert said["settings"] == json.loads(json.dumps(SCALES["cpu"]._asdict()))
    drawn = save(maker.draw(said["numbers"]), tmp_path / f"{name}.png")
    there = imread(ROOT / f"experiments/results/scct/{name}.png")
    assert imread(drawn).shape == there.shape


def test_committed_mechanisms_are_in_the_order_of_what_they_may_choose():
    bars = {}
    for bar in committed("figure9")["numbers"]["bars"]:
        bars.setdefault((bar["nodes"], bar["seed"]), {})[bar["mechanism"]] = bar["rest_s"]
    assert len(bars) == 9
    papers = [key for key, rest_s in bars.items() if rest_s["SCCTL"] < rest_s["SCCTS"]]
    assert papers == [(10, 0)]
    for rest_s in bars.values():
        assert rest_s["SCCTT"] <= min(rest_s["SCCTL"], rest_s["SCCTS best"])
        assert rest_s["SCCTS best"] <= rest_s["SCCTS"]
        assert rest_s["SCCTT"] <= rest_s["SCCTT by Algorithm 1"]


def test_committed_searches_lie_between_their_bound_and_descent():
    for course in committed("figure7")["numbers"]["courses"]:
        assert course["bound_s"] <= course["polished_s"] <= course["descent_s"]
        assert course["polished_s"] <= course["bound_s"] * 1.005


def test_a_second_pass_of_algorithm_1_ends_where_the_first_did():
    for course in committed("figure6")["numbers"]["courses"]:
        assert course["passes"] == 2
        first_s = course["levels_s"][course["steps_of_a_pass"] - 1]
        assert course["end_s"] == pytest.approx(first_s, rel=1e-12)
        assert course["exact_s"] <= course["end_s"]


def test_the_page_tells_the_committed_numbers():
    page = (ROOT / "docs/scct.md").read_text()
    for nodes in (10, 20, 30):
        cells = [str(nodes), f"{mean_s(nodes, 'SCCTT', 'cloud_link_s'):.3f}"]
        for mechanism in compared.ORDER[:-1]:
            cells.append(f"{mean_s(nodes, mechanism):.3f}")
        cells.append(f"{mean_s(nodes, 'CloudO'):.4f}")
        assert f"| {' | '.join(cells)} |" in page
    courses = committed("figure6")["numbers"]["courses"]
    for scarce in (False, True):
        edge = algorithm1.SCARCE_FLOPS_PER_S if scarce else LAW.server.flops_per_s
        gaps = [course for course in courses if course["edge_flops_per_s"] == edge]
        means = [100 * course["mean_gap"] for course in gaps]
        most = 100 * max(course["greatest_gap"] for course in gaps)
        digits = 1 if scarce else 2
        assert f"{min(means):.{digits}f} to {max(means):.{digits}f} %" in page
        assert f"{most:.1f} % at most" in page
    searches = committed("figure7")["numbers"]["courses"]
    gap = 100 * max(course["gap"] for course in searches)
    rest = 100 * max(course["gap_of_rest"] for course in searches)
    assert f"At most {gap:.2f} % above the bound, {rest:.2f} % of the part" in page
    close = [course["close_at"] for course in searches]
    assert f"after {min(close)} to {max(close)} iterations" in page
    first = searches[0]
    assert f"{first['fresh_s']:.2f} s in the place of {first['polished_s']:.2f}" in page
