"""The map: over the devices' rates and the common split point, which mechanism is faster.

SCCTT chooses all that SCCTL and SCCTS choose, so it is never slower than either. Between those two
nothing is settled: the paper has SCCTL before SCCTS.
"""

import dataclasses
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snake_jax.cli.scct_figures.scales import Study
from snake_jax.report.canvas import logarithmic, look, new_figure
from snake_jax.scct import mechanisms
from snake_jax.scct.drawing import LAW, drawn
from snake_jax.scct.scenario import Scenario

_DEEPEST = 4.0  # the colours end at this factor


class RateColumn(TypedDict):
    """One rate of the devices; seconds of an iteration without the cloud link, means over seeds.

    `small_s` has one number for each common split point.
    """

    factor: float
    mean_flops_per_s: float
    two_s: float
    large_s: float
    small_s: list[float]


class FasterNumbers(TypedDict):
    """What the map shows."""

    nodes: int
    edge_flops_per_s: float
    splits: list[int]
    columns: list[RateColumn]


def numbers(study: Study) -> FasterNumbers:
    """Every rate, every common split point, every seed."""
    scale, columns = study.scale, []
    for factor in scale.map_factors:
        study.note(f"map: devices at {factor:g} times Table III's rates")
        low, high = LAW.flops_per_s
        law = dataclasses.replace(LAW, flops_per_s=(factor * low, factor * high))
        rows = []
        for seed in scale.seeds:
            scenario = drawn(seed, scale.map_nodes, scale.subcarriers, scale.map_samples, law)
            rows.append(_row(scenario, seed, scale.map_splits))
        two_s, large_s, *small_s = np.mean(rows, axis=0).tolist()
        columns.append(
            RateColumn(
                factor=factor,
                mean_flops_per_s=factor * (low + high) / 2,
                two_s=two_s,
                large_s=large_s,
                small_s=small_s,
            )
        )
    return {
        "nodes": scale.map_nodes,
        "edge_flops_per_s": LAW.server.flops_per_s,
        "splits": list(scale.map_splits),
        "columns": columns,
    }


def draw(found: FasterNumbers) -> Figure:
    """SCCTS over SCCTL in colours, and below it what each takes over SCCTT."""
    figure = new_figure(9.5, 7.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    _colours(figure, upper, found)
    rates = [column["mean_flops_per_s"] / 1e12 for column in found["columns"]]
    two_s = np.array([column["two_s"] for column in found["columns"]])
    large_s = np.array([column["large_s"] for column in found["columns"]])
    small_s = np.array([column["small_s"] for column in found["columns"]])
    lower.plot(rates, large_s / two_s, marker="s", color="#D55E00", label="SCCTL")
    for split, style in ((1, ":"), (6, "-"), (12, "--")):
        if split in found["splits"]:
            small = small_s[:, found["splits"].index(split)]
            lower.plot(
                rates,
                small / two_s,
                style,
                marker="o",
                color="#0072B2",
                label=f"SCCTS, s = {split}",
            )
    lower.set_ylabel("seconds over SCCTT's")
    lower.set_xlabel("devices' rate, mean of their range, TFLOPS")
    logarithmic(lower, float(small_s.max() / two_s.min()))
    look(lower)
    lower.legend(frameon=False, fontsize="small")
    return figure


def _row(scenario: Scenario, seed: int, splits: tuple[int, ...]) -> list[float]:
    """SCCTT, SCCTL, and SCCTS at each split point."""
    row = [
        mechanisms.two_timescale(scenario, seed).rest_s,
        mechanisms.large_only(scenario, seed).rest_s,
    ]
    for split in splits:
        row.append(mechanisms.small_only(scenario, split).rest_s)
    return row


def _colours(figure: Figure, panel: Axes, found: FasterNumbers) -> None:
    """Blue where SCCTS is faster, red where SCCTL is; a mark on cells of the paper's order."""
    rates = np.array([column["mean_flops_per_s"] for column in found["columns"]]) / 1e12
    factors = []
    for column in found["columns"]:
        factors.append(np.array(column["small_s"]) / column["large_s"])
    factor = np.array(factors)
    places = np.arange(len(found["splits"]))
    image = panel.pcolormesh(
        _edges(rates),
        np.arange(len(places) + 1) - 0.5,
        np.log2(factor).T,
        cmap="RdBu_r",
        vmin=-np.log2(_DEEPEST),
        vmax=np.log2(_DEEPEST),
    )
    columns, rows = np.nonzero(factor > 1)
    panel.plot(rates[columns], rows, "k.", markersize=4)
    panel.set_xscale("log")
    panel.set_yticks(places, [str(split) for split in found["splits"]])
    panel.set_ylabel("common split point of SCCTS")
    panel.set_title(
        "SCCTS's seconds over SCCTL's, without the cloud link\n"
        "Dots: SCCTL is faster, the paper's order SCCTT, SCCTL, SCCTS",
        fontsize="medium",
    )
    # Where this library's scenarios lie, and where a device is as fast as its share of the edge.
    low, high = LAW.flops_per_s
    here = (low + high) / 2e12
    edge = found["edge_flops_per_s"] / found["nodes"] / 1e12
    for rate, style, word in ((here, "-", "as drawn here"), (edge, "--", "edge / N")):
        panel.axvline(rate, color="black", linestyle=style, linewidth=1)
        panel.text(
            rate, len(places) - 0.6, f" {word}", rotation=90, ha="left", va="top", fontsize=8
        )
    bar = figure.colorbar(image, ax=panel, extend="both")
    ticks = [-2, -1, 0, 1, 2]
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" for tick in ticks])


def _edges(rates: np.ndarray) -> np.ndarray:
    """[C + 1] borders between cells on a logarithmic axis, each rate in the middle of its own."""
    logs = np.log(rates)
    between = (logs[1:] + logs[:-1]) / 2
    first, last = 2 * logs[0] - between[0], 2 * logs[-1] - between[-1]
    return np.exp(np.concatenate([[first], between, [last]]))
