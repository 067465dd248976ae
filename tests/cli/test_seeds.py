"""Several seeds in one launch: each is the run that it would be alone, whatever happens on the
way.
"""

import dataclasses
import os
import signal
import statistics

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from snake_jax.cli import main
from snake_jax.cli.commands import COMMANDS, config_flags
from snake_jax.config import ImageConfig
from snake_jax.runs import loop
from snake_jax.runs.checkpoint import Checkpoints
from tests.launches import Launcher, in_new_process, json_lines, results, strict_json, write_images

SMALL = (
    "--model=mlp",
    "--width=0.25",
    "--nodes=3",
    "--batch_size=8",
    "--learning_rate=0.1",
    "--dropout=0.1",
    # What `auto` makes of a seed depends on its partition.
    "--distill=on",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Flags of a small run."""
    return (*SMALL, f"--dataset=npz:{write_images(tmp_path_factory.mktemp('data') / 'images.npz')}")


@pytest.fixture
def run(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd)


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    """`alone(run, seed)`: what the run of that seed ends with."""
    ends = {}

    def end(run, seed):
        if seed not in ends:
            folder = tmp_path_factory.mktemp("alone") / "run"
            assert run(*small, f"--seed={seed}", f"--workdir={folder}").code == 0
            ends[seed] = results(folder)
        return ends[seed]

    return end


def test_seeds_are_the_runs_they_would_be_alone_and_their_spread(run, small, alone, tmp_path):
    ended = run(*small, "--seeds=3,0", f"--workdir={tmp_path}", "--tensorboard")
    assert (ended.code, ended.stderr) == (0, "")
    assert {entry.name for entry in tmp_path.iterdir()} == {"seed_3", "seed_0", "summary.json"}
    names = {
        "config.json",
        "metrics.jsonl",
        "events.jsonl",
        "ledger.jsonl",
        "summary.json",
        "checkpoints",
        "curves.png",
        "tensorboard",
    }
    for seed in (0, 3):
        assert {entry.name for entry in (tmp_path / f"seed_{seed}").iterdir()} == names
        assert results(tmp_path / f"seed_{seed}") == alone(run, seed)
    visits = [line.split() for line in ended.stdout.splitlines() if line.startswith("visit ")]
    assert [(words[1], words[3]) for words in visits] == [
        (f"{i}/8", "3" if i <= 4 else "0") for i in range(1, 9)
    ]
    summary = strict_json((tmp_path / "summary.json").read_text())
    accuracies = [alone(run, seed)["summary"]["final_accuracy"] for seed in (3, 0)]
    assert summary["seeds"] == [3, 0]
    assert summary["fields"]["final_accuracy"] == {
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies),
        "values": accuracies,
    }
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("final_accuracy"))
    assert [float(word) for word in line.split()[1::2]] == [
        round(100 * value, 1)
        for value in (statistics.fmean(accuracies), statistics.stdev(accuracies), *accuracies)
    ]


@pytest.mark.slow
def test_on_two_devices_they_are_the_same(run, small, alone, tmp_path):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    flag_list = [*small, "--seeds=0,1,3", f"--workdir={tmp_path}"]
    with in_new_process(flag_list, env=environment) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert "visit 12/12" in stdout
    for seed in (0, 1, 3):
        assert results(tmp_path / f"seed_{seed}") == alone(run, seed)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("number", [1, 3, 6])
def test_killed_and_started_again_they_go_on(number, run, small, alone, tmp_path):
    save, calls = Checkpoints.save, iter(range(1, 1000))

    def deadly_save(self, saved):
        save(self, saved)
        if next(calls) == number:
            raise Killed

    flag_list = (*small, "--seeds=0,1", f"--workdir={tmp_path}")
    with run.monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", deadly_save)
        with pytest.raises(Killed):
            run(*flag_list)
    done = [len(json_lines(file)) for file in sorted(tmp_path.glob("seed_*/metrics.jsonl"))]
    assert sum(done) == number
    ended = run(*flag_list)
    assert (ended.code, ended.stderr) == (0, "")
    assert "seed 0: " + ("going on after" if number < 4 else "finished before") in ended.stdout
    for seed in (0, 1):
        assert results(tmp_path / f"seed_{seed}") == alone(run, seed)


def test_more_seeds_join_those_that_are_finished(run, small, alone, tmp_path):
    run(*small, "--seeds=1", f"--workdir={tmp_path}")
    assert (
        strict_json((tmp_path / "summary.json").read_text())["fields"]["iterations"]["std"] is None
    )
    assert "seed 1: finished before" in run(*small, "--seeds=0,1", f"--workdir={tmp_path}").stdout
    assert strict_json((tmp_path / "summary.json").read_text())["fields"]["iterations"][
        "values"
    ] == [16, 16]
    assert results(tmp_path / "seed_0") == alone(run, 0)


def test_ctrl_c_ends_all_after_their_visit(run, small, alone, tmp_path):
    def interrupted_save(self, saved):
        save(self, saved)
        if saved.rounds == 2:
            signal.raise_signal(signal.SIGINT)

    save = Checkpoints.save
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with run.monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", interrupted_save)
            ended = run(*small, "--seeds=0,1", f"--workdir={tmp_path}")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code == 130
    assert ended.stderr == "interrupted; the same command goes on from the last finished visit\n"
    assert not (tmp_path / "summary.json").exists()
    assert run(*small, "--seeds=0,1", f"--workdir={tmp_path}").code == 0
    assert [results(tmp_path / f"seed_{seed}") for seed in (0, 1)] == [alone(run, 0), alone(run, 1)]


def test_a_seed_that_diverges_is_named_and_the_others_end(run, small, tmp_path):
    ended = run(*small, "--lr_decay=1e19", "--clip_norm=0", "--seeds=0,1", f"--workdir={tmp_path}")
    (line,) = ended.stderr.splitlines()
    assert ended.code == 1
    assert line.startswith("error: seed 0: visit 2 (node 2, layers fc1, fc2, fc4) diverged")
    assert "; seed 1: visit 2 " in line
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--seeds=0,1 --seed=0", "--seeds=0,1 and --seed=0: give one of them"),
        ("--seeds=0,1,0", "--seeds=0,1,0: names a seed twice"),
        ("--seeds=0,one", "--seeds=0,one: one is no seed; want whole numbers as 0,1,2"),
        ("--seeds=0,,1", "--seeds=0,,1: a gap is no seed"),
        ("--seeds=-1", "--seeds=-1: -1 is no seed"),
        ("--seeds=4294967296", "--seed=4294967296: must be at most 4294967295"),
        (
            "--seeds=0,1 --executor=pmap",
            "--seeds puts a seed on each device, --executor=pmap a seed's nodes: give one",
        ),
    ],
)
def test_wrong_seeds_are_one_line(wrong, message, run, small, tmp_path):
    ended = run(*small, *wrong.split(), f"--workdir={tmp_path / 'run'}")
    (line,) = ended.stderr.splitlines()
    assert (ended.code, ended.stdout) == (2, "")
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def verdicts(flag_list, seeds):
    """`{seed: verdict on distillation}` of the data that each seed deals out, by itself."""
    values = main.define(COMMANDS["classify"])
    main.parse(COMMANDS["classify"], values, ["snake-jax", *flag_list])
    config = config_flags.from_flags(values, ImageConfig)
    return {seed: loop.prepare(dataclasses.replace(config, seed=seed)).verdict for seed in seeds}


def test_seeds_decide_once_for_all_whether_they_distil_unless_told_otherwise(run, small, tmp_path):
    """The threshold lies between what two seeds' data are above chance; the level lets both in."""
    auto = (*small, "--distill=auto", "--distill_level=0.5", "--cycles=1")
    excess = {seed: one.divergence.excess for seed, one in verdicts(auto, range(4)).items()}
    low, *_, high = sorted(excess, key=excess.get)
    bound = f"--distill_threshold={(excess[low] + 3 * excess[high]) / 4}"
    alone = verdicts((*auto, bound), (low, high))
    assert (alone[low].on, alone[high].on) == (False, True)

    # Once for all: by their mean, which is below the threshold.
    ended = run(*auto, bound, f"--seeds={high},{low}", f"--workdir={tmp_path}")
    assert ended.code == 0, ended.stderr
    first, last = sorted((low, high))
    for seed in (low, high):
        kept = strict_json((tmp_path / f"seed_{seed}" / "summary.json").read_text())
        assert (kept["distilled"], kept["config"]["distill"]) == (False, "off")
        assert kept["distilled_why"].endswith(f", decided once for seeds {first}, {last}")
        assert kept["divergence_by_chance"] > 0
    assert f"decided once for seeds {first}, {last}" in ended.stdout

    # Told otherwise each is as it is alone: the folders' decision is then another run's.
    apart = (*auto, bound, f"--seeds={high},{low}", f"--workdir={tmp_path}", "--distill_each_seed")
    ended = run(*apart)
    assert ended.code == 2
    assert "--distill=auto (here off)" in ended.stderr or "--distill=off" in ended.stderr

    # Without several seeds there is nothing to decide apart.
    ended = run(*small, f"--workdir={tmp_path / 'one'}", "--distill_each_seed")
    assert (ended.code, ended.stderr) == (
        2,
        "error: --distill_each_seed is for several seeds: give --seeds, or leave it out\n",
    )


def test_a_folder_of_one_seed_is_left_alone(run, small, tmp_path):
    run(*small, f"--workdir={tmp_path}")
    ended = run(*small, "--seeds=0,1", f"--workdir={tmp_path}")
    assert (
        ended.stderr
        == f"error: --workdir={tmp_path} holds a run of one seed; give another for --seeds\n"
    )
    assert not (tmp_path / "seed_0").exists()


def test_a_device_s_later_seeds_find_their_programs_compiled(run, small, tmp_path):
    hits = []

    def listen(name, **_):
        hits.append(name.endswith("cache_hits"))

    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    jax.monitoring.register_event_listener(listen)
    try:
        nowhere = "--compilation_cache_dir="
        assert run(*small, "--seeds=0,1", f"--workdir={tmp_path}", nowhere).code == 0
    finally:
        jax.monitoring.unregister_event_listener(listen)
        compilation_cache.reset_cache()
        assert jax.config.jax_compilation_cache_dir is None
        jax.config.update("jax_compilation_cache_dir", kept)
    assert (
        sum(hits)
        >= strict_json((tmp_path / "seed_1" / "summary.json").read_text())["num_compilations"]
        == 3
    )
