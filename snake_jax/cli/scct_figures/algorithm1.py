"""Figure 6: the slowest device's seconds after every inner step of Algorithm 1.

The paper's axis says iterations and does not say of which loop. The outer loop stands still after
its first pass, so the inner steps are what there is to see: a subcarrier each, and the shares as
the last step of a pass.
"""

import dataclasses
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snake_jax.cli.scct_figures.scales import Study, StudySize
from snake_jax.report.canvas import COLOURS, logarithmic, look, new_figure
from snake_jax.scct import latency, mechanisms, paper, small
from snake_jax.scct.drawing import LAW, Law, drawn

SCARCE_FLOPS_PER_S = 3e12
"""An edge with a hundredth of Table III's arithmetic, where Algorithm 1 is far from the optimum."""
_CLOSE = 1.05  # of the pass's end: what a reader takes for convergence


class SearchCourse(TypedDict):
    """Algorithm 1 on one scenario; levels are means over the samples, without the cloud link.

    `close_at` is the first step from which on the level is within 5 % of the pass's end.
    """

    edge_flops_per_s: float
    nodes: int
    seed: int
    split: int
    levels_s: list[float]
    steps_of_a_pass: int
    passes: int
    close_at: int
    end_s: float
    exact_s: float
    mean_gap: float
    greatest_gap: float


class Algorithm1Numbers(TypedDict):
    """What the figure shows."""

    courses: list[SearchCourse]


def numbers(study: Study) -> Algorithm1Numbers:
    """Runs Algorithm 1 on every scenario, with Table III's edge and with a scarce one."""
    courses = []
    for edge_flops_per_s in (LAW.server.flops_per_s, SCARCE_FLOPS_PER_S):
        server = dataclasses.replace(LAW.server, flops_per_s=edge_flops_per_s)
        law = dataclasses.replace(LAW, server=server)
        for nodes in study.scale.nodes:
            study.note(f"figure 6: {nodes} devices, edge of {edge_flops_per_s:.3g} FLOP/s")
            for seed in study.scale.seeds:
                courses.append(_course(study.scale, law, nodes, seed))
    return {"courses": courses}


def draw(found: Algorithm1Numbers) -> Figure:
    """A panel for each edge; of each number of devices the first seed."""
    figure = new_figure(11.0, 4.4)
    edges = list(dict.fromkeys(course["edge_flops_per_s"] for course in found["courses"]))
    panels = figure.subplots(1, len(edges), squeeze=False)[0]
    for panel, edge_flops_per_s in zip(panels, edges, strict=True):
        first: dict[int, SearchCourse] = {}
        for course in found["courses"]:
            if course["edge_flops_per_s"] == edge_flops_per_s:
                first.setdefault(course["nodes"], course)
        _panel(panel, list(first.values()))
        panel.set_title(f"edge of {edge_flops_per_s / 1e12:g} TFLOPS", fontsize="medium")
    panels[0].set_ylabel("slowest device, s an iteration")
    figure.suptitle("Algorithm 1: every inner step of two passes, and the optimum (dotted)")
    return figure


def _course(scale: StudySize, law: Law, nodes: int, seed: int) -> SearchCourse:
    scenario = drawn(seed, nodes, scale.subcarriers, scale.samples, law)
    splits = mechanisms.common(scenario, mechanisms.COMMON)
    steps = paper.algorithm1(latency.problem(scenario, splits))
    best_s = small.solve(scenario, splits).iteration_s
    each_s = np.array(steps.levels_s)
    gaps = each_s[-1] / best_s - 1
    levels_s = each_s.mean(axis=1)
    # A pass hands out K - N subcarriers and then the shares.
    length = scale.subcarriers - nodes + 1
    far = np.flatnonzero(levels_s[:length] > _CLOSE * levels_s[length - 1])
    return {
        "edge_flops_per_s": law.server.flops_per_s,
        "nodes": nodes,
        "seed": seed,
        "split": mechanisms.COMMON,
        "levels_s": levels_s.tolist(),
        "steps_of_a_pass": length,
        "passes": steps.passes,
        "close_at": int(far[-1]) + 2 if len(far) else 1,
        "end_s": float(levels_s[-1]),
        "exact_s": float(best_s.mean()),
        "mean_gap": float(gaps.mean()),
        "greatest_gap": float(gaps.max()),
    }


def _panel(panel: Axes, courses: list[SearchCourse]) -> None:
    for colour, course in zip(COLOURS, courses, strict=False):
        shown = course["levels_s"][: 2 * course["steps_of_a_pass"]]
        steps = range(1, len(shown) + 1)
        label = f"N = {course['nodes']}, gap {100 * course['mean_gap']:.1f} %"
        panel.plot(steps, shown, color=colour, label=label)
        panel.axhline(course["exact_s"], color=colour, linestyle=":", linewidth=1.2)
        panel.axvline(course["steps_of_a_pass"], color=colour, linewidth=0.6, alpha=0.6)
    most_s = max(max(course["levels_s"]) for course in courses)
    least_s = min(course["exact_s"] for course in courses)
    logarithmic(panel, most_s / least_s)
    panel.set_xlabel("inner steps (line: a pass ends)")
    look(panel)
    panel.legend(frameon=False, fontsize="small")
