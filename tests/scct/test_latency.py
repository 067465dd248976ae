"""Every equation of the latency model against numbers worked by hand, and what must hold of all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snake_jax.scct import drawing, latency, scenario
from snake_jax.scct.scenario import Cloud, Device, Model, Samples, Scenario, Server

# Chosen so that all results are short: a layer is 8 (12 4 + 4 2) = 448 bits.
MODEL = Model(
    layers=4, hidden=2, input_length=3, label_length=1, batch=2, bits=8, backward_ratio=2.0
)
# 6 Hz of noise 0.5 make 3 W; received 9 W are a ratio of 3, 45 W one of 15.
SERVER = Server(
    flops_per_s=1080.0,
    memory_bytes=1e6,
    power_w=45.0,
    subcarriers=6,
    subcarrier_hz=2.0,
    noise_w_per_hz=0.5,
)
CLOUD = Cloud(bits_per_s=64.0, returns="losses")
DEVICES = (
    Device(flops_per_s=1000.0, gain=1.0, power_w=9.0, memory_bytes=1e3, split=3),
    Device(flops_per_s=500.0, gain=1.0, power_w=9.0, memory_bytes=1e3, split=None),
)


def by_hand(**changes) -> Scenario:
    samples = Samples(np.array([[1000.0, 500.0], [2000.0, 500.0]]), np.ones((2, 2)))
    return dataclasses.replace(
        Scenario(MODEL, SERVER, CLOUD, DEVICES, samples, epochs=5, iterations=10), **changes
    )


def test_equation_1_counts_the_bits_of_a_layer():
    assert scenario.layer_bits(MODEL) == 8 * (12 * 4 + 4 * 2) == 448
    assert scenario.layer_bytes(MODEL) == 56
    # 12 768^2 + 4 768 = 7,080,960 numbers of 4 bytes.
    assert scenario.layer_bytes(drawing.BASE) == 28_323_840


def test_equation_2_counts_the_flops_of_a_layer():
    assert latency.layer_flops(MODEL) == 24 * 3 * 4 + 4 * 9 * 2 == 360


def test_equation_12_is_both_passes_on_the_device():
    # (1 + 2) 3 layers 360 FLOPs 2 examples are 6480 FLOPs.
    assert latency.device_s(MODEL, 3, 1000.0) == pytest.approx(6.48)


def test_equations_13_and_14_spread_the_power_over_the_subcarriers():
    # Up: 6 log2(1 + 9 / 3) = 12; down: 6 log2(1 + 45 / 3) = 24; one subcarrier: 2 log2(1 + 9).
    assert latency.rate_bits_per_s(SERVER, 3, 1.0, 9.0) == pytest.approx(12.0)
    assert latency.rate_bits_per_s(SERVER, 3, 1.0, 45.0) == pytest.approx(24.0)
    assert latency.rate_bits_per_s(SERVER, 1, 1.0, 9.0) == pytest.approx(2 * np.log2(10))


def test_a_weak_signal_keeps_its_rate():
    # log2(1 + x) is x / ln 2 there; 1 + x would round to 1.
    assert latency.rate_bits_per_s(SERVER, 1, 1e-20, 1.0) == pytest.approx(2e-20 / np.log(2))


def test_equation_15_sends_vectors_and_ids_up_and_gradients_down():
    # 2 3 2 8 = 96 bits of vectors, 32 2 (3 + 1) = 256 of ids.
    assert latency.gradient_bits(MODEL) == 96
    assert latency.smashed_bits(MODEL) == 352
    assert latency.link_s(MODEL, SERVER, 3, 1.0, 9.0) == pytest.approx(352 / 12 + 96 / 24)


def test_equation_16_is_the_share_of_the_edge():
    # One layer: 2160 FLOPs at a quarter of 1080 FLOP/s.
    whole_edge_s = latency.layers_flops(MODEL, 1) / SERVER.flops_per_s
    assert whole_edge_s == pytest.approx(2.0)
    assert latency.edge_s(whole_edge_s, 0.25) == pytest.approx(8.0)


def test_equation_16_is_nothing_without_layers_on_the_edge():
    found = latency.edge_s(np.array([0.0, 2.0]), np.array([0.0, 0.5]))
    np.testing.assert_array_equal(found, [0.0, 4.0])


@pytest.mark.parametrize(("returns", "bits"), [("losses", 352 + 32), ("gradients", 352 + 96)])
def test_equation_17_sends_all_devices_data_and_what_comes_back(returns, bits):
    assert latency.cloud_link_s(MODEL, Cloud(64.0, returns), 2) == pytest.approx(2 * bits / 64)


def test_equation_18_moves_layers_down_up_or_not_at_all():
    # 6 // 2 = 3 subcarriers each: 24 bit/s down, 12 up. The second device held none before.
    for split, moved_s in ((4, 448 / 24), (3, 0.0), (1, 2 * 448 / 12)):
        found = latency.transfer_s(by_hand(), np.array([split, 4]))
        np.testing.assert_allclose(found, [moved_s, 0.0])


def test_equations_19_and_20_add_up_a_round():
    assert latency.epoch_s(10, 12.0, 8.0) == 200.0
    assert latency.round_s(np.array([3.0, 7.0]), np.array([200.0, 100.0])) == 307.0


def test_equation_29_puts_the_mean_of_the_samples_for_the_epochs():
    # d4 = 12; samples of 8 and 10 s: 10 (12 + 9) = 210 an epoch, 5 epochs; 448 / 24 to move.
    found = latency.objective_s(by_hand(), np.array([4, 2]), np.array([8.0, 10.0]))
    assert found == pytest.approx(448 / 24 + 5 * 210)


def test_terms_are_of_every_sample_and_candidate():
    splits = np.array([[3, 1], [4, 2]])
    terms = latency.terms(by_hand(), splits)
    # 2160 FLOPs a layer.
    device_s = [[[6.48, 4.32], [3.24, 4.32]], [[8.64, 8.64], [4.32, 8.64]]]
    np.testing.assert_allclose(terms.device_s, device_s)
    np.testing.assert_allclose(terms.whole_edge_s, [[2.0, 6.0], [0.0, 4.0]])


def test_an_iteration_adds_up_device_link_and_edge():
    problem = latency.problem(by_hand(), np.array([3, 1]))
    assert problem.subcarriers == 6
    shares = np.array([[0.25, 0.75], [0.5, 0.5]])
    subcarriers = np.array([[3, 3], [3, 2]])
    found = latency.iteration_s(problem, shares, subcarriers)
    link_s = 352 / 12 + 4
    np.testing.assert_allclose(found[0], [6.48 + link_s + 8, 4.32 + link_s + 8])
    up, down = 4 * np.log2(1 + 9 / 2), 4 * np.log2(1 + 45 / 2)
    np.testing.assert_allclose(found[1], [3.24 + link_s + 4, 4.32 + 352 / up + 96 / down + 12])


def test_numpy_and_jax_agree_also_under_vmap():
    subcarriers = np.arange(1, 7)
    gains = np.array([1e-3, 1.0, 7.0])

    def of(gain):
        return latency.link_s(MODEL, SERVER, jnp.asarray(subcarriers), gain, 9.0)

    with jax.enable_x64(True):
        found = jax.vmap(of)(jnp.asarray(gains))
    wanted = latency.link_s(MODEL, SERVER, subcarriers, gains[:, None], 9.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    whole_edge_s, shares = np.array([0.0, 2.0]), np.array([0.0, 0.5])
    found = latency.edge_s(jnp.asarray(whole_edge_s), jnp.asarray(shares))
    np.testing.assert_allclose(found, latency.edge_s(whole_edge_s, shares))


POWER = st.floats(1e-3, 1e3)


@given(st.integers(1, 60), st.floats(1e-12, 1e3), POWER, st.floats(1.0, 10.0))
def test_more_bandwidth_power_or_gain_is_never_slower(subcarriers, gain, power_w, factor):
    def of(**changes):
        given_ = {"subcarriers": subcarriers, "gain": gain, "power_w": power_w} | changes
        return latency.link_s(MODEL, SERVER, **given_)

    now = of() * (1 + 1e-12)
    assert of(subcarriers=subcarriers + 1) <= now
    assert of(gain=gain * factor) <= now
    assert of(power_w=power_w * factor) <= now


@given(st.integers(1, 60), st.floats(1e-12, 1e3), POWER, st.sampled_from([0.25, 4.0, 1024.0]))
def test_units_scale(subcarriers, gain, power_w, factor):
    # Twice the hertz of half the noise a hertz are twice the bits a second.
    wide = dataclasses.replace(
        SERVER,
        subcarrier_hz=SERVER.subcarrier_hz * factor,
        noise_w_per_hz=SERVER.noise_w_per_hz / factor,
    )
    rate = latency.rate_bits_per_s(SERVER, subcarriers, gain, power_w)
    scaled = latency.rate_bits_per_s(wide, subcarriers, gain, power_w)
    np.testing.assert_allclose(scaled, factor * rate, rtol=1e-12)
    # Milliwatts everywhere are no other signal.
    loud = dataclasses.replace(SERVER, noise_w_per_hz=SERVER.noise_w_per_hz * factor)
    same = latency.rate_bits_per_s(loud, subcarriers, gain, power_w * factor)
    np.testing.assert_allclose(same, rate, rtol=1e-12)
    device_s = latency.device_s(MODEL, 3, 1000.0)
    assert latency.device_s(MODEL, 3, 1000.0 * factor) == pytest.approx(device_s / factor)
