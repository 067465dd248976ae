"""Presets: what they say of themselves, and that what is typed wins over them."""

import dataclasses

import pytest
from absl import flags

from snake_jax.cli import main, presets
from snake_jax.cli.commands import COMMANDS, config_flags
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop
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
    # A flag's value cannot go on in the next line, which a list of sources needs.
    lines = [line for line in preset.text.splitlines() if not line.startswith("--data=")]
    assert max(map(len, lines)) <= 100


def test_all_are_listed_with_what_they_are(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["snake-jax", "presets"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stderr) == (0, "")
    assert len(presets.NAMES) == len(list((ROOT / "snake_jax/cli/presets").glob("*.flags"))) == 12
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


PAPER_PRESETS = {"paper_vision": "classify", "paper_language": "finetune"}


@pytest.mark.parametrize(
    ("name", "data", "visits", "trained"),
    [
        ("paper_vision", "--dataset=digits", 9 * 30, ("conv1", "conv2", "fc11")),
        ("paper_language", "--data=pydoc", 24, ("embed", "block_00.lora", "head")),
    ],
)
def test_the_papers_presets_can_be_run(name, data, visits, trained):
    words = [f"--preset={name}", data]
    if name == "paper_language":
        words.append("--limit=48")
    setup = loop.prepare(configuration(PAPER_PRESETS[name], *words))
    rounds = loop.planned(setup)
    assert len(rounds) == visits
    # A node for each middle layer, and both ends at each.
    (first,) = rounds[0]
    assert first.layers == trained
    assert {visit.node for (visit,) in rounds} == set(range(setup.config.nodes))


def _papers_table():
    """The rows of the table of docs/design.md, by flag: the first four of their values."""
    text = (ROOT / "docs/design.md").read_text()
    section = text.split("## Defaults beside the papers\n", 1)[1].split("\n## ", 1)[0]
    rows = {}
    for line in section.splitlines():
        if line.startswith("| `--"):
            flag, *values = (cell.strip() for cell in line.strip("|").split("|"))
            rows[flag.strip("`").removeprefix("--")] = values
            assert all(values[-2:]), f"{flag} has no reason"
    return rows


def _said(config, flag):
    """A setting as the table writes it; empty where the configuration has none."""
    if flag not in {field.name for field in dataclasses.fields(config)}:
        return ""
    value = str(getattr(config, flag))
    return "(four sources)" if value.count(",") == 3 else value


def test_the_table_of_defaults_beside_the_papers_is_the_codes():
    rows = _papers_table()
    asked = "distill_temperature distill_weight distill_threshold momentum always_train distill"
    assert {*asked.split(), "nodes", "categories_per_node"} <= rows.keys()
    for index, kind in enumerate((ImageConfig, TextConfig)):
        name, command = list(PAPER_PRESETS.items())[index]
        defaults, papers = kind(), configuration(command, f"--preset={name}")
        for flag, values in rows.items():
            default, preset = values[index], values[2 + index]
            assert _said(defaults, flag) == default, flag
            said = _said(papers, flag)
            assert said == preset or float(said) == float(preset), flag
        # What a preset changes and the table leaves out would be a hidden difference.
        for field in dataclasses.fields(kind):
            if getattr(papers, field.name) != getattr(defaults, field.name):
                assert field.name in (*rows, "cycles"), field.name
