"""Problems of SCCT by chance, around the figures of the paper's Table III.

What the table leaves out is said in docs/scct.md. It alone speaks of decibels: `from_decibels`
converts them.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from snake_jax.scct.checks import whole
from snake_jax.scct.scenario import (
    Cloud,
    Device,
    Model,
    Samples,
    Scenario,
    Server,
    checked,
    layer_bytes,
)


def from_decibels(decibels: float | np.ndarray) -> Any:
    """The ratio of powers that so many decibels are; of dBm take 30 first, for watts."""
    return 10.0 ** (decibels / 10)


BASE = Model(
    layers=12,
    hidden=768,
    input_length=384,
    label_length=16,
    batch=8,
    bits=32,
    backward_ratio=2.0,
)
"""RoBERTa-base: Table III's split points are 1 to 12."""
LARGE = dataclasses.replace(BASE, layers=24, hidden=1024)
"""RoBERTa-Large, which the paper's text names."""
TABLE_III = Server(
    flops_per_s=3.12e14,
    memory_bytes=6e12,
    power_w=from_decibels(50 - 30),
    subcarriers=200,
    subcarrier_hz=2e6,
    noise_w_per_hz=from_decibels(-174 - 30),
)
FIBRE = Cloud(bits_per_s=1e9, returns="losses")
DEVICE_W = from_decibels(23 - 30)
ANTENNAS_DB = 5 + 20  # of the device and of the edge


@dataclass(frozen=True)
class Law:
    """What scenarios are drawn from.

    Attributes:
      model: of all devices.
      server: all but its subcarriers.
      cloud: as it is.
      flops_per_s: of devices, uniform between these.
      epoch_factor: an epoch's FLOP/s over the device's own, uniform between these.
      layers: that the device's memory holds, uniform between these.
      distance_m: from the edge, uniform over the ring between these.
      shadow_db: standard deviation of the shadowing.
      epochs: T.
      iterations: J.
    """

    model: Model = BASE
    server: Server = TABLE_III
    cloud: Cloud = FIBRE
    flops_per_s: tuple[float, float] = (2e12, 30e12)
    epoch_factor: tuple[float, float] = (0.5, 1.5)
    layers: tuple[float, float] = (3.0, 14.0)
    distance_m: tuple[float, float] = (50.0, 500.0)
    shadow_db: float = 8.0
    epochs: int = 60
    iterations: int = 60


LAW = Law()


def drawn(
    seed: int, nodes: int, subcarriers: int = 200, samples: int = 20, law: Law = LAW
) -> Scenario:
    """A scenario by chance; device n and sample q of a seed do not depend on how many there are.

    Args:
      seed: of the streams `scct/devices` and `scct/samples`.
      nodes: N.
      subcarriers: K.
      samples: Q.
      law: what is drawn from.

    Raises:
      UserError: no nodes or samples, fewer subcarriers than nodes, or a law that nothing fits.
    """
    for name, number in (("nodes", nodes), ("subcarriers", subcarriers), ("samples", samples)):
        whole(name, number)
    server = dataclasses.replace(law.server, subcarriers=subcarriers)
    devices = tuple(_device(seed, node, law) for node in range(nodes))
    epochs = _epochs(seed, devices, samples, law)
    made = Scenario(law.model, server, law.cloud, devices, epochs, law.epochs, law.iterations)
    return checked(made)


def resampled(scenario: Scenario, seed: int, samples: int, law: Law = LAW) -> Scenario:
    """The same devices with fresh samples: what split points are worth on epochs not seen."""
    fresh = _epochs(seed, scenario.devices, samples, law)
    return dataclasses.replace(scenario, samples=fresh)


def _device(seed: int, node: int, law: Law) -> Device:
    """One device: path loss 128.1 + 37.6 log10(km) dB of 3GPP TR 36.814, log-normal shadowing."""
    from snake_jax import streams  # imports jax, which reading a file does not need

    rng = streams.generator(seed, "scct/devices", node)
    flops_per_s = rng.uniform(*law.flops_per_s)
    layers = rng.uniform(*law.layers)
    nearest, farthest = law.distance_m
    # Uniform over the ring's area is uniform in the square of the distance.
    distance_km = math.sqrt(rng.uniform(nearest**2, farthest**2)) / 1000
    loss_db = 128.1 + 37.6 * math.log10(distance_km)
    gain_db = ANTENNAS_DB - loss_db + rng.normal(0.0, law.shadow_db)
    return Device(
        flops_per_s=flops_per_s,
        gain=from_decibels(gain_db),
        power_w=DEVICE_W,
        memory_bytes=layers * layer_bytes(law.model),
        split=None,
    )


def _epochs(seed: int, devices: tuple[Device, ...], samples: int, law: Law) -> Samples:
    """Epochs around the devices' own figures."""
    from snake_jax import streams  # as above

    flops_per_s, gain = np.empty((2, samples, len(devices)))
    for node, device in enumerate(devices):
        chances = streams.generator(seed, "scct/samples", node).random((samples, 2))
        flops_per_s[:, node], gain[:, node] = varied(device, chances, law)
    return Samples(flops_per_s, gain)


def varied(device: Device, chances: np.ndarray, law: Law) -> tuple[np.ndarray, np.ndarray]:
    """FLOP/s and gain [Q] by chances [Q, 2]: uniform compute, Rayleigh fading of the power."""
    low, high = law.epoch_factor
    factors = low + (high - low) * chances[:, 0]
    # Power of a Rayleigh channel is exponential of mean 1: the inverse of its distribution.
    return device.flops_per_s * factors, device.gain * -np.log1p(-chances[:, 1])
