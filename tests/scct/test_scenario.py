"""Scenarios: what a file may say, what is refused in which words, and what the generator draws."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.scct import drawing, scenario
from snake_jax.scct.drawing import BASE, Law, drawn
from snake_jax.scct.scenario import content, parsed, read

GOOD = {
    "model": {
        "layers": 12,
        "hidden": 768,
        "input_length": 384,
        "label_length": 16,
        "batch": 8,
        "bits": 32,
        "backward_ratio": 2.0,
    },
    "server": {
        "flops_per_s": 3.12e14,
        "memory_bytes": 6e12,
        "power_w": 100,
        "subcarriers": 200,
        "subcarrier_hz": 2e6,
        "noise_w_per_hz": 3.98e-21,
    },
    "cloud": {"bits_per_s": 1e9, "returns": "losses"},
    "devices": [
        {
            "flops_per_s": 1e13,
            "gain": 1e-11,
            "power_w": 0.1995,
            "memory_bytes": 2e8,
            "split": 3,
        },
        {
            "flops_per_s": 2e13,
            "gain": 2e-11,
            "power_w": 0.1995,
            "memory_bytes": 4e8,
            "split": None,
        },
    ],
    "samples": {"flops_per_s": [[1e13, 2e13], [2e13, 1e13]], "gain": [[1e-11] * 2, [2e-11] * 2]},
    "epochs": 60,
    "iterations": 60,
}


def changed(*path_and_value) -> dict:
    """GOOD with the value at a path of keys; `...` takes the key away."""
    *path, last, value = path_and_value
    said = copy.deepcopy(GOOD)
    inner = said
    for key in path:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return said


def test_a_scenario_comes_back_as_it_was_said():
    found = parsed(GOOD)
    assert content(found) == GOOD
    assert found.server.subcarriers == 200
    assert found.devices[0].split == 3
    assert found.samples.gain.shape == (2, 2)


def test_samples_left_out_are_the_devices_own_figures():
    found = parsed(changed("samples", ...))
    np.testing.assert_array_equal(found.samples.flops_per_s, [[1e13, 2e13]])
    np.testing.assert_array_equal(found.samples.gain, [[1e-11, 2e-11]])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "the scenario: want an object"),
        (changed("model", 3), "model: want an object"),
        (changed("rounds", 3), "the scenario: unknown key 'rounds'; known are model"),
        (changed("server", "watts", 3), "server: unknown key 'watts'; known are flops_per_s"),
        (changed("epochs", ...), "the scenario: the key 'epochs' is missing; add it"),
        (changed("server", "power_w", ...), "server: the key 'power_w' is missing; add it"),
        (changed("devices", 1, "split", ...), r"devices\[1\]: the key 'split' is missing"),
        (changed("samples", "gain", ...), "samples: the key 'gain' is missing"),
        (changed("server", "power_w", -1), "server.power_w: -1 is not a number above zero"),
        (changed("server", "power_w", 0), "server.power_w: 0 is not a number above zero"),
        (changed("server", "power_w", "9"), 'server.power_w: "9" is not a number above zero'),
        (changed("server", "power_w", True), "server.power_w: true is not a number above zero"),
        (changed("server", "power_w", None), "server.power_w: null is not a number above zero"),
        (changed("server", "power_w", float("nan")), "server.power_w: NaN is not a number"),
        (changed("cloud", "bits_per_s", float("inf")), "cloud.bits_per_s: Infinity is not"),
        (changed("cloud", "bits_per_s", 10**400), r"cloud.bits_per_s: 10+\.\.\. is not a number"),
        (changed("model", "layers", 2.5), "model.layers: 2.5 is not a whole number from 1"),
        (changed("model", "layers", 0), "model.layers: 0 is not a whole number from 1"),
        (changed("iterations", False), "iterations: false is not a whole number"),
        (changed("cloud", "returns", "all"), 'cloud.returns: "all" is not one of losses, grad'),
        (changed("cloud", "returns", 3), "cloud.returns: 3 is not one of losses, gradients"),
        (changed("devices", []), "devices: want a list of at least one device"),
        (changed("devices", 0, 7), r"devices\[0\]: want an object"),
        (changed("devices", 0, "gain", 0.0), r"devices\[0\].gain: 0.0 is not a number above"),
        (changed("devices", 0, "split", 13), r"devices\[0\].split: 13 of 12 layers: want 1 to"),
        (changed("devices", 0, "split", 0), r"devices\[0\].split: 0 is not a whole number"),
        (changed("devices", 1, "memory_bytes", 2e7), r"devices\[1\].memory_bytes: 2e\+07 hold"),
        (changed("server", "memory_bytes", 1e6), "server.memory_bytes: 1e.06 are too few"),
        (changed("server", "subcarriers", 1), "server.subcarriers: 1 for 2 devices.*at least 2"),
        (changed("samples", "gain", []), "samples.gain: want a list of at least one sample"),
        (changed("samples", "gain", 1, [1e-11]), r"samples.gain\[1\]: 1 numbers for 2 devices"),
        (changed("samples", "gain", 1, 1e-11), r"samples.gain\[1\]: 1e-11 for 2 devices"),
        (changed("samples", "gain", 1, 1, -1.0), r"samples.gain\[1\]\[1\]: -1.0 is not"),
        (changed("samples", "gain", [[1e-11] * 2]), "samples: 2 of flops_per_s and 1 of gain"),
    ],
)
def test_a_wrong_scenario_is_refused_by_its_key_in_one_line(said, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        parsed(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"model": ', "not JSON: "),
        (b"", "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b"\xff\xfe\x00", "not a text file"),
        (json.dumps(changed("epochs", 0)).encode(), "epochs: 0 is not a whole number"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "wrong.json"
    file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        read(str(file))
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: No such file.*give a scenario"):
        read(str(tmp_path / "absent.json"))


def test_a_file_is_read_as_it_says(tmp_path):
    file = tmp_path / "scenario.json"
    file.write_text(json.dumps(GOOD))
    assert content(read(str(file))) == GOOD


def test_reading_needs_no_jax():
    code = "import sys; import snake_jax.scct.scenario; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_largest_split_is_what_memory_holds():
    said = changed("devices", 0, "memory_bytes", 28_323_840)  # one layer to the byte
    said["devices"][1]["memory_bytes"] = 1e12
    assert scenario.splits_that_fit(parsed(said)).tolist() == [1, 12]
    said["devices"][0]["memory_bytes"] = 2.5 * 28_323_840
    assert scenario.splits_that_fit(parsed(said)).tolist() == [2, 12]


def test_splits_fit_where_devices_and_edge_have_the_memory():
    # 2e8 bytes hold 7 layers, 4e8 all; the edge has room for 10 layers.
    found = parsed(changed("server", "memory_bytes", 10 * 28_323_840))
    splits = [[7, 12], [7, 7], [7, 6], [8, 12], [0, 12]]
    assert scenario.fits(found, np.array(splits)).tolist() == [True, True, False, False, False]
    assert scenario.edge_bytes(found, np.array([7, 6])) == 11 * 28_323_840


def test_decibels_are_ratios_of_powers():
    assert drawing.from_decibels(30) == pytest.approx(1000)
    assert drawing.TABLE_III.power_w == pytest.approx(100)  # 50 dBm
    assert pytest.approx(0.19953, rel=1e-4) == drawing.DEVICE_W  # 23 dBm
    assert drawing.TABLE_III.noise_w_per_hz == pytest.approx(3.981e-21, rel=1e-3)  # -174 dBm


def test_a_drawn_scenario_is_one_that_a_file_may_hold():
    found = drawn(3, 5, 12, 4)
    assert content(parsed(json.loads(json.dumps(content(found))))) == content(found)
    assert found.samples.gain.shape == found.samples.flops_per_s.shape == (4, 5)
    assert content(drawn(3, 5, 12, 4)) == content(found)
    assert content(drawn(4, 5, 12, 4)) != content(found)


def test_devices_and_samples_do_not_depend_on_how_many_are_drawn():
    few, many = drawn(3, 2, 12, 2), drawn(3, 5, 24, 6)
    assert many.devices[:2] == few.devices
    np.testing.assert_array_equal(many.samples.gain[:2, :2], few.samples.gain)
    np.testing.assert_array_equal(many.samples.flops_per_s[:2, :2], few.samples.flops_per_s)


def test_what_is_drawn_lies_within_the_law():
    found = drawn(0, 300, 300, 50)
    own = np.array([device.flops_per_s for device in found.devices])
    assert own.min() > 2e12
    assert own.max() < 30e12
    assert own.mean() == pytest.approx(16e12, rel=0.1)
    layers = np.array([device.memory_bytes for device in found.devices])
    layers = layers / scenario.layer_bytes(BASE)
    assert layers.min() > 3
    assert layers.max() < 14
    factors = found.samples.flops_per_s / own
    assert factors.min() > 0.5
    assert factors.max() < 1.5
    # The power of Rayleigh fading has mean 1 and is below ln 2 half of the time.
    gain = np.array([device.gain for device in found.devices])
    fading = found.samples.gain / gain
    assert fading.mean() == pytest.approx(1, rel=0.05)
    assert np.median(fading) == pytest.approx(np.log(2), rel=0.05)
    # At 50 m the loss is 79.2 dB, at 500 m 116.8; 25 dB of antennas, shadows of 8 dB beside it.
    decibels = 10 * np.log10(gain)
    assert decibels.min() > 25 - 116.8 - 32
    assert decibels.max() < 25 - 79.2 + 32
    # Half of the ring lies beyond 355 m, where the loss is 111.2 dB.
    assert np.median(decibels) == pytest.approx(25 - 111.2, abs=2)


def test_fresh_samples_are_of_the_same_devices():
    found = drawn(3, 2, 12, 4)
    fresh = drawing.resampled(found, 99, 7)
    assert fresh.devices == found.devices
    assert fresh.samples.gain.shape == (7, 2)
    assert not np.isin(fresh.samples.gain, found.samples.gain).any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 5, 1), "nodes: 0 is not a whole number"),
        ((2, 0, 1), "subcarriers: 0 is not a whole number"),
        ((2, 5, 0), "samples: 0 is not a whole number"),
        ((6, 5, 1), "server.subcarriers: 5 for 6 devices"),
    ],
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        drawn(0, *sizes)


def test_a_law_that_nothing_fits_is_refused():
    with pytest.raises(UserError, match="memory_bytes"):
        drawn(0, 2, 5, 1, Law(layers=(0.1, 0.2)))
