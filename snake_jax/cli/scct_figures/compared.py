"""Figure 9: the seconds of an iteration of four mechanisms for 10, 20 and 30 devices."""

from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snake_jax.cli.scct_figures.scales import Study
from snake_jax.report.canvas import COLOURS, look, new_figure
from snake_jax.report.units import significant
from snake_jax.scct import mechanisms
from snake_jax.scct.drawing import drawn
from snake_jax.scct.mechanisms import IterationSeconds
from snake_jax.scct.scenario import Scenario

ORDER = ("SCCTT", "SCCTT by Algorithm 1", "SCCTL", "SCCTS", "SCCTS best", "CloudO")
_DRAWN = ("SCCTT", "SCCTL", "SCCTS", "CloudO")  # what the paper's figure has


class Bar(TypedDict):
    """A mechanism on one scenario: seconds of an iteration, by where they pass.

    `cloud_link_s` and `cloud_s` are the same whatever is chosen, `rest_s` is not.
    """

    nodes: int
    seed: int
    mechanism: str
    cloud_link_s: float
    cloud_s: float
    rest_s: float
    iteration_s: float
    splits: list[int]


class ComparedNumbers(TypedDict):
    """What the figure shows."""

    cloud_flops_per_s: float
    bars: list[Bar]


def numbers(study: Study) -> ComparedNumbers:
    """Every mechanism on every scenario."""
    bars = []
    for nodes in study.scale.nodes:
        for seed in study.scale.seeds:
            study.note(f"figure 9: {nodes} devices, seed {seed}")
            scenario = drawn(seed, nodes, study.scale.subcarriers, study.scale.samples)
            cloud_s = 0.0
            if study.cloud_flops_per_s:
                cloud_s = mechanisms.cloud_s(scenario, study.cloud_flops_per_s)
            for outcome in _outcomes(scenario, seed):
                bars.append(_bar(nodes, seed, outcome, cloud_s))
    return {"cloud_flops_per_s": study.cloud_flops_per_s, "bars": bars}


def draw(found: ComparedNumbers) -> Figure:
    """A group of bars for each N, means over the seeds; fixed below, the rest on top."""
    figure = new_figure(9.0, 4.6)
    panel = figure.subplots()
    groups = sorted({bar["nodes"] for bar in found["bars"]})
    width = 0.8 / len(_DRAWN)
    for place, (mechanism, colour) in enumerate(zip(_DRAWN, COLOURS, strict=False)):
        fixed, rest = [], []
        for nodes in groups:
            link_s = mean_of(found, nodes, mechanism, "cloud_link_s")
            fixed.append(link_s + mean_of(found, nodes, mechanism, "cloud_s"))
            rest.append(mean_of(found, nodes, mechanism, "rest_s"))
        places = np.arange(len(groups)) + (place - (len(_DRAWN) - 1) / 2) * width
        panel.bar(places, fixed, width * 0.92, color=colour, alpha=0.35)
        panel.bar(places, rest, width * 0.92, bottom=fixed, color=colour, label=mechanism)
        _write_rest(panel, places, fixed, rest)
    panel.set_xticks(range(len(groups)), [f"N = {nodes}" for nodes in groups])
    panel.set_ylabel("seconds of an iteration")
    look(panel)
    panel.margins(y=0.1)
    panel.grid(visible=False, axis="x")
    panel.legend(frameon=False, title="dark: devices, radio, edge\npale: fixed")
    return figure


def mean_of(found: ComparedNumbers, nodes: int, mechanism: str, part: str) -> float:
    """Over the seeds; `part` is one of a bar's seconds."""
    values: list[float] = []
    for bar in found["bars"]:
        if bar["nodes"] == nodes and bar["mechanism"] == mechanism:
            seconds = {
                "cloud_link_s": bar["cloud_link_s"],
                "cloud_s": bar["cloud_s"],
                "rest_s": bar["rest_s"],
                "iteration_s": bar["iteration_s"],
            }
            values.append(seconds[part])
    return float(np.mean(values))


def _outcomes(scenario: Scenario, seed: int) -> list[IterationSeconds]:
    """All of ORDER."""
    two = mechanisms.two_timescale(scenario, seed)
    return [
        two,
        mechanisms.by_algorithm1(scenario, two),
        mechanisms.large_only(scenario, seed),
        mechanisms.small_only(scenario),
        mechanisms.best_common(scenario),
        mechanisms.cloud_only(scenario),
    ]


def _bar(nodes: int, seed: int, outcome: IterationSeconds, cloud_s: float) -> Bar:
    return {
        "nodes": nodes,
        "seed": seed,
        "mechanism": outcome.mechanism,
        "cloud_link_s": outcome.cloud_link_s,
        "cloud_s": cloud_s,
        "rest_s": outcome.rest_s,
        "iteration_s": outcome.cloud_link_s + cloud_s + outcome.rest_s,
        "splits": list(outcome.splits),
    }


def _write_rest(panel: Axes, places: np.ndarray, fixed: list[float], rest: list[float]) -> None:
    """The part that can be optimised, above its bar."""
    for place, below, above in zip(places, fixed, rest, strict=True):
        panel.text(place, below + above, significant(above), ha="center", va="bottom", fontsize=7)
