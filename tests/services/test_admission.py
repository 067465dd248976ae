"""What a remote caller may ask for, and what is refused."""

import numpy as np
import pytest

from snake_jax.cli import main
from snake_jax.cli.commands import COMMANDS
from snake_jax.errors import UserError
from snake_jax.services import admission
from snake_jax.services.admission import Allowed


@pytest.fixture
def folders(tmp_path):
    """Two data folders with a file each, and one beside them with a link into it."""
    for name in ("one", "two", "secret"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / f"{name}.npz", x=np.zeros(1))
        (tmp_path / name / f"{name}.jsonl").write_text("{}\n")
    (tmp_path / "one" / "link.npz").symlink_to(tmp_path / "secret" / "secret.npz")
    (tmp_path / "one" / "model").mkdir()
    return tmp_path


@pytest.fixture
def allowed(folders):
    flags = {"classify": frozenset({"engine", "tensorboard"}), "finetune": frozenset({"save"})}
    data = tuple(admission.data_folder(str(folders / name)) for name in ("one", "two"))
    return Allowed(data, flags=flags)


def refusal(task, settings, allowed):
    with pytest.raises(UserError) as error:
        admission.checked(task, settings, allowed)
    line = str(error.value)
    assert line.isprintable(), "one line"
    return line


def test_a_configuration_is_given_on_as_it_is(allowed):
    settings = {"algorithm": "snake", "nodes": 3, "learning_rate": 1, "cached": False}
    checked = admission.checked("classify", settings, allowed)
    assert checked == settings
    assert isinstance(checked["learning_rate"], float)
    assert admission.words(checked) == [
        "--algorithm=snake",
        "--nodes=3",
        "--learning_rate=1.0",
        "--cached=false",
    ]


def test_flags_beside_the_configuration_are_those_that_the_command_has(allowed):
    assert admission.checked("classify", {"engine": "ray"}, allowed) == {"engine": "ray"}
    assert admission.checked("finetune", {"save": "none"}, allowed) == {"save": "none"}
    assert "no such setting" in refusal("finetune", {"engine": "ray"}, allowed)
    assert "not one of" in refusal("finetune", {"save": "../x"}, allowed)
    assert "want an engine's name" in refusal("classify", {"engine": "ray://10.0.0.1"}, allowed)
    wrong = {"save": "adapter", "lora_rank": 0}
    assert "there is no adapter with --lora_rank=0" in refusal("finetune", wrong, allowed)


def test_files_of_the_data_folders_are_found_by_whole_and_by_relative_paths(allowed, folders):
    two = (folders / "two" / "two.npz").resolve()
    for path in ("two.npz", str(two), "./two.npz"):
        checked = admission.checked("classify", {"dataset": f"npz:{path}"}, allowed)
        assert checked == {"dataset": f"npz:{two}"}
    text = {"data": "pydoc,one.jsonl, Dahoas/rm-static", "model": "model"}
    assert admission.checked("finetune", text, allowed) == {
        "data": f"pydoc,{(folders / 'one' / 'one.jsonl').resolve()},Dahoas/rm-static",
        "model": str((folders / "one" / "model").resolve()),
    }


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("classify", "dataset", "npz:{secret}/secret.npz"),
        ("classify", "dataset", "npz:../secret/secret.npz"),
        ("classify", "dataset", "npz:{one}/../secret/secret.npz"),
        ("classify", "dataset", "npz:link.npz"),
        ("classify", "dataset", "npz:/etc/passwd"),
        ("classify", "dataset", "npz:~/secret.npz"),
        ("classify", "dataset", "npz:nowhere.npz"),
        ("classify", "dataset", "npz:gs://bucket/data.npz"),
        ("classify", "dataset", "tfds:../mnist"),
        ("classify", "dataset", "/etc/passwd"),
        ("classify", "partition", "file:{secret}/secret.jsonl"),
        ("classify", "node_file", "{secret}/secret.jsonl"),
        ("classify", "node_file", "gs://bucket/nodes.yaml"),
        ("classify", "cut", "../2"),
        ("classify", "always_train", "/etc/passwd"),
        ("finetune", "data", "{secret}/secret.jsonl"),
        ("finetune", "data", "pydoc,../secret/secret.jsonl"),
        ("finetune", "data", "hub:../../secret"),
        ("finetune", "data", "https://example.org/data.jsonl"),
        ("finetune", "model", "{secret}"),
        ("finetune", "model", ".."),
        ("finetune", "model", "gs://bucket/model"),
        ("finetune", "tokenizer", "{secret}"),
        ("finetune", "lora_pattern", "~/x"),
    ],
)
def test_what_lies_outside_the_data_folders_is_refused(task, name, value, allowed, folders):
    value = value.format(secret=folders / "secret", one=folders / "one")
    assert refusal(task, {name: value}, allowed).startswith(f"--{name}")


def test_what_is_not_there_and_what_is_not_allowed_have_one_answer(allowed, folders):
    there = refusal("classify", {"dataset": "npz:/etc/passwd"}, allowed)
    absent = refusal("classify", {"dataset": "npz:/etc/nothing"}, allowed)
    assert there.replace("passwd", "nothing") == absent


@pytest.mark.parametrize("task", admission.TASKS)
def test_flags_of_a_launch_that_reach_elsewhere_are_refused(task, allowed):
    places = {
        "workdir": "../x",
        "trace_dir": "/tmp/trace",
        "compilation_cache_dir": "/tmp/programs",
        "coordinator_address": "10.0.0.1:1234",
        "preset": "demo_snake",
        "flagfile": "/etc/passwd",
        "distributed": True,
        "process_id": 1,
    }
    for name, value in places.items():
        assert refusal(task, {name: value}, allowed).startswith(f"--{name}: ")
    assert "no such setting" in refusal(task, {"nonsense": 1}, allowed)


@pytest.mark.parametrize("task", admission.TASKS)
def test_every_flag_of_a_command_is_a_setting_or_refused_by_name(task):
    """A flag that comes later has to be looked at by somebody."""
    flags = set(main.FlagValues())
    values = main.FlagValues()
    COMMANDS[task].define(values)
    fields = set(admission.TASKS[task].__dataclass_fields__)
    known = fields | set(admission._BESIDE[task]) | set(admission._REFUSED)
    assert set(values) - flags - known == set()


def test_code_of_ones_own_is_off_unless_it_is_allowed(allowed):
    for model in ("os:system", "own:tiny", "../own:tiny"):
        assert "off for services" in refusal("classify", {"model": model}, allowed)
    freely = allowed._replace(own_models=True)
    assert admission.checked("classify", {"model": "own.models:tiny"}, freely) == {
        "model": "own.models:tiny"
    }
    for model in ("../own:tiny", "own:tiny;ls", ":tiny", "own: "):
        assert "want MODULE:FUNCTION" in refusal("classify", {"model": model}, freely)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 0}, "--nodes=0: must be at least 1"),
        ({"nodes": "3"}, "--nodes=3: want a whole number"),
        ({"nodes": 3.5}, "--nodes=3.5: want a whole number"),
        ({"nodes": True}, "--nodes=True: want a whole number"),
        ({"nodes": 10**400}, "--nodes: a number of at most"),
        ({"cached": 1}, "--cached=1: want true or false"),
        ({"learning_rate": float("nan")}, "--learning_rate: must be a finite number"),
        ({"learning_rate": float("inf")}, "--learning_rate: must be a finite number"),
        ({"algorithm": "worm"}, "--algorithm=worm: not one of snake"),
        ({"algorithm": 3}, "--algorithm=3: want a text"),
        ({"algorithm": "snake", "snake_length": 2}, "snake has no use for it"),
        ({"interrupt": "nine"}, "--interrupt=nine"),
        ({"cut": "a\nb"}, "holds characters that cannot be printed"),
        ({"cut": "a\0b"}, "holds characters that cannot be printed"),
        ({"cut": "x" * 5000}, "longer than 4096 characters"),
        ({"cut\nb": 1}, "no such setting"),
    ],
)
def test_the_rules_of_the_command_line_hold(settings, said, allowed):
    assert said in refusal("classify", settings, allowed)


def test_there_are_two_tasks(allowed):
    assert "not one of classify, finetune" in refusal("profile", {}, allowed)


def test_a_data_folder_has_to_be_there(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        admission.data_folder(str(tmp_path / "nowhere"))
