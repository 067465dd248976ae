"""SIGTERM, as clouds send it before they take a machine: the run ends in time, and the same command
goes on.
"""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from snake_jax.cli import one_run, preemption
from tests.launches import (
    ROOT,
    Launcher,
    in_new_process,
    json_lines,
    results,
    write_model,
    write_pairs,
)
from tests.sweeps import sweep

VISION = (
    "--dataset=digits",
    "--model=mlp",
    "--width=0.1",
    "--nodes=3",
    "--algorithm=snake",
    "--cycles=8",
    "--learning_rate=0.05",
    "--eval_every=4",
)
TEXT = (
    "--nodes=2",
    "--algorithm=snake",
    "--cycles=4",
    "--lora_rank=2",
    "--max_length=32",
    "--learning_rate=0.01",
)


@pytest.fixture(scope="module", params=sweep(["classify", "finetune"], quick=["classify"]))
def launch(request, tmp_path_factory):
    """Name and flags of a small run; programs compiled once serve the terminated launches and the
    unbroken one.
    """
    folder = tmp_path_factory.mktemp(request.param)
    flag_list = VISION
    if request.param == "finetune":
        model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
        flag_list = (*TEXT, f"--model={model}", f"--data={pairs}", "--save=none")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    yield request.param, (*flag_list, f"--compilation_cache_dir={folder / 'programs'}")
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def terminated(name, flag_list, metrics, lines):
    """A process that is sent SIGTERM when its metrics have so many lines; exit code, stdout,
    stderr.
    """
    process = in_new_process(flag_list, name)
    try:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def test_terminated_at_several_points_it_ends_as_an_unbroken_run(
    launch, monkeypatch, capfd, tmp_path
):
    name, flag_list = launch
    folder = tmp_path / "run"
    own, metrics = (*flag_list, f"--workdir={folder}"), folder / "metrics.jsonl"
    patient = (*own, "--grace_s=600")  # also where compiling takes long
    code, _, stderr = terminated(name, patient, metrics, 0)  # before or in the first visit
    done = len(json_lines(metrics))
    assert (code, stderr) == (143, told(done, stderr))
    code, _, stderr = terminated(name, patient, metrics, done + 1)  # in a later one, which ends
    assert code == 143
    assert len(json_lines(metrics)) > done
    done = len(json_lines(metrics))
    assert stderr == told(done, stderr)
    code, _, stderr = terminated(
        name, (*own, "--grace_s=0"), metrics, done + 1
    )  # in another, which may not end
    (line,) = stderr.splitlines()
    assert code == 143
    assert line in (
        "terminated before the next round was finished; the same command goes on from the last one",
        told(len(json_lines(metrics)), stderr).strip(),
    )
    assert not (folder / "summary.json").exists()

    monkeypatch.setattr(
        one_run, "draw_curves", lambda run, picture: None
    )  # the slowest part, and tested elsewhere
    run = Launcher(monkeypatch, capfd, name)
    end = run(*own)
    assert (end.code, end.stderr) == (0, "")
    assert "going on after visit" in end.stdout
    assert run(*flag_list, f"--workdir={tmp_path / 'unbroken'}").code == 0
    assert results(folder) == results(tmp_path / "unbroken")


def test_seeds_are_terminated_together(tmp_path):
    own = (*VISION, "--seeds=0,1", "--grace_s=600", f"--workdir={tmp_path / 'runs'}")
    code, _, stderr = terminated("classify", own, tmp_path / "runs" / "seed_0" / "metrics.jsonl", 1)
    assert (code, stderr) == (
        143,
        "terminated with every seed's last round kept; the same command goes on from there\n",
    )
    assert not list(tmp_path.rglob("summary.json"))
    assert json_lines(tmp_path / "runs" / "seed_0" / "metrics.jsonl")


def told(done, stderr):
    """The line that says how far the run has come."""
    total = stderr.rpartition(" of ")[2].partition(";")[0]
    return f"terminated after visit {done} of {total}; the same command goes on from there\n"


HANGS = """
import os, signal, sys
import jax
from snake_jax.cli import launch, preemption

def main(_):
    with preemption.heeded(0.2) as terminated:
        endless = jax.jit(lambda: jax.lax.while_loop(lambda i: i >= 0, lambda i: (i + 1) % 7, 0))
        os.kill(os.getpid(), signal.SIGTERM)
        {work}

launch.run(main)
"""


@pytest.mark.parametrize(
    "work", ["jax.block_until_ready(endless())", "endless.lower().compile()()"]
)
def test_a_program_that_outlasts_the_grace_is_not_waited_for(work):
    started = time.monotonic()
    command = [sys.executable, "-c", HANGS.format(work=work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    told = (
        "terminated before the next round was finished; "
        "the same command goes on from the last one\n"
    )
    assert (done.returncode, done.stderr) == (143, told)
    assert time.monotonic() - started < 100


def test_it_is_heeded_inside_alone():
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with preemption.heeded(60.0) as terminated:
        assert not terminated()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not terminated() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert terminated()
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
