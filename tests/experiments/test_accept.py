"""The acceptance: stages in order, within the minutes, each with its result; a page at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.accept import (
    describe,
    dry,
    kernels,
    launches,
    noise,
    one,
    outcome,
    page,
    stages,
    values,
)
from experiments.accept.outcome import FAILED, LEFT_OUT, PASSED, Outcome, Result
from experiments.accept.sizes import SCALES
from experiments.accept.stages import STAGES, Stage
from experiments.bench.rows import LOWER, Row
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError

ROOT = Path(__file__).parents[2]
MET = Row("table", "a thing", "share", 0.5, better=LOWER, limit=1.0)
UNMET = MET._replace(value=2.0)
DEVICE_COUNT = "--xla_force_host_platform_device_count"
TINY = {"model": "mlp", "width": 0.25, "train_examples": 32, "nodes": 2, "cycles": 1}


def result_of(stage, row=MET, scale="test"):
    found = Outcome((row,))
    return Result(stage, outcome.status_of(found), scale, 1.0, found, {"device": "a chip"})


def carried_out(folder, left_s=1e9, rows=None, chosen=STAGES):
    """The results, and the stages that were launched with their limits."""
    launched = []

    def launch(stage, limit_s):
        launched.append((stage.name, limit_s))
        return result_of(stage.name, (rows or {}).get(stage.name, MET))

    results = stages.carry_out(
        chosen, "test", folder, lambda: left_s, launch, lambda line: None, lambda results: None
    )
    return results, launched


def test_what_has_passed_is_not_run_again_and_what_failed_is(tmp_path):
    first, launched = carried_out(tmp_path, rows={"steps": UNMET})
    assert [name for name, _ in launched] == [stage.name for stage in STAGES]
    assert {result.stage for result in first if result.status == FAILED} == {"steps"}
    second, again = carried_out(tmp_path)
    assert [name for name, _ in again] == ["steps"]
    assert {result.status for result in second} == {PASSED}
    assert second[0] == first[0]._replace(outcome=Outcome([MET], [], []))


def test_what_does_not_fit_is_said_and_is_run_when_there_are_more_minutes(tmp_path):
    results, launched = carried_out(tmp_path, left_s=22.0)
    left_out = [result.stage for result in results if result.status == LEFT_OUT]
    assert left_out == ["training", "speed", "figure5"]
    assert ("kernels", 22.0) in launched
    assert page.exit_code(results) == 3
    text = page.markdown("command", {}, results)
    assert "Did not fit: expected to take 40 s, 22 s were left." in text
    _, later = carried_out(tmp_path)
    assert [name for name, _ in later] == left_out


def test_what_ends_the_acceptance_leaves_a_page_of_how_far_it_came(tmp_path):
    told = []

    def launch(stage, limit_s):
        if stage.name == "training":
            raise KeyboardInterrupt
        return result_of(stage.name)

    with pytest.raises(KeyboardInterrupt):
        stages.carry_out(
            STAGES, "test", tmp_path, lambda: 1e9, launch, lambda line: None, told.append
        )
    assert [len(results) for results in told] == [len(STAGES)] * 3
    statuses = {result.stage: result.status for result in told[-1]}
    assert {name for name, status in statuses.items() if status == PASSED} == {"device", "kernels"}
    assert page.exit_code(told[-1]) == 3
    text = page.markdown("command", {}, told[-1])
    assert text.count("Did not fit: the acceptance was ended before it.") == len(STAGES) - 2


def test_a_stage_that_fills_the_time_gets_all_of_it_and_others_a_limit():
    by_name = {stage.name: stage for stage in STAGES}
    assert stages.limit_s(by_name["figure5"], "full", 900.0) == 900.0
    assert stages.limit_s(by_name["kernels"], "full", 1e6) < 1000.0
    assert stages.limit_s(by_name["kernels"], "full", 100.0) is None
    # All but the last leave it time within the minutes that are asked for.
    expected = sum(stage.expected_s["full"] for stage in STAGES)
    assert expected <= 25 * 60


def test_the_page_names_what_failed_and_the_exit_code_says_it(tmp_path):
    results = [result_of("device"), result_of("kernels", UNMET)]
    files = page.write(tmp_path, "python -m experiments.accept", results)
    text, numbers = files[0].read_text(), json.loads(files[1].read_text())
    assert text.startswith("# Acceptance on a chip\n")
    assert "- **kernels**: a thing, share: 2, want at most 1\n" in text
    assert numbers["exit_code"] == page.exit_code(results) == 1
    assert numbers["stages"][1]["rows"][0]["value"] == 2.0
    assert page.exit_code(results[:1]) == 0


def test_a_process_that_dies_is_a_failed_stage_with_its_last_line(tmp_path):
    stage = Stage("no_such_stage", "", {"test": 60.0})
    found = launches.in_a_process(stage, "test", tmp_path, "", 120.0)
    assert found.status == FAILED
    (line,) = outcome.unmet(found.outcome)
    assert "no_such_stage" in line
    assert "ModuleNotFoundError" in line


def test_a_process_that_takes_too_long_is_ended_and_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "patience_s", lambda stage, scale: 0.2)
    stage = Stage("training", "", {"test": 60.0})
    found = launches.in_a_process(stage, "test", tmp_path, "", 0.2)
    assert outcome.unmet(found.outcome) == ["ended after 0 s: it was expected to take 60 s"]


def test_a_process_that_is_ended_because_the_minutes_are_over_did_not_fit(tmp_path):
    stage = Stage("training", "", {"test": 60.0})
    found = launches.in_a_process(stage, "test", tmp_path, "", 0.2)
    assert found.status == LEFT_OUT
    (note,) = found.outcome.notes
    assert note == "ended after 0 s, when the minutes were over: it was expected to take 60 s"


def test_results_of_another_device_or_scale_are_not_gone_on_with(tmp_path):
    outcome.write(tmp_path, result_of("device"))
    launches.check_folder(tmp_path, "test", "a chip")
    for scale, kind in (("full", "a chip"), ("test", "another chip")):
        with pytest.raises(UserError, match=r"holds results of a chip at scale test"):
            launches.check_folder(tmp_path, scale, kind)


def test_only_stages_that_there_are_can_be_asked_for():
    assert [stage.name for stage in stages.chosen(["steps"])] == ["device", "steps"]
    with pytest.raises(UserError, match=r"--only=step: no such stage; there are device, "):
        stages.chosen(["step"])


def test_every_scale_has_an_estimate_of_every_stage():
    for stage in STAGES:
        assert set(stage.expected_s) == set(SCALES)


def test_a_form_may_be_off_as_a_sum_in_another_order_and_no_more():
    # 2^-24 * sqrt(2^14) = 2^-17; of short sums a few roundings, of a coarse precision its own.
    assert kernels.allowed(0.0, 2**14) == 2.0**-17
    assert kernels.allowed(0.0, 27) == 2e-6
    assert kernels.allowed(1e-3, 2**14) == 4e-3
    layer = values.comparisons(SCALES["full"], "cpu")
    longest = {one.subject: one.terms for one in layer}
    assert longest["conv2d, conv1 of 32x32x32x3, float32"] == 32 * 32 * 32
    assert longest["conv2d, conv8 of 32x2x2x512, float32"] == 3 * 3 * 512


def test_weights_of_noise_are_spread_evenly_and_unlike():
    values = np.asarray(noise._noise((64, 33), jnp.dtype(jnp.float32)))
    assert np.unique(values).size > 2000
    assert abs(values.mean()) < 0.002
    assert values.std() == pytest.approx(0.02, rel=0.1)
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.1
    spread = np.asarray(noise.standard((4096,), "float32", 1))
    assert (spread.mean(), spread.std()) == pytest.approx((0, 1), abs=0.03)
    other = np.asarray(noise.standard((4096,), "float32", 2))
    assert abs(np.corrcoef(spread, other)[0, 1]) < 0.05
    codes = np.asarray(noise._noise((4096,), jnp.dtype(jnp.int8)))
    assert (codes.min(), codes.max()) == (-128, 127)
    nibbles = np.asarray(noise._noise((4096,), jnp.dtype(jnp.uint4)).astype(jnp.int32))
    assert set(nibbles.tolist()) == set(range(16))
    assert np.asarray(noise._noise((4096,), jnp.dtype(jnp.int32))).min() >= 0


@pytest.mark.timeout(1800)
def test_every_stage_passes(tmp_path):
    """In this process where that is the real thing; what they launch is in processes anyway."""

    def launch(stage, limit_s):
        if stage.name == "executors":
            # Devices have to be there before jax is.
            stage = stage._replace(environment={"XLA_FLAGS": f"{DEVICE_COUNT}=2"})
            return launches.in_a_process(stage, "test", tmp_path, "", limit_s)
        one.main(stage.name, "test", str(tmp_path), f"{limit_s:.0f}", "")
        return outcome.read(tmp_path, stage.name)

    results = stages.carry_out(
        STAGES, "test", tmp_path, lambda: 1e9, launch, lambda line: None, lambda results: None
    )
    for result in results:
        assert outcome.unmet(result.outcome) == [], result.stage
        assert result.outcome.rows, result.stage
    assert [result.status for result in results] == [PASSED] * len(STAGES)
    text = page.markdown("command", {}, results)
    assert "2 devices. " in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_stages_pass_on_emulated_devices_and_the_same_command_repeats_nothing(tmp_path):
    command = [sys.executable, "-m", "experiments.accept", "--scale=test", "--budget_minutes=25"]
    command.append(f"--output={tmp_path}")
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_COUNT}=4"
    environment = {**os.environ, "XLA_FLAGS": flags.strip()}
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    first = subprocess.run(command, check=False, **run)
    assert first.returncode == 0, first.stderr
    assert {path.stem for path in tmp_path.glob("stages/*")} == {stage.name for stage in STAGES}
    second = subprocess.run(command, check=False, **run)
    assert second.returncode == 0
    assert second.stderr.count(": passed before\n") == len(STAGES)


def test_a_dry_run_calls_every_program_of_a_run_and_computes_nothing():
    snake = ImageConfig(**TINY, algorithm="snake")
    names = [one.name for one in dry.called(snake, "tpu")]
    # One program for each middle layer; the first evaluation comes after the first visit.
    assert names == ["train fc1 fc2 fc4", "evaluate", "train fc1 fc3 fc4"]


@pytest.mark.slow
def test_a_dry_run_calls_the_program_of_all_nodes_that_one_call_trains():
    side_by_side = ImageConfig(**TINY, algorithm="fedavg", executor="vmap")
    train, evaluate = dry.called(side_by_side, "cpu")
    assert (train.name, evaluate.name) == ("train fc1 fc2 fc3 fc4, 2 nodes", "evaluate")
    trainable = train.shapes[0]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(trainable)} == {2}


def test_every_stage_that_computes_has_programs_to_describe(tmp_path):
    told = set(describe.STAGES)
    # The device's rates are of no program of ours; kernels are timed in shapes of their stage.
    assert told == {stage.name for stage in STAGES} - {"device", "speed"}
    sizes = SCALES["full"]
    named = [name for name, _ in describe.runs("figure5", sizes, tmp_path)]
    assert named[0] == "fedavg, iid"
    assert len(named) == len(set(named)) == 6
    executors = [name for name, _ in describe.runs("executors", sizes, tmp_path)]
    assert "vgg11, scan" in executors
    assert "tiny-llama, vmap" in executors


@pytest.mark.slow
def test_every_program_is_compiled_for_a_chip_that_is_not_here(tmp_path):
    command = [sys.executable, "-m", "experiments.accept", "--scale=test", "--describe=cpu"]
    command.append(f"--output={tmp_path}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " programs compiled, 0 failed\n" in done.stderr
    assert "# Programs compiled for cpu\n" in (tmp_path / "described.md").read_text()


def test_the_page_of_compiled_programs_says_how_many_there_are_and_which_were_refused(tmp_path):
    rows = []
    for program, megabytes in (("kernels: a", 10.0), ("kernels: b", 30.0), ("large: c", 20.0)):
        rows.append(Row(describe.TABLE, program, "reserved", megabytes, "MB"))
    refused = "large: d: MemoryError: too large"
    found = Outcome(rows, (refused,))
    result = Result("tpu:v5e", FAILED, "full", 1.0, found, {"libtpu": "0.1"})
    text, numbers = page.write_described(tmp_path, "python -m experiments.accept", result)
    lines = text.read_text().splitlines()
    assert lines[0] == "# Programs compiled for tpu:v5e"
    assert "| kernels | 2 | 30 MB |" in lines
    assert "3 compiled, 1 refused." in lines
    assert f"- {refused}" in lines
    assert len(json.loads(numbers.read_text())["rows"]) == 3
