"""Presets: what they say of themselves, and that what is typed wins over them."""

import pytest
from absl import flags

from snake_jax.cli import main, presets
from snake_jax.cli.commands import COMMANDS, config_flags
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.errors import UserError
from tests.launches import ROOT

KINDS = {"classify": ImageConfig, "finetune": TextConfig}


def parsed(name, *words):
    """The flags of a command, read from these words."""
    values = main.define(COMMANDS[name])
    assert main.parse(COMMANDS[name], values, ["snake-jax", *words]) == ["snake-jax"]
    return values


def configuration(name, *words):
    return config_flags.from_flags(parsed(name, *words), KINDS[name])


@pytest.mark.parametrize("name", presets.NAMES)
def test_a_preset_says_what_it_is_and_is_a_configuration(name):
    preset = presets.read(name)
    assert tuple(preset.header) == presets.HEADER
    assert all(preset.header.values())
    assert "@" not in preset.text
    program, command, flag, workdir = preset.header["command"].split()
    assert (program, flag) == ("snake-jax", f"--preset={name}")
    assert workdir.startswith("--workdir=runs/")
    assert configuration(command, flag) == configuration(command, *preset.flags)
    assert configuration(command, flag) != KINDS[command]()
    assert max(map(len, preset.text.splitlines())) <= 100


def test_all_are_listed_with_what_they_are(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["snake-jax", "presets"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stderr) == (0, "")
    assert len(presets.NAMES) == len(list((ROOT / "snake_jax/cli/presets").glob("*.flags"))) == 9
    for name in presets.NAMES:
        preset = presets.read(name)
        assert f"{name}: {preset.summary}\n" in stdout
        for key in ("command", "hardware", "time", "expected"):
            assert f"    {key}: {preset.header[key]}\n" in stdout


def test_one_is_printed_as_it_is(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["snake-jax", "presets", "demo_snake"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stderr) == (0, "")
    assert stdout == (ROOT / "snake_jax/cli/presets/demo_snake.flags").read_text()
    assert "\n--learning_rate=0.05\n" in stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--preset=demo_snake", "--cycles=3", "--nodes=4"),
        ("--cycles=3", "--nodes=4", "--preset=demo_snake"),
        ("--cycles=3", "--preset", "demo_snake", "--nodes=4"),
    ],
)
def test_what_is_typed_wins_wherever_it_stands(words):
    config = configuration("classify", *words)
    assert (config.cycles, config.nodes) == (3, 4)
    assert (config.width, config.lr_schedule) == (0.25, "cosine")


def test_what_a_preset_sets_is_no_default():
    values = parsed("classify", "--preset=demo_snake")
    assert not values["learning_rate"].using_default_value
    assert values["momentum"].using_default_value


@pytest.mark.parametrize("name", presets.NAMES)
def test_the_flag_files_of_experiments_still_lead_there(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "experiments/presets" / f"{name}.flags"
    command = presets.read(name).command
    there = configuration(command, f"--flagfile={file}", "--nodes=5")
    assert there == configuration(command, f"--preset={name}", "--nodes=5")


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("classify", "demo_snak", "no such preset; did you mean demo_snake?; snake-jax presets"),
        (
            "finetune",
            "demo_snake",
            "is for another command: snake-jax classify --preset=demo_snake",
        ),
    ],
)
def test_a_wrong_preset_is_one_line(command, name, message):
    with pytest.raises(UserError, match="--preset") as error:
        parsed(command, f"--preset={name}")
    assert message in str(error.value)


def test_commands_that_train_nothing_take_none():
    with pytest.raises(flags.Error, match="Unknown command line flag 'preset'"):
        parsed("compare", "--preset=demo_snake")
