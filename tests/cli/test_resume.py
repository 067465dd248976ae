"""Every method after SIGKILL: the same command goes on and ends as a run that nothing happened to.

The launches that are killed are processes of their own, forked from a server that has imported
everything and started nothing, two at a time. Each watches its own metrics and sends itself SIGKILL
as soon as they have the wanted number of lines: wherever the training thread is then, nothing of it
runs on.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from snake_jax.cli import main, one_run
from tests.launches import Launcher, results, write_images

SMALL = (
    "--model=mlp",
    "--width=0.1",
    "--nodes=3",
    "--batch_size=8",
    "--learning_rate=0.05",
    "--eval_every=3",
)
METHODS = {  # flags and the number of lines after which the launch is killed
    "snake": (("--algorithm=snake", "--cycles=4", "--distill=on", "--augment=crop_flip"), 3),
    "snake, parallel": (("--algorithm=snake", "--cycles=4", "--parallel=2"), 3),
    "fedavg": (("--algorithm=fedavg", "--cycles=8", "--nodes_per_round=2", "--proximal=0.1"), 2),
    "fedavg, momentum": (("--algorithm=fedavg", "--cycles=8", "--server_momentum=0.5"), 3),
    "sequential": (
        ("--algorithm=sequential", "--cycles=3", "--shuffle_nodes", "--carry_optimizer_state"),
        4,
    ),
    "centralised": (("--algorithm=centralised", "--cycles=8"), 3),
    "split": (
        (
            "--algorithm=split",
            "--cycles=3",
            "--tail=1",
            "--carry_optimizer_state",
            "--optimizer=adam",
        ),
        4,
    ),
    "splitfed": (("--algorithm=splitfed", "--cycles=8", "--nodes_per_round=2", "--dropout=0.2"), 3),
    # 5 lines: in the middle of the second cycle, with the nodes' parts half summed.
    "splitfed v2": (("--algorithm=splitfed", "--cycles=3", "--splitfed_version=v2"), 5),
    "accelerated_fl": (("--algorithm=accelerated_fl", "--cycles=8"), 3),
    "random_walking_snakes": (("--algorithm=random_walking_snakes", "--cycles=3"), 4),
}
SIDE_BY_SIDE = 2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Flags of a small run; programs compiled once serve the killed launch, its successor and the
    unbroken one.
    """
    folder = tmp_path_factory.mktemp("small")
    images, cache = write_images(folder / "images.npz"), folder / "cache"
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    yield (*SMALL, f"--dataset=npz:{images}", f"--compilation_cache_dir={cache}")
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def launch_and_die(flag_list, metrics, lines):
    """In a process of its own: the launch, and a thread that kills the process when `metrics` has
    so many lines.
    """

    def watch():
        while True:
            with contextlib.suppress(FileNotFoundError), open(metrics, "rb") as file:
                if file.read().count(b"\n") >= lines:
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv = ["snake-jax", "classify", *flag_list]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        main.main()


@pytest.fixture(scope="module")
def killed(small, tmp_path_factory):
    """`{method: (flags with the folder, exit code)}` of launches that SIGKILL ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    todo, running, ended = list(METHODS.items()), [], {}
    while todo or running:
        while todo and len(running) < SIDE_BY_SIDE:
            method, (flag_list, lines) = todo.pop(0)
            folder = tmp_path_factory.mktemp("killed") / "run"
            every = (*small, *flag_list, f"--workdir={folder}")
            process = context.Process(
                target=launch_and_die, args=(every, folder / "metrics.jsonl", lines)
            )
            process.start()
            running.append((method, every, folder, process))
        method, every, folder, process = running.pop(0)
        process.join(120)
        ended[method] = (every, folder, process.exitcode)
        process.kill()  # should it still be there
    return ended


@pytest.mark.parametrize("method", METHODS)
def test_killed_with_sigkill_it_ends_as_an_unbroken_run(
    method, small, killed, monkeypatch, capfd, tmp_path
):
    run, (every, folder, code) = Launcher(monkeypatch, capfd), killed[method]
    flag_list, lines = METHODS[method]
    assert code == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    assert (folder / "metrics.jsonl").read_bytes().count(b"\n") in (lines, lines + 1)
    monkeypatch.setattr(
        one_run, "draw_curves", lambda run, picture: None
    )  # the slowest part, and tested elsewhere
    ended = run(*every)
    assert (ended.code, ended.stderr) == (0, "")
    assert "going on after" in ended.stdout
    assert run(*small, *flag_list, f"--workdir={tmp_path / 'unbroken'}").code == 0
    unbroken = results(tmp_path / "unbroken")
    assert len(unbroken["metrics"]) >= 8
    assert results(folder) == unbroken


# Flags but for the cycles; cycles of the run that ends, and of the one that it becomes. The former
# ends where the latter is evaluated.
LONGER = {
    "snake": (("--algorithm=snake", "--order=random", "--lr_schedule=constant"), 3, 6),
    "fedavg": (("--algorithm=fedavg", "--nodes_per_round=2", "--server_momentum=0.5"), 3, 6),
    "split": (("--algorithm=split", "--tail=1", "--carry_optimizer_state"), 1, 2),
    "random_walking_snakes": (("--algorithm=random_walking_snakes", "--walk=metropolis"), 1, 2),
}


@pytest.mark.parametrize("method", LONGER)
def test_given_more_cycles_a_run_that_has_ended_becomes_the_longer_one(
    method, small, monkeypatch, capfd, tmp_path
):
    run, (flag_list, few, many) = Launcher(monkeypatch, capfd), LONGER[method]
    monkeypatch.setattr(one_run, "draw_curves", lambda run, picture: None)
    grown, unbroken = tmp_path / "grown", tmp_path / "unbroken"
    assert run(*small, *flag_list, f"--cycles={few}", f"--workdir={grown}").code == 0
    ended = run(*small, *flag_list, f"--cycles={many}", f"--workdir={grown}")
    assert (ended.code, ended.stderr) == (0, "")
    assert "going on after" in ended.stdout
    assert run(*small, *flag_list, f"--cycles={many}", f"--workdir={unbroken}").code == 0
    assert results(grown) == results(unbroken)


def test_a_run_whose_rates_follow_its_length_does_not_become_longer(
    small, monkeypatch, capfd, tmp_path
):
    run = Launcher(monkeypatch, capfd)
    monkeypatch.setattr(one_run, "draw_curves", lambda run, picture: None)
    flag_list = (*small, "--algorithm=fedavg", "--lr_schedule=cosine", f"--workdir={tmp_path}/run")
    assert run(*flag_list, "--cycles=3").code == 0
    before = results(tmp_path / "run")
    ended = run(*flag_list, "--cycles=6")
    assert ended.code == 2
    assert "--cycles=3 (here 6), and its learning rates follow its cycles; use" in ended.stderr
    assert results(tmp_path / "run") == before
