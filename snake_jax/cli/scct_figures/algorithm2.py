"""Figure 7: the way of Algorithm 2 to its split points, and the bound that none of them pass."""

from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from snake_jax.cli.scct_figures.scales import Study, StudySize
from snake_jax.report.canvas import COLOURS, look, new_figure
from snake_jax.scct import bound, large, latency, mechanisms, small
from snake_jax.scct.adaptive import AdaptiveSettings
from snake_jax.scct.drawing import drawn, resampled

FRESH_SEED = 1_000_000_007
"""Of samples that nothing was chosen for; far from the scenarios' own seeds."""
_CLOSE = 1.001  # of the end: what a reader takes for convergence


class AdaptiveCourse(TypedDict):
    """Searches on one scenario; seconds of an iteration, the fixed cloud link among them.

    Attributes:
      seed: of scenario and search.
      current_s: where Algorithm 2 stood after each iteration, from one common split point.
      best_s: its best until then.
      close_at: the first iteration from which on its best is within 0.1 % of its end.
      descent_s: where descent from one layer a device ends.
      polished_s: where Algorithm 2 ends with descent before and after it, as `--splits=alns` has
        it.
      bound_s: that no split points pass.
      cloud_link_s: the same whatever is chosen.
      gap: of `polished_s` to the bound.
      gap_of_rest: the same without the cloud link.
      fresh_s: of the split points of `polished_s` on fresh samples.
      fresh_gap_of_rest: to the fresh samples' own bound, without the cloud link.
      splits: of `polished_s`.
    """

    seed: int
    current_s: list[float]
    best_s: list[float]
    close_at: int
    descent_s: float
    polished_s: float
    bound_s: float
    cloud_link_s: float
    gap: float
    gap_of_rest: float
    fresh_s: float
    fresh_gap_of_rest: float
    splits: list[int]


class Algorithm2Numbers(TypedDict):
    """What the figure shows."""

    nodes: int
    courses: list[AdaptiveCourse]


def numbers(study: Study) -> Algorithm2Numbers:
    """The searches for every seed, on the scale's largest number of devices."""
    nodes = study.scale.nodes[-1]
    courses = []
    for seed in study.scale.seeds:
        study.note(f"figure 7: {nodes} devices, seed {seed}")
        courses.append(_course(study.scale, nodes, seed))
    return {"nodes": nodes, "courses": courses}


def draw(found: Algorithm2Numbers) -> Figure:
    """Current and best of the first seed, the bound, and where the others end."""
    course = found["courses"][0]
    figure = new_figure(9.0, 4.6)
    panel = figure.subplots()
    steps = range(len(course["best_s"]))
    panel.plot(steps, course["current_s"], color=COLOURS[5], linewidth=1.0, label="current")
    panel.plot(steps, course["best_s"], color=COLOURS[0], label="best")
    panel.axhline(course["descent_s"], color=COLOURS[1], linestyle="--", label="end of descent")
    panel.axhline(course["bound_s"], color=COLOURS[2], linestyle=":", label="bound")
    panel.set_xlabel("iterations of Algorithm 2")
    panel.set_ylabel("seconds of an iteration of training")
    panel.set_title(
        f"N = {found['nodes']}; with descent {100 * course['gap']:.2f} % above the bound, "
        f"{100 * course['gap_of_rest']:.2f} % without the fixed cloud link",
        fontsize="medium",
    )
    look(panel)
    panel.legend(frameon=False)
    return figure


def _course(scale: StudySize, nodes: int, seed: int) -> AdaptiveCourse:
    scenario = drawn(seed, nodes, scale.subcarriers, scale.samples)
    iterations = scenario.epochs * scenario.iterations
    fixed_s = latency.cloud_link_s(scenario.model, scenario.cloud, nodes)
    # As the paper has it, from a start that is far from good.
    start = mechanisms.common(scenario, mechanisms.COMMON)
    alone = large.solve(
        scenario, "alns", seed, settings=AdaptiveSettings(descends=False), start=start
    )
    best_s = np.array([step.best_s for step in alone.history]) / iterations
    current_s = np.array([step.current_s for step in alone.history]) / iterations
    far = np.flatnonzero(best_s > _CLOSE * best_s[-1])
    # As this library has it.
    polished = large.solve(scenario, "alns", seed)
    descent = large.solve(scenario, "descent", seed)
    polished_s, bound_s = polished.objective_s / iterations, polished.bound_s / iterations
    # On samples that nothing was chosen for.
    fresh = resampled(scenario, FRESH_SEED + seed, scale.samples)
    fresh_s = float(small.values(fresh, polished.splits[None])[0]) / iterations
    fresh_bound_s = bound.wait_and_see(fresh).objective_s / iterations
    return {
        "seed": seed,
        "current_s": current_s.tolist(),
        "best_s": best_s.tolist(),
        "close_at": int(far[-1]) + 1 if len(far) else 0,
        "descent_s": descent.objective_s / iterations,
        "polished_s": polished_s,
        "bound_s": bound_s,
        "cloud_link_s": fixed_s,
        "gap": polished_s / bound_s - 1,
        "gap_of_rest": (polished_s - fixed_s) / (bound_s - fixed_s) - 1,
        "fresh_s": fresh_s,
        "fresh_gap_of_rest": (fresh_s - fixed_s) / (fresh_bound_s - fixed_s) - 1,
        "splits": polished.splits.tolist(),
    }
