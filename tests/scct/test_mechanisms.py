"""The four mechanisms of Figure 9: by hand where that can be done, and in the order of what each
may choose.
"""

import dataclasses
import math

import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.scct import large, latency, mechanisms
from snake_jax.scct.drawing import drawn
from snake_jax.scct.scenario import Samples, layer_bytes, splits_that_fit

TWO = drawn(3, nodes=2, subcarriers=5, samples=2)
"""Of 5 subcarriers the first device has 3, the second 2, where they are shared equally."""


def test_cloud_only_sends_tokens_and_waits_for_the_slowest_device():
    gain = np.array([[1e-9, 4e-9], [2e-9, 1e-12]])
    samples = Samples(TWO.samples.flops_per_s, gain)
    outcome = mechanisms.cloud_only(dataclasses.replace(TWO, samples=samples))
    # 8 examples of 384 + 16 tokens of 32 bits.
    bits = 102_400
    slowest = []
    for row in gain:
        seconds = []
        for value, subcarriers in zip(row, (3, 2), strict=True):
            hertz = 2e6 * subcarriers
            noise_w = 10**-20.4 * hertz
            seconds.append(bits / (hertz * math.log2(1 + value * 10**-0.7 / noise_w)))
        slowest.append(max(seconds))
    assert outcome.rest_s == pytest.approx(sum(slowest) / 2, rel=1e-9)
    assert outcome.cloud_link_s == pytest.approx(2 * bits / 1e9, rel=1e-12)
    assert outcome.iteration_s == outcome.rest_s + outcome.cloud_link_s
    assert outcome.splits == ()


def test_the_cloud_s_own_seconds_are_four_flops_a_parameter_and_token():
    assert mechanisms.cloud_s(TWO, 1e15) == pytest.approx(4 * 70e9 * 2 * 8 * 384 / 1e15)


def test_a_common_split_point_is_cut_to_what_fits():
    layer = layer_bytes(TWO.model)
    first, second = TWO.devices
    devices = (
        dataclasses.replace(first, memory_bytes=4.5 * layer),
        dataclasses.replace(second, memory_bytes=20 * layer),
    )
    small = dataclasses.replace(TWO, devices=devices)
    assert mechanisms.common(small, 6).tolist() == [4, 6]
    assert mechanisms.common(small, 12).tolist() == [4, 12]
    assert mechanisms.small_only(small, 12).splits == (4, 12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_who_may_choose_more_is_never_slower(seed):
    scenario = drawn(seed, nodes=2, subcarriers=5, samples=2)
    two = mechanisms.two_timescale(scenario, seed).rest_s
    best = mechanisms.best_common(scenario).rest_s
    close = 1 + 1e-9
    assert two <= mechanisms.large_only(scenario, seed).rest_s * close
    assert two <= best * close
    for split in (1, 6, 12):
        assert best <= mechanisms.small_only(scenario, split).rest_s * close


def test_algorithm_1_is_no_better_on_the_same_split_points():
    outcome = mechanisms.small_only(TWO)
    by_paper = mechanisms.by_algorithm1(TWO, outcome)
    assert by_paper.splits == outcome.splits
    assert by_paper.mechanism == "SCCTS by Algorithm 1"
    assert by_paper.rest_s >= outcome.rest_s * (1 - 1e-12)


def test_seconds_of_iterations_add_up_to_the_round():
    outcome = mechanisms.small_only(TWO, 3)
    found = large.solve(TWO, "fixed:3")
    assert outcome.iteration_s * 3600 == pytest.approx(found.objective_s, rel=1e-12)
    assert outcome.cloud_link_s == latency.cloud_link_s(TWO.model, TWO.cloud, 2)


def test_no_common_split_point_may_fit_the_edge():
    # All of both models but one layer: the devices must take all that they can.
    held = sum(device.memory_bytes // layer_bytes(TWO.model) for device in TWO.devices)
    edge = max(0, 24 - int(min(held, 24)))
    server = dataclasses.replace(TWO.server, memory_bytes=edge * layer_bytes(TWO.model) + 1)
    tight = dataclasses.replace(TWO, server=server)
    with pytest.raises(UserError, match="fixed:1"):
        large.solve(tight, "fixed:1")
    assert mechanisms.best_common(tight).splits == tuple(splits_that_fit(tight))
