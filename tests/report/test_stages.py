"""The stages of a launch are told in order, each with its floor, to whoever asks."""

import subprocess
import sys
from types import SimpleNamespace

from snake_jax.cli import one_run
from snake_jax.report import stages
from snake_jax.report.stages import Stage, Stages
from tests.launches import ROOT, Launcher, write_images

SMALL = ("--model=mlp", "--width=0.1", "--nodes=2", "--batch_size=8", "--algorithm=fedavg")
ORDER = [
    *("command line", "imports", "data", "weights", "data on the device", "first round"),
    *("other rounds", "closing"),
]


def test_a_stage_begins_where_the_one_before_ended_and_is_read_back(monkeypatch):
    clock = iter((stages.STARTED_S + 2.0, stages.STARTED_S + 5.5))
    cpu = iter((1.0, 2.25))
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(stages.time, "process_time", lambda: next(cpu))
    said = []
    told = Stages(said.append)
    told.ended("imports", 0.5, "jax alone")
    told.ended("data", 0.0, "nothing: it was there")
    expected = [
        Stage("imports", 2.0, 1.0, 0.5, "jax alone"),
        Stage("data", 3.5, 1.25, 0.0, "nothing: it was there"),
    ]
    assert stages.read("\n".join(["other words", *said])) == expected


def test_a_copy_s_floor_grows_with_its_bytes():
    said = []
    told = Stages(said.append)
    told.ended_copying("data", 10**9)
    (stage,) = stages.read(said[0])
    # No memory moves a gigabyte in a millisecond, and none takes a minute for it.
    assert 0.001 < stage.floor_s < 60
    assert stage.floor == "one copy of 1000.0 MB"


def test_a_launch_tells_its_stages_only_where_it_is_asked(tmp_path, monkeypatch, capfd):
    images = write_images(tmp_path / "images.npz")
    run = Launcher(monkeypatch, capfd)
    flag_list = (*SMALL, f"--dataset=npz:{images}", "--cycles=2")
    quiet = run(*flag_list, f"--workdir={tmp_path / 'quiet'}")
    told = run(*flag_list, f"--workdir={tmp_path / 'told'}", "--verbose")
    assert quiet.code == told.code == 0
    assert stages.read(quiet.stderr) == []
    found = stages.read(told.stderr)
    assert [stage.name for stage in found] == ORDER
    assert min(stage.wall_s for stage in found) >= 0
    assert stages.read(told.stdout) == [], "results are read from there"


def test_what_draws_is_imported_half_way_through_what_is_left_to_train(monkeypatch):
    begun, seen = [], []

    class AtOnce:
        def __init__(self, target, args):
            self.start = lambda: begun.append((len(seen), args))

    monkeypatch.setattr(one_run.threading, "Thread", AtOnce)
    job = SimpleNamespace(total=10, state=SimpleNamespace(rounds=4))
    told = one_run._importing_what_draws(job, seen.append)
    for number in range(6):
        told({"round": number})
    assert len(seen) == 6
    assert begun == [(3, ("snake_jax.report.plots",))]


def test_a_launch_imports_nothing_that_it_may_not_need():
    """Neither what draws, nor peers and clusters, nor kernels for chips that are not there,
    nor what checkpoints, quantized layers or NNX modules take.
    """
    heavy = (
        *("matplotlib", "ray", "transformers", "torch", "snake_jax.kernels.quant_matmul.triton"),
        *("orbax.checkpoint", "qwix", "flax.nnx"),
        # The digits, and how unlike nodes are, take neither.
        *("sklearn", "scipy"),
    )
    code = (
        "import sys; import snake_jax.cli.main, snake_jax.cli.classify, snake_jax.cli.finetune; "
        f"print([name for name in {heavy} if name in sys.modules], "
        "'jax.experimental.pallas.tpu' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "[] False\n", said.stderr
