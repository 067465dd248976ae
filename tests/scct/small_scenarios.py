"""Scenarios of a few devices where the choice of split points is not obvious, and the cases."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from snake_jax.scct import drawing, scenario, small
from snake_jax.scct.drawing import LAW, TABLE_III, Law
from snake_jax.scct.scenario import Scenario

CASES: dict[str, dict[str, Any]] = {}
for _case in json.loads(Path(__file__).with_name("scenarios.json").read_text())["scenarios"]:
    CASES[_case["name"]] = _case


def edge_of(edge_flops_per_s: float, **changes: Any) -> Law:
    """The law of drawn scenarios with this much compute at the edge."""
    server = dataclasses.replace(TABLE_III, flops_per_s=edge_flops_per_s)
    return dataclasses.replace(LAW, server=server, **changes)


def contested(seed: int, nodes: int, subcarriers: int, samples: int) -> Scenario:
    """An edge that has as much compute for a device as a device has, and unlike epochs."""
    law = edge_of(1.04e13 * nodes, epoch_factor=(0.2, 1.8))
    return drawing.drawn(seed, nodes, subcarriers, samples, law)


def already_split(problem: Scenario, splits: list[int]) -> Scenario:
    """The scenario where devices hold so many layers already, so that others cost a transfer."""
    devices = []
    for device, split in zip(problem.devices, splits, strict=True):
        devices.append(dataclasses.replace(device, split=split))
    return dataclasses.replace(problem, devices=tuple(devices))


def with_edge_layers(problem: Scenario, layers: int) -> Scenario:
    """The scenario where the edge's memory holds so many layers of all devices together."""
    memory_bytes = float(layers * scenario.layer_bytes(problem.model))
    server = dataclasses.replace(problem.server, memory_bytes=memory_bytes)
    return dataclasses.replace(problem, server=server)


def with_memory_for_all(problem: Scenario) -> Scenario:
    """The scenario where every device could hold all layers."""
    devices = []
    for device in problem.devices:
        devices.append(dataclasses.replace(device, memory_bytes=1e12))
    return dataclasses.replace(problem, devices=tuple(devices))


def of_few_layers(problem: Scenario, layers: int) -> Scenario:
    """The scenario with a shallower model."""
    return dataclasses.replace(problem, model=dataclasses.replace(problem.model, layers=layers))


def value_s(problem: Scenario, splits: np.ndarray) -> float:
    """The objective of split points [N]; as one of 32, since all tests have that program."""
    return float(small.values(problem, np.repeat(splits[None], 32, axis=0))[0])


def ends(problem: Scenario) -> np.ndarray:
    """[2^N, N] all of {1, largest that fits}^N."""
    largest = scenario.splits_that_fit(problem)
    corners = np.array(list(np.ndindex(*[2] * len(largest))))
    return np.where(corners == 1, largest, 1)
