"""Simulated seconds of a round, once for each mechanism that may have chosen its resources.

All by `snake_jax.scct.latency`, equations 12 to 20. What is trained does not depend on split points
and allocations, so SCCTT, SCCTL and SCCTS are one training and three clocks:

- SCCTT chooses split points before the round and allocations before each epoch,
- SCCTL split points, with equal allocations,
- SCCTS allocations, with half of the layers at every device, or as many as fit,
- CloudO sends tokens, and the small model alone (`device`) nothing.

Split points are chosen on samples from history; the epochs themselves are drawn for each round.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.scct import large, latency, mechanisms, small
from snake_jax.scct.drawing import Law, varied
from snake_jax.scct.scenario import Samples, Scenario
from snake_jax.scct.small import Solver
from snake_jax.scct.system.membership import Presence

Splits = Mapping[int, int]
"""Layers on the device, by node."""


class Clock(NamedTuple):
    """A round by one mechanism.

    Attributes:
      seconds: of the round, equation 20.
      transfer_s: of it, what moving layers takes, equation 18.
      splits: of the devices that take part.
    """

    seconds: float
    transfer_s: float
    splits: Splits


class RoundCourse(NamedTuple):
    """What a round's clocks are of.

    Attributes:
      scenario: of all devices.
      law: that epochs vary by.
      method: of split points.
      seed: of the run.
      number: of the round, from 1.
      presences: of each device.
    """

    scenario: Scenario
    law: Law
    method: str
    seed: int
    number: int
    presences: Sequence[Presence]


def of_round(course: RoundCourse, mechanism: str, before: Splits) -> Clock:
    """A mechanism's round.

    Args:
      course: which round.
      mechanism: one of `SCCT_MECHANISMS`.
      before: split points of the round before, of the devices that hold layers by one.
    """
    present = [node for node, one in enumerate(course.presences) if one.epochs]
    if not present:
        return Clock(0.0, 0.0, {})
    scenario = among(course.scenario, present, before)
    splits = _choice(course, mechanism, scenario)
    transfer_s = 0.0
    if mechanism in ("scctt", "scctl", "sccts"):
        transfer_s = float(latency.transfer_s(scenario, splits).max())

    # Epoch after epoch, as the devices that are there change.
    seconds = transfer_s
    for epoch in range(course.scenario.epochs):
        there = [node for node in present if course.presences[node].epochs > epoch]
        if there:
            own = np.array([splits[present.index(node)] for node in there])
            realised = among(course.scenario, there, before)
            drawn = epoch_samples(course, there, epoch)
            realised = dataclasses.replace(realised, samples=drawn)
            seconds += epoch_s(realised, mechanism, own)
    return Clock(seconds, transfer_s, dict(zip(present, splits.tolist(), strict=True)))


def epoch_s(scenario: Scenario, mechanism: str, splits: np.ndarray) -> float:
    """An epoch's seconds, equation 19, of the one sample that the scenario has."""
    if mechanism == "cloudo":
        return scenario.iterations * mechanisms.cloud_only(scenario).iteration_s
    if mechanism == "device":
        device_s = latency.terms(scenario, splits).device_s
        return float(scenario.iterations * device_s.max())
    found = small.solve(scenario, splits, _solver(mechanism))
    fixed_s = latency.cloud_link_s(scenario.model, scenario.cloud, len(scenario.devices))
    return float(latency.epoch_s(scenario.iterations, fixed_s, found.iteration_s[0]))


def among(scenario: Scenario, nodes: Sequence[int], before: Splits) -> Scenario:
    """The scenario of some devices, which hold as many layers as they did before."""
    devices = []
    for node in nodes:
        devices.append(dataclasses.replace(scenario.devices[node], split=before.get(node)))
    own = Samples(scenario.samples.flops_per_s[:, nodes], scenario.samples.gain[:, nodes])
    return dataclasses.replace(scenario, devices=tuple(devices), samples=own)


def epoch_samples(course: RoundCourse, nodes: Sequence[int], epoch: int) -> Samples:
    """One epoch of a round as it turns out for these devices: a sample [1, N]."""
    flops_per_s, gain = [], []
    for node in nodes:
        stream = streams.generator(course.seed, "scct/epochs", node, course.number, epoch)
        own = varied(course.scenario.devices[node], stream.random((1, 2)), course.law)
        flops_per_s.append(own[0])
        gain.append(own[1])
    return Samples(np.stack(flops_per_s, axis=1), np.stack(gain, axis=1))


def _choice(course: RoundCourse, mechanism: str, scenario: Scenario) -> np.ndarray:
    """Split points [N] of the devices in the scenario."""
    layers = scenario.model.layers
    if mechanism in ("scctt", "scctl"):
        seed = course.seed
        return large.solve(scenario, course.method, seed, _solver(mechanism)).splits
    if mechanism == "sccts":
        return mechanisms.common(scenario, (layers + 1) // 2)
    return np.full(len(scenario.devices), layers)


def _solver(mechanism: str) -> Solver:
    return "equal" if mechanism == "scctl" else "exact"
