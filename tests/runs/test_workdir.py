"""The run folder: whose it is, what it takes, and what is left of it after a kill."""

import dataclasses
import json
import shutil

import pytest

from snake_jax.config import ImageConfig
from snake_jax.engines.contract import Compilations
from snake_jax.errors import UserError
from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import SERVER, node
from snake_jax.runs.loop import Report, initial_state, prepare
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import strict_json, write_images

COMPILED = Compilations(3, 1.5, 1000)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return prepare(
        ImageConfig(
            model="mlp", width=0.1, nodes=3, dataset=f"npz:{images}", carry_optimizer_state=True
        )
    )


@pytest.fixture(scope="module")
def fresh(setup):
    return initial_state(setup)


@pytest.fixture
def opened(tmp_path, setup):
    """`opened(**changes of the config)` opens the folder of the test; all are closed at its end."""
    folders = []

    def open_folder(**changes):
        folders.append(Workdir(tmp_path / "run", dataclasses.replace(setup.config, **changes)))
        return folders[-1]

    yield open_folder
    for folder in folders:
        folder.close()


@pytest.fixture(scope="module")
def written(setup, fresh, tmp_path_factory):
    """A folder with two rounds in it."""
    folder = Workdir(tmp_path_factory.mktemp("written") / "run", setup.config)
    for number in (1, 2):
        transfers = [Transfer(number, SERVER, node(0), ("fc1",), 5, "update")]
        state = fresh._replace(rounds=number, network=ledger.start(["fc1", f"version{number}"]))
        folder.add(Report({"visit": number, "loss": None}, transfers, state), COMPILED)
    folder.close()
    return folder.path


@pytest.fixture
def two_rounds(written, tmp_path):
    """The test's own copy of such a folder."""
    return shutil.copytree(written, tmp_path / "run")


# Whose it is


def test_a_new_folder_is_made_and_says_its_configuration(opened, setup, tmp_path):
    opened()
    assert strict_json((tmp_path / "run" / "config.json").read_text()) == dataclasses.asdict(
        setup.config
    )


def test_one_process_at_a_time(opened):
    first = opened()
    with pytest.raises(UserError, match="in use by another process"):
        opened()
    first.close()
    opened()


def test_a_refusal_does_not_keep_the_folder(opened):
    opened().close()
    with pytest.raises(UserError, match=r"other flags: --seed=0 \(here 1\); "):
        opened(seed=1)
    opened()


def test_a_run_of_another_version_is_not_gone_on_with(opened, tmp_path):
    opened().close()
    file = tmp_path / "run" / "config.json"
    stored = strict_json(file.read_text())
    del stored["accumulate"]
    file.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"begun with another version .* had no --accumulate; give"):
        opened()
    assert strict_json(file.read_text()) == stored


def test_killed_before_it_was_claimed(opened, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.part").write_text('{"algor')
    opened()


def test_a_folder_of_other_things_is_left_alone(opened, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds files but no run"):
        opened()
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(opened, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="give a folder that can be written"):
        opened()


def test_a_folder_that_cannot_be_written(opened, tmp_path):
    (tmp_path / "run" / "config.json.part").mkdir(parents=True)  # root may write anywhere but here
    with pytest.raises(UserError, match="give a folder that can be written"):
        opened()


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"[]", b"null", b"\xff\xfe"])
def test_a_damaged_configuration_is_named(content, opened, tmp_path):
    opened().close()
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json is damaged \(.*\); give another --workdir"):
        opened()


def test_what_to_do_on_divergence_may_change(opened, tmp_path):
    for choice in ("stop", "skip", "stop"):
        opened(on_divergence=choice).close()
        assert (
            strict_json((tmp_path / "run" / "config.json").read_text())["on_divergence"] == choice
        )


def test_more_cycles_make_of_a_run_that_has_ended_one_that_has_not(opened, tmp_path):
    folder = opened(cycles=2)
    folder.finish({"final_accuracy": 0.5})
    folder.close()
    opened(cycles=3).close()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert strict_json((tmp_path / "run" / "config.json").read_text())["cycles"] == 3


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"cycles": 1}, r"--cycles=2 \(here 1\); use"),
        ({"cycles": 3, "seed": 1}, r"--cycles=2 \(here 3\), --seed=0 \(here 1\); use"),
    ],
)
def test_fewer_cycles_and_other_flags_beside_more_are_refused(changes, refused, opened, tmp_path):
    folder = opened(cycles=2)
    folder.finish({"final_accuracy": 0.5})
    folder.close()
    with pytest.raises(UserError, match=refused):
        opened(**changes)
    assert (tmp_path / "run" / "summary.json").exists()


# How it goes on


def test_a_new_folder_begins_at_the_beginning(opened, setup, fresh):
    folder = opened()
    state = folder.resume(setup, pytest.fail)
    assert same_bits(state.params, fresh.params)
    assert (state.rounds, folder.records, folder.earlier) == (0, [], Compilations(0, 0.0, None))


def test_goes_on_with_all_that_was_there(two_rounds, opened, setup, fresh):
    folder = opened()
    state = folder.resume(setup, pytest.fail)
    assert same_bits(state.params, fresh.params)
    assert (state.rounds, state.network) == (2, ledger.start(["fc1", "version2"]))
    assert folder.earlier == COMPILED
    assert folder.records == [{"visit": 1, "loss": None}, {"visit": 2, "loss": None}]


@pytest.mark.parametrize(
    "rest", ['{"visit": 3, "lo', '{"visit": 3}\n', '{"visit": 3}\n{"vi', "\x00\x00"]
)
def test_lines_past_the_checkpoint_are_cut_off(rest, two_rounds, opened, setup):
    files = [two_rounds / name for name in ("metrics.jsonl", "ledger.jsonl")]
    before = [file.read_text() for file in files]
    for file in files:
        file.write_text(file.read_text() + rest)
    opened().resume(setup, pytest.fail)
    assert [file.read_text() for file in files] == before


def test_lines_of_a_round_before_the_first_checkpoint_are_cut_off(opened, setup, tmp_path):
    opened().close()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"visit": 0}\n')
    assert opened().resume(setup, pytest.fail).rounds == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_results_without_a_checkpoint_are_not_thrown_away(opened, setup, tmp_path):
    opened().close()
    content = '{"visit": 0}\n{"visit": 1}\n'
    (tmp_path / "run" / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match="no checkpoint to go on from; give another --workdir"):
        opened().resume(setup, pytest.fail)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == content


@pytest.mark.parametrize(
    "content", [None, "", '{"visit": 1}\n', '{"visit": 1}\n{"vis', '{"vis\n{"visit": 2}\n']
)
def test_lost_lines_are_said(content, two_rounds, opened, setup):
    (two_rounds / "metrics.jsonl").unlink()
    if content is not None:
        (two_rounds / "metrics.jsonl").write_text(content)
    with pytest.raises(
        UserError, match=r"metrics.jsonl (has \d lines|is damaged).*give another --workdir"
    ):
        opened().resume(setup, pytest.fail)


def test_a_divergent_state_is_kept_once(two_rounds, opened, setup, fresh):
    folder = opened()
    state = folder.resume(setup, pytest.fail)
    folder.keep(state._replace(params={}), COMPILED)
    folder.close()
    assert same_bits(opened().resume(setup, pytest.fail).params, fresh.params)


def test_no_number_that_json_does_not_have(opened, fresh):
    folder = opened()
    folder.add(Report({"loss": float("nan")}, [], fresh), COMPILED)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.settle()


def test_a_summary_replaces_the_one_before(opened, tmp_path):
    folder = opened()
    for number in (1, 2):
        folder.finish({"accuracy": number})
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"accuracy": 2}
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("storage.append", OSError(28, "No space left on device")),
        ("Checkpoints.save", ValueError("RESOURCE_EXHAUSTED: ... No space left on device")),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_what_was_kept(
    opened, setup, fresh, monkeypatch, place, error
):
    def full(*arguments):
        raise error

    folder = opened()
    folder.add(Report({"visit": 0}, [], fresh._replace(rounds=1)), COMPILED)
    folder.settle()
    with monkeypatch.context() as patch:
        patch.setattr(f"snake_jax.runs.workdir.{place}", full)
        folder.add(Report({"visit": 1}, [], fresh._replace(rounds=2)), COMPILED)
        with pytest.raises(UserError, match="no space is left; make some, and the same command"):
            folder.settle()
    folder.close()
    again = opened()
    assert again.resume(setup, pytest.fail).rounds == 1
    assert again.records == [{"visit": 0}]
