"""`--trace_dir`: a profile of some rounds that names rounds, visits and steps, and changes nothing
in the run.
"""

import re

import pytest
from jax.profiler import ProfileData

from tests.launches import Ended, in_new_process, results, write_images, write_model, write_pairs

SMALL = (
    "--model=mlp",
    "--width=0.1",
    "--nodes=3",
    "--batch_size=8",
    "--learning_rate=0.05",
    "--algorithm=snake",
)


def in_own_process(flag_list, name="classify"):
    """A launch in a process of its own: the profiler is one for all that a process does."""
    process = in_new_process(flag_list, name)
    stdout, stderr = process.communicate(timeout=300)
    return Ended(process.returncode, stdout, stderr)


@pytest.fixture
def launch(tmp_path):
    images = write_images(tmp_path / "images.npz")
    return lambda *flag_list: in_own_process([*SMALL, f"--dataset=npz:{images}", *flag_list])


def traced(folder):
    """Names of all events in the one profile of the folder, as the profiler's own reader gives
    them.
    """
    (file,) = folder.rglob("*.xplane.pb")
    assert len(list(folder.rglob("*.trace.json.gz"))) == 1
    names = []
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            names += [event.name for event in line.events]
    return names


def test_it_has_the_rounds_after_the_first_by_name(launch, tmp_path):
    end = launch(
        "--cycles=6",
        f"--trace_dir={tmp_path / 'trace'}",
        "--trace_rounds=2",
        f"--workdir={tmp_path / 'run'}",
    )
    assert end.code == 0, end.stderr
    found = traced(tmp_path / "trace")
    assert sorted(name for name in found if re.fullmatch(r"round \d+", name)) == [
        "round 2",
        "round 3",
    ]
    # One part is that in which it is begun, the other that in which it is waited for.
    visits = sorted(name for name in found if name.startswith("visit "))
    assert [re.match(r"visit (\d+), node (\d+): \w+", name).groups() for name in visits] == [
        ("1", "1"),
        ("1", "1"),
        ("2", "2"),
        ("2", "2"),
    ]
    assert sum(name.startswith("train") for name in found) == 2, (
        "a program an epoch, and one epoch a visit"
    )
    assert "evaluate" in found
    assert launch("--cycles=6", f"--workdir={tmp_path / 'plain'}").code == 0
    assert results(tmp_path / "run") == results(tmp_path / "plain")


@pytest.mark.slow
def test_a_fine_tuning_run_names_blocks_and_steps(tmp_path):
    flags = (
        "--nodes=2",
        "--max_length=64",
        "--batch_size=4",
        "--lora_rank=4",
        "--save=none",
        "--learning_rate=0.01",
    )
    files = (
        f"--model={write_model(tmp_path / 'model')}",
        f"--data={write_pairs(tmp_path / 'pairs.jsonl')}",
    )
    traced_run = (
        f"--trace_dir={tmp_path / 'trace'}",
        "--trace_rounds=1",
        f"--workdir={tmp_path / 'run'}",
    )
    end = in_own_process([*flags, *files, *traced_run], "finetune")
    assert end.code == 0, end.stderr
    found = traced(tmp_path / "trace")
    assert [name for name in found if name.startswith("visit ")] == [
        "visit 1, node 1: block_01.lora",
        "visit 1, node 1: block_01.lora",
    ]
    assert (
        sum(name.startswith("train") for name in found)
        == results(tmp_path / "run")["metrics"][1]["iterations"]
    )


def test_rounds_that_there_are_not_cannot_be_traced(launch, tmp_path):
    own = ("--cycles=1", f"--workdir={tmp_path / 'run'}")
    assert launch(*own).code == 0
    end = launch(*own, f"--trace_dir={tmp_path / 'trace'}")
    assert end.code == 2
    assert end.stderr.endswith(
        f"error: --trace_dir={tmp_path / 'trace'}: rounds are traced from the second on, and 0 "
        f"are left to train\n"
    )
    assert not (tmp_path / "trace").exists()
