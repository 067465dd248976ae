"""A solution of SCCT as its file has it, and as a table for people."""

from typing import NamedTuple, TypedDict

import numpy as np

from snake_jax.report.units import percent
from snake_jax.scct import latency, small
from snake_jax.scct.scenario import Scenario
from snake_jax.scct.small import Solver

_HEAD: tuple[str, ...] = (
    "device",
    "split",
    "subcarriers",
    "share",
    "device s",
    "link s",
    "edge s",
    "sum s",
)


class SampleAllocation(TypedDict):
    """One sample's allocation, and each device's seconds of an iteration."""

    shares: list[float]
    subcarriers: list[int]
    device_s: list[float]
    link_s: list[float]
    edge_s: list[float]
    iteration_s: float


class Solution(TypedDict):
    """SOLUTION.json of docs/scct.md."""

    solver: str
    splits: list[int]
    samples: list[SampleAllocation]
    transfer_s: list[float]
    cloud_link_s: float
    objective_s: float
    bound_s: float | None


class Fresh(NamedTuple):
    """What the same split points take on samples that they were not chosen for.

    Attributes:
      samples: how many.
      objective_s: seconds of a round.
      bound_s: that no split points go below, chosen for these samples.
    """

    samples: int
    objective_s: float
    bound_s: float


def content(
    scenario: Scenario, splits: np.ndarray, solver: Solver, bound_s: float | None
) -> Solution:
    """The solution of a scenario for these split points [N].

    Args:
      scenario: of Q samples.
      splits: of `snake_jax.scct.large`.
      solver: of subcarriers and shares.
      bound_s: that no split points go below; None: unknown.

    Raises:
      UserError: the solver `brute` would have too much to try.
    """
    problem = latency.problem(scenario, splits)
    found = small.solve(scenario, splits, solver)
    link_s = latency.linked_s(problem, found.subcarriers)
    edge_s = latency.edge_s(problem.whole_edge_s, found.shares)
    samples: list[SampleAllocation] = []
    for sample in range(len(found.iteration_s)):
        samples.append(
            {
                "shares": found.shares[sample].tolist(),
                "subcarriers": found.subcarriers[sample].tolist(),
                "device_s": problem.device_s[sample].tolist(),
                "link_s": link_s[sample].tolist(),
                "edge_s": edge_s[sample].tolist(),
                "iteration_s": float(found.iteration_s[sample]),
            }
        )
    return {
        "solver": solver,
        "splits": np.asarray(splits).tolist(),
        "samples": samples,
        "transfer_s": latency.transfer_s(scenario, splits).tolist(),
        "cloud_link_s": latency.cloud_link_s(scenario.model, scenario.cloud, len(scenario.devices)),
        "objective_s": float(latency.objective_s(scenario, splits, found.iteration_s)),
        "bound_s": bound_s,
    }


def table(scenario: Scenario, solution: Solution, fresh: Fresh | None) -> str:
    """Devices, then what the round takes and how far it can be from the best there is."""
    lines = [*_devices(solution), "", *_round(scenario, solution)]
    if fresh is None:
        lines.append(
            "value on fresh samples: none were drawn (--fresh=0, or the scenario's samples are "
            "not such as --random draws)"
        )
    else:
        above = fresh.objective_s / fresh.bound_s - 1
        lines.append(
            f"value on {fresh.samples} fresh samples: {fresh.objective_s:,.2f} s, "
            f"{100 * above:.3f} % above the bound of these"
        )
    return "\n".join(lines)


def _devices(solution: Solution) -> list[str]:
    """A line a device: means over the samples."""
    samples = solution["samples"]
    shares = np.mean([sample["shares"] for sample in samples], axis=0)
    subcarriers = np.mean([sample["subcarriers"] for sample in samples], axis=0)
    device_s = np.mean([sample["device_s"] for sample in samples], axis=0)
    link_s = np.mean([sample["link_s"] for sample in samples], axis=0)
    edge_s = np.mean([sample["edge_s"] for sample in samples], axis=0)
    sum_s = device_s + link_s + edge_s
    rows = [_HEAD]
    for device, split in enumerate(solution["splits"]):
        seconds = []
        for part in (device_s, link_s, edge_s, sum_s):
            seconds.append(f"{part[device]:.4f}")
        share, count = percent(shares[device]), f"{subcarriers[device]:.1f}"
        rows.append((str(device), str(split), count, share, *seconds))
    lines = [f"An iteration, means over {len(samples)} samples"]
    for row in rows:
        cells = [cell.rjust(len(head)) for cell, head in zip(row, _HEAD, strict=True)]
        lines.append("  ".join(cells))
    return lines


def _round(scenario: Scenario, solution: Solution) -> list[str]:
    """Seconds of the round: the whole, and without what no choice changes."""
    iterations = scenario.epochs * scenario.iterations
    fixed_s = iterations * solution["cloud_link_s"]
    objective_s, bound_s = solution["objective_s"], solution["bound_s"]
    slowest = np.mean([sample["iteration_s"] for sample in solution["samples"]])
    lines = [
        f"slowest device {slowest:.4f} s and cloud link {solution['cloud_link_s']:.4f} s an "
        f"iteration, {iterations:,} iterations; moving layers {max(solution['transfer_s']):.2f} s",
        f"{'seconds of the round':<22}{'whole':>14}{'optimisable':>14}",
        _line("objective", objective_s, objective_s - fixed_s),
    ]
    if bound_s is None:
        lines.append("no bound was computed, so nothing is said of the gap to the optimum")
        return lines
    gap_s = objective_s - bound_s
    whole, part = gap_s / bound_s, gap_s / (bound_s - fixed_s)
    lines.append(_line("bound", bound_s, bound_s - fixed_s))
    lines.append(f"{'gap':<22}{100 * whole:>12.3f} %{100 * part:>12.3f} %")
    return lines


def _line(name: str, whole_s: float, part_s: float) -> str:
    return f"{name:<22}{whole_s:>14,.2f}{part_s:>14,.2f}"
