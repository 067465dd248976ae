"""The four mechanisms that Figure 9 of the paper compares, by the seconds of an iteration.

SCCTT chooses split points and allocations, SCCTL split points alone (equal allocations), SCCTS
allocations alone (one common split point), and CloudO trains in the cloud, so devices send tokens
and nothing comes back. What the paper leaves open of them is decided in docs/scct.md.
"""

from typing import NamedTuple

import numpy as np

from snake_jax.scct import large, latency, small
from snake_jax.scct.exact import equal_subcarriers
from snake_jax.scct.scenario import Model, Scenario, fits, splits_that_fit
from snake_jax.scct.small import Solver

COMMON = 6
"""SCCTS's split point: half of Table III's 12 layers."""
LLM_PARAMETERS = 70e9
"""Llama2-70B, the paper's model in the cloud."""


class IterationSeconds(NamedTuple):
    """Seconds of an iteration, means over samples; their sum is the objective over T J.

    Attributes:
      mechanism: its name.
      cloud_link_s: between edge and cloud: the same whatever is chosen.
      rest_s: all that may depend on choices: devices, their links, the edge; and moving layers,
        over the round's iterations.
      splits: [N]; none for CloudO.
    """

    mechanism: str
    cloud_link_s: float
    rest_s: float
    splits: tuple[int, ...]

    @property
    def iteration_s(self) -> float:
        """The whole."""
        return self.cloud_link_s + self.rest_s


def two_timescale(scenario: Scenario, seed: int) -> IterationSeconds:
    """SCCTT: Algorithm 2 for split points, optimal allocations."""
    found = large.solve(scenario, "alns", seed)
    return _outcome("SCCTT", scenario, found.splits, "exact")


def by_algorithm1(scenario: Scenario, outcome: IterationSeconds) -> IterationSeconds:
    """The same split points with Algorithm 1's allocations."""
    name = f"{outcome.mechanism} by Algorithm 1"
    return _outcome(name, scenario, np.array(outcome.splits), "paper")


def large_only(scenario: Scenario, seed: int) -> IterationSeconds:
    """SCCTL: Algorithm 2 for split points, an equal allocation."""
    found = large.solve(scenario, "alns", seed, "equal")
    return _outcome("SCCTL", scenario, found.splits, "equal")


def small_only(scenario: Scenario, split: int = COMMON) -> IterationSeconds:
    """SCCTS: the same split point at every device, as far as it fits there; optimal allocations.

    The edge's memory is not asked, as with Table III's it always holds the rest.
    """
    return _outcome("SCCTS", scenario, common(scenario, split), "exact")


def best_common(scenario: Scenario) -> IterationSeconds:
    """SCCTS with the best of all common split points."""
    candidates = []
    for split in range(1, scenario.model.layers + 1):
        splits = common(scenario, split)
        if fits(scenario, splits):
            candidates.append(splits)
    values = small.values(scenario, np.array(candidates))
    return _outcome("SCCTS best", scenario, candidates[int(values.argmin())], "exact")


def cloud_only(scenario: Scenario) -> IterationSeconds:
    """CloudO: token ids of inputs and labels over the air, with equal subcarriers, and the fibre.

    The cloud's own seconds count as 0, as in the paper; `cloud_s` says what they would be.
    """
    model, server, devices = scenario.model, scenario.server, scenario.devices
    power_w = np.array([device.power_w for device in devices])
    subcarriers = equal_subcarriers(len(devices), server.subcarriers)
    rates = latency.rate_bits_per_s(server, subcarriers, scenario.samples.gain, power_w)
    air_s = (token_bits(model) / rates).max(axis=-1).mean()
    fibre_s = len(devices) * token_bits(model) / scenario.cloud.bits_per_s
    return IterationSeconds("CloudO", float(fibre_s), float(air_s), ())


def token_bits(model: Model) -> int:
    """A batch's token ids and labels, at 32 bits."""
    return latency.smashed_bits(model) - latency.gradient_bits(model)


def cloud_s(scenario: Scenario, flops_per_s: float) -> float:
    """What the paper takes for nothing: an iteration of all devices' batches through the LLM.

    Two FLOPs a parameter and token forward, and as many for the gradients of its activations; its
    weights are frozen and the adapters small. The same for all four mechanisms.
    """
    tokens = len(scenario.devices) * scenario.model.batch * scenario.model.input_length
    return 4 * LLM_PARAMETERS * tokens / flops_per_s


def common(scenario: Scenario, split: int) -> np.ndarray:
    """[N] the same split point, or the largest that fits a device."""
    return np.minimum(split, splits_that_fit(scenario))


def _outcome(
    mechanism: str, scenario: Scenario, splits: np.ndarray, solver: Solver
) -> IterationSeconds:
    iterations = scenario.epochs * scenario.iterations
    (objective_s,) = small.values(scenario, np.asarray(splits)[None], solver)
    fixed_s = latency.cloud_link_s(scenario.model, scenario.cloud, len(scenario.devices))
    rest_s = float(objective_s) / iterations - fixed_s
    return IterationSeconds(mechanism, fixed_s, rest_s, tuple(int(split) for split in splits))
