"""A problem of SCCT as a file says it, checked.

All figures are SI: seconds, bits a second, watts, hertz; bits for what travels, bytes for memory.
Needs NumPy alone, so that a wrong file is refused before anything heavy is imported.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from snake_jax.errors import UserError
from snake_jax.scct.checks import figures, mapping, table, whole


@dataclass(frozen=True)
class Model:
    """The small language model and its batches.

    Attributes:
      layers: L; a split point s puts layers 1..s on the device, the rest on the edge.
      hidden: d_hid, width of a token's vector.
      input_length: d_in, tokens of an example.
      label_length: d_l, tokens of a label.
      batch: b, examples of an iteration.
      bits: xi, of a parameter and of a number that travels.
      backward_ratio: epsilon, FLOPs of the backward pass over those of the forward pass.
    """

    layers: int
    hidden: int
    input_length: int
    label_length: int
    batch: int
    bits: int
    backward_ratio: float


@dataclass(frozen=True)
class Server:
    """The edge server and its radio.

    Attributes:
      flops_per_s: C_e.
      memory_bytes: M_e.
      power_w: P_e.
      subcarriers: K.
      subcarrier_hz: B_s.
      noise_w_per_hz: N_0.
    """

    flops_per_s: float
    memory_bytes: float
    power_w: float
    subcarriers: int
    subcarrier_hz: float
    noise_w_per_hz: float


@dataclass(frozen=True)
class Cloud:
    """The fibre between edge and cloud.

    Attributes:
      bits_per_s: R_{c,e}.
      returns: what comes back over it: the paper's N losses, or the gradients that training needs.
    """

    bits_per_s: float
    returns: Literal["losses", "gradients"]


@dataclass(frozen=True)
class Device:
    """One device now, before the epochs of the samples.

    Attributes:
      flops_per_s: C_n.
      gain: G_n, received over sent power, antennas included.
      power_w: P_n.
      memory_bytes: M_n.
      split: layers that it holds already; None: it joins, and nothing is moved.
    """

    flops_per_s: float
    gain: float
    power_w: float
    memory_bytes: float
    split: int | None


@dataclass(frozen=True, eq=False)
class Samples:
    """Epochs from history: C_n [Q, N] in FLOP/s, G_n [Q, N]."""

    flops_per_s: np.ndarray
    gain: np.ndarray


@dataclass(frozen=True, eq=False)
class Scenario:
    """A round's problem: T `epochs` of J `iterations` each, valued on Q samples of an epoch."""

    model: Model
    server: Server
    cloud: Cloud
    devices: tuple[Device, ...]
    samples: Samples
    epochs: int
    iterations: int


def read(path: str) -> Scenario:
    """The scenario of a JSON file.

    Raises:
      UserError: the file cannot be read, is not JSON, or says no scenario; it names the key.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a scenario's file") from None
    except ValueError:
        raise UserError(f"{path}: not a text file in UTF-8; give a scenario as JSON") from None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not JSON: {reason}; mend it or draw one anew") from None
    try:
        return parsed(said)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parsed(said: object) -> Scenario:
    """The scenario that decoded JSON says.

    Raises:
      UserError: one line that names the key and the way out.
    """
    names = tuple(item.name for item in dataclasses.fields(Scenario))
    given = mapping("the scenario", said, names, optional=("samples",))
    model = Model(**figures("model", given["model"], Model))
    server = Server(**figures("server", given["server"], Server))
    cloud = Cloud(**figures("cloud", given["cloud"], Cloud))
    if not isinstance(given["devices"], list) or not given["devices"]:
        raise UserError("devices: want a list of at least one device")
    devices = []
    for index, entry in enumerate(given["devices"]):
        devices.append(Device(**figures(f"devices[{index}]", entry, Device)))
    return checked(
        Scenario(
            model,
            server,
            cloud,
            tuple(devices),
            _samples(given, devices),
            whole("epochs", given["epochs"]),
            whole("iterations", given["iterations"]),
        )
    )


def content(scenario: Scenario) -> dict[str, Any]:
    """The scenario as JSON has it: `parsed(content(x))` is x."""
    return {
        "model": dataclasses.asdict(scenario.model),
        "server": dataclasses.asdict(scenario.server),
        "cloud": dataclasses.asdict(scenario.cloud),
        "devices": [dataclasses.asdict(device) for device in scenario.devices],
        "samples": {
            "flops_per_s": scenario.samples.flops_per_s.tolist(),
            "gain": scenario.samples.gain.tolist(),
        },
        "epochs": scenario.epochs,
        "iterations": scenario.iterations,
    }


def checked(scenario: Scenario) -> Scenario:
    """The scenario itself, where some allocation and some split points are feasible.

    Raises:
      UserError: fewer subcarriers than devices, or memory too small for any split points.
    """
    model, server, count = scenario.model, scenario.server, len(scenario.devices)
    if server.subcarriers < count:
        raise UserError(
            f"server.subcarriers: {server.subcarriers} for {count} devices, and each needs one: "
            f"give at least {count}, or fewer devices"
        )
    for index, device in enumerate(scenario.devices):
        if device.split is not None and device.split > model.layers:
            raise UserError(
                f"devices[{index}].split: {device.split} of {model.layers} layers: want 1 to "
                f"{model.layers}, or null where the device holds none yet"
            )
        if device.memory_bytes < layer_bytes(model):
            raise UserError(
                f"devices[{index}].memory_bytes: {device.memory_bytes:g} hold no layer of "
                f"{layer_bytes(model):.0f} bytes: give at least that"
            )
    # The most that the devices can take leaves the least for the edge.
    left = edge_bytes(scenario, splits_that_fit(scenario))
    if left > server.memory_bytes:
        raise UserError(
            f"server.memory_bytes: {server.memory_bytes:g} are too few for any split: what the "
            f"devices cannot hold takes {left:g}; give that, or the devices more memory"
        )
    return scenario


def _samples(given: Mapping[str, Any], devices: list[Device]) -> Samples:
    """The samples [Q, N]; left out, one of the devices' own figures."""
    if "samples" not in given:
        own_flops_per_s = np.array([device.flops_per_s for device in devices])
        own_gain = np.array([device.gain for device in devices])
        return Samples(own_flops_per_s[None], own_gain[None])
    said = mapping("samples", given["samples"], ("flops_per_s", "gain"))
    tables = {name: table(f"samples.{name}", said[name], len(devices)) for name in said}
    flops_per_s, gain = tables["flops_per_s"], tables["gain"]
    if len(flops_per_s) != len(gain):
        raise UserError(
            f"samples: {len(flops_per_s)} of flops_per_s and {len(gain)} of gain; give as many "
            f"of both"
        )
    return Samples(flops_per_s, gain)


def layer_bits(model: Model) -> int:
    """Equation 1: z = xi (12 d_hid^2 + 4 d_hid), weights and LayerNorms of a layer."""
    return model.bits * (12 * model.hidden**2 + 4 * model.hidden)


def layer_bytes(model: Model) -> float:
    """Equation 1 in bytes."""
    return layer_bits(model) / 8


def splits_that_fit(scenario: Scenario) -> np.ndarray:
    """[N] ints: the largest split that each device's memory allows, constraint 21-6."""
    size = layer_bytes(scenario.model)
    held = [device.memory_bytes // size for device in scenario.devices]
    return np.minimum(np.array(held), scenario.model.layers).astype(int)


def edge_bytes(scenario: Scenario, splits: np.ndarray) -> np.ndarray:
    """Left side of constraint 21-7: bytes of all layers on the edge, for splits [..., N]."""
    on_edge = scenario.model.layers - np.asarray(splits)
    return layer_bytes(scenario.model) * on_edge.sum(axis=-1)


def fits(scenario: Scenario, splits: np.ndarray) -> np.ndarray:
    """[...] bools: whether splits [..., N] keep constraints 21-5, 21-6 and 21-7."""
    splits = np.asarray(splits)
    on_devices = (splits >= 1) & (splits <= splits_that_fit(scenario))
    on_edge = edge_bytes(scenario, splits) <= scenario.server.memory_bytes
    return on_devices.all(axis=-1) & on_edge
