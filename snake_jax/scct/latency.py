"""SCCT's latency, equations 1, 2 and 12 to 20 and 27 to 29 of the paper, as functions of arrays.

Each takes NumPy's arrays or JAX's, of any leading shape: batched over samples and devices by
broadcasting, and under `vmap`. Seconds, bits, bits a second and FLOPs, as the names say. What the
paper leaves open, and what was decided, is in docs/scct.md.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.scct.scenario import Cloud, Model, Scenario, Server, layer_bits

Array = np.ndarray | jax.Array


class Terms(NamedTuple):
    """What split points make of a scenario, before anything is allocated.

    Attributes:
      device_s: d1 [..., Q, N], computation on the devices.
      whole_edge_s: a [..., N], computation on the edge if the device had all of it: d3 times alpha.
    """

    device_s: np.ndarray
    whole_edge_s: np.ndarray


class LatencyProblem(NamedTuple):
    """The small timescale's problem: shares and subcarriers that make the slowest device fastest.

    Leading axes are samples, or candidates and samples; they broadcast against each other.

    Attributes:
      device_s: c [..., N], computation on the devices, d1.
      whole_edge_s: a [..., N], computation on the edge if the device had all of it.
      link_s: t [..., N, K], d2 with 1 to K subcarriers: index b - 1 is of b.
    """

    device_s: np.ndarray
    whole_edge_s: np.ndarray
    link_s: np.ndarray

    @property
    def subcarriers(self) -> int:
        """K."""
        return self.link_s.shape[-1]


def layer_flops(model: Model) -> int:
    """Equation 2: h = 24 d_in d_hid^2 + 4 d_in^2 d_hid, FLOPs of a layer forward on ONE example."""
    length, hidden = model.input_length, model.hidden
    return 24 * length * hidden**2 + 4 * length**2 * hidden


def layers_flops(model: Model, layers: Any) -> Any:
    """(1 + epsilon) h b for so many layers: both passes of an iteration's batch, in FLOPs."""
    return (1 + model.backward_ratio) * layers * layer_flops(model) * model.batch


def device_s(model: Model, splits: Any, flops_per_s: Any) -> Any:
    """Equation 12: d1 = (1 + epsilon) s h b / C_n, in seconds an iteration."""
    return layers_flops(model, splits) / flops_per_s


def rate_bits_per_s(server: Server, subcarriers: Any, gain: Any, power_w: Any) -> Any:
    """Equations 13 (P_n, up) and 14 (P_e, down).

    R = beta B_s log2(1 + G P / (N_0 beta B_s)): the power is spread over the subcarriers.

    Args:
      server: B_s and N_0.
      subcarriers: beta, at least 1.
      gain: G_n.
      power_w: of the sender.
    """
    xp = _namespace(subcarriers, gain, power_w)
    bandwidth_hz = subcarriers * server.subcarrier_hz
    signal_to_noise = gain * power_w / (server.noise_w_per_hz * bandwidth_hz)
    # log1p keeps what 1 + x would round away for a weak signal.
    return bandwidth_hz * xp.log1p(signal_to_noise) / math.log(2)


def smashed_bits(model: Model) -> int:
    """z^s of equation 15: the batch's vectors, and the ids of its tokens and labels at 32 bits."""
    tokens = model.input_length + model.label_length
    return gradient_bits(model) + 32 * model.batch * tokens


def gradient_bits(model: Model) -> int:
    """z^g of equation 15: b d_in d_hid numbers of xi bits."""
    return model.batch * model.input_length * model.hidden * model.bits


def link_s(model: Model, server: Server, subcarriers: Any, gain: Any, power_w: Any) -> Any:
    """Equation 15: d2 = z^s / R^d + z^g / R^e, in seconds an iteration."""
    up_bits_per_s = rate_bits_per_s(server, subcarriers, gain, power_w)
    down_bits_per_s = rate_bits_per_s(server, subcarriers, gain, server.power_w)
    return smashed_bits(model) / up_bits_per_s + gradient_bits(model) / down_bits_per_s


def edge_s(whole_edge_s: Any, shares: Any) -> Any:
    """Equation 16: d3 = (1 + epsilon) (L - s) h b / (alpha C_e); 0 where s = L, whatever alpha is.

    Args:
      whole_edge_s: the same with alpha = 1, see `Terms`.
      shares: alpha.
    """
    xp = _namespace(whole_edge_s, shares)
    nothing = whole_edge_s == 0
    # Divided by 1 where nothing is to be done, since a share may be 0 there.
    return whole_edge_s / xp.where(nothing, 1.0, shares)


def cloud_link_s(model: Model, cloud: Cloud, devices: int) -> float:
    """Equation 17: d4 = (z^e + z^c) / R_{c,e}, in seconds an iteration.

    z^e are N times what a device sends to the edge; z^c N losses of 32 bits, or N gradients.
    """
    returned = 32 if cloud.returns == "losses" else gradient_bits(model)
    return devices * (smashed_bits(model) + returned) / cloud.bits_per_s


def transfer_s(scenario: Scenario, splits: np.ndarray) -> np.ndarray:
    """Equation 18: d0 [..., N] for splits [..., N], seconds before a round.

    Layers that a device gains come down, those that it gives up go up, with K // N subcarriers and
    the gain of now: the epochs' allocations are made only after. 0 where it held none before.
    """
    server, devices = scenario.server, scenario.devices
    subcarriers = server.subcarriers // len(devices)
    gain = np.array([device.gain for device in devices])
    power_w = np.array([device.power_w for device in devices])
    up_bits_per_s = rate_bits_per_s(server, subcarriers, gain, power_w)
    down_bits_per_s = rate_bits_per_s(server, subcarriers, gain, server.power_w)
    splits = np.asarray(splits)
    before = splits.copy()
    for node, device in enumerate(devices):
        if device.split is not None:
            before[..., node] = device.split
    rates = np.where(splits > before, down_bits_per_s, up_bits_per_s)
    return np.abs(splits - before) * layer_bits(scenario.model) / rates


def epoch_s(iterations: int, cloud_link_s: Any, iteration_s: Any) -> Any:
    """Equation 19: J (d4 + V), V = max_n (d1 + d2 + d3), in seconds."""
    return iterations * (cloud_link_s + iteration_s)


def round_s(transfer_s: Any, epochs_s: Any) -> Any:
    """Equation 20: max_n d0 [..., N] and the sum of the epochs [..., T], in seconds."""
    return transfer_s.max(axis=-1) + epochs_s.sum(axis=-1)


def terms(scenario: Scenario, splits: np.ndarray) -> Terms:
    """Equations 12 and 16 without the share, for splits [..., N]."""
    model, splits = scenario.model, np.asarray(splits)
    on_device_s = device_s(model, splits[..., None, :], scenario.samples.flops_per_s)
    on_edge = layers_flops(model, model.layers - splits)
    return Terms(on_device_s, on_edge / scenario.server.flops_per_s)


def link_table_s(scenario: Scenario) -> np.ndarray:
    """Equation 15 for 1 to K subcarriers, [Q, N, K]; split points do not change it."""
    subcarriers = np.arange(1, scenario.server.subcarriers + 1)
    power_w = np.array([device.power_w for device in scenario.devices])
    return link_s(
        scenario.model,
        scenario.server,
        subcarriers,
        scenario.samples.gain[..., None],
        power_w[:, None],
    )


def problem(scenario: Scenario, splits: np.ndarray) -> LatencyProblem:
    """The small timescale's problem of every sample, for splits [..., N]."""
    found = terms(scenario, splits)
    whole_edge_s = np.broadcast_to(found.whole_edge_s[..., None, :], found.device_s.shape)
    return LatencyProblem(found.device_s, whole_edge_s, link_table_s(scenario))


def iteration_s(problem: LatencyProblem, shares: np.ndarray, subcarriers: np.ndarray) -> np.ndarray:
    """d1 + d2 + d3 of every device, [..., N], for an allocation [..., N]."""
    chosen = linked_s(problem, subcarriers)
    return problem.device_s + chosen + edge_s(problem.whole_edge_s, shares)


def linked_s(problem: LatencyProblem, subcarriers: np.ndarray) -> np.ndarray:
    """d2 [..., N] with these subcarriers [..., N]."""
    table = np.broadcast_to(problem.link_s, (*subcarriers.shape, problem.subcarriers))
    return np.take_along_axis(table, subcarriers[..., None] - 1, axis=-1)[..., 0]


def objective_s(scenario: Scenario, splits: np.ndarray, iteration_s: np.ndarray) -> Any:
    """Equation 29: max d0 + (T / Q) sum_q J (d4 + V_q), seconds a round.

    Equations 27 and 28 put the mean of the samples for that of the T epochs of equation 20.

    Args:
      scenario: of which.
      splits: [..., N].
      iteration_s: V [..., Q], of the slowest device of each sample.
    """
    fixed_s = cloud_link_s(scenario.model, scenario.cloud, len(scenario.devices))
    epochs_s = epoch_s(scenario.iterations, fixed_s, iteration_s)
    moved_s = transfer_s(scenario, splits).max(axis=-1)
    return moved_s + scenario.epochs * epochs_s.mean(axis=-1)


def _namespace(*arrays: Any) -> ModuleType:
    """jax.numpy where one of these is JAX's, numpy otherwise."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
