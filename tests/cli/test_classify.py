"""The classification launch as its users meet it: files, resume, damage, wrong input, divergence,
repeatability.
"""

import dataclasses
import math
import os
import pty
import signal
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from snake_jax.config import ImageConfig
from snake_jax.engines.local import LocalEngine
from snake_jax.runs.checkpoint import Checkpoints
from tests.launches import (
    Launcher,
    in_new_process,
    json_lines,
    last_arrays,
    results,
    strict_json,
    write_images,
)
from tests.report.test_progress import events
from tests.sweeps import sweep

SMALL = ("--model=mlp", "--width=0.25", "--nodes=3", "--batch_size=8", "--learning_rate=0.1")
METHODS = {
    "snake": (),
    "snake peer to peer": (
        "--mode=peer_to_peer",
        "--carry_optimizer_state",
        "--optimizer=adam",
        "--learning_rate=0.01",
        "--frozen_dtype=int8",
        "--order=random",
        "--distill=on",
        "--fault_rate=0.5",
        "--interruption=lost",
    ),
    "fedavg": ("--algorithm=fedavg", "--cycles=4", "--server_momentum=0.5", "--nodes_per_round=2"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def small(images, tmp_path_factory):
    """Flags of a small run; programs compiled once serve all tests here."""
    cache, names = (
        tmp_path_factory.mktemp("cache"),
        ("compilation_cache_dir", "persistent_cache_min_compile_time_secs"),
    )
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    compilation_cache.reset_cache()
    yield (*SMALL, f"--dataset=npz:{images}", f"--compilation_cache_dir={cache}")
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def run(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd)


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    """`unbroken(run, *flags)`: the folder of a run that nothing happened to, made once for these
    flags.
    """
    folders = {}

    def folder(run, *flag_list):
        if flag_list not in folders:
            folders[flag_list] = tmp_path_factory.mktemp("unbroken") / "run"
            ended = run(*small, *flag_list, f"--workdir={folders[flag_list]}")
            assert (ended.code, ended.stderr) == (0, "")
        return folders[flag_list]

    return folder


def error_line(ended, code=2):
    """The one line on stderr of a launch that failed and printed nothing else there."""
    (line,) = ended.stderr.splitlines()
    assert ended.code == code
    assert line.startswith("error: ")
    return line


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the launch's own is done after it but letting go of the
    folder.
    """


def run_until_killed(run, number, before, *flag_list):
    """The launch dies around its `number`-th checkpoint, before or after it is written."""
    save, calls = Checkpoints.save, iter(range(1, 1000))

    def deadly_save(self, saved):
        last = next(calls) == number
        if not (last and before):
            save(self, saved)
        if last:
            raise Killed

    with run.monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", deadly_save)
        with pytest.raises(Killed):
            run(*flag_list)


# Files


def test_a_run_leaves_its_files(run, small, tmp_path):
    ended = run(*small, f"--workdir={tmp_path / 'run'}", "--tensorboard")
    assert (ended.code, ended.stderr) == (0, "")
    assert [
        line.split()[:2] for line in ended.stdout.splitlines() if line.startswith("visit ")
    ] == [["visit", f"{i}/4"] for i in (1, 2, 3, 4)]
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
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == names
    first, *_ = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert (first["visit"], first["layers"], first["iterations"]) == (0, ["fc1", "fc2", "fc4"], 4)
    summary = strict_json((tmp_path / "run" / "summary.json").read_text())
    assert summary["iterations"] == 16
    assert summary["final_accuracy"] > 0.6, "it learns"


def test_tensorboard_has_every_visit_once_whatever_was_killed(run, small, tmp_path):
    flag_list = (*small, f"--workdir={tmp_path}", "--tensorboard")
    run_until_killed(run, 3, True, *flag_list)
    assert run(*flag_list).code == 0
    metrics = json_lines(tmp_path / "metrics.jsonl")
    found = [
        (step, value) for step, tag, value in events(tmp_path / "tensorboard") if tag == "loss"
    ]
    assert found == [
        (4 * (i + 1), pytest.approx(record["loss"])) for i, record in enumerate(metrics)
    ]


# Resume


@pytest.mark.parametrize("method", sweep(METHODS, quick=["snake"]))
def test_killed_again_and_again_it_ends_as_an_unbroken_run(method, run, small, unbroken, tmp_path):
    flag_list = (*small, *METHODS[method], f"--workdir={tmp_path}")
    for number, before in ((1, True), (1, False), (2, True)):
        run_until_killed(run, number, before, *flag_list)
        for name in ("metrics.jsonl", "ledger.jsonl"):
            with (tmp_path / name).open("a") as file:
                file.write('{"visit": 77, "bytes')  # killed in the middle of a line
    ended = run(*flag_list)
    assert ended.code == 0
    assert "going on after" in ended.stdout
    assert results(tmp_path) == results(unbroken(run, *METHODS[method]))


def test_a_finished_run_is_not_trained_again(run, small, unbroken, monkeypatch):
    workdir = unbroken(run)
    before, curves = results(workdir), workdir / "curves.png"
    curves.unlink()
    monkeypatch.setattr(LocalEngine, "submit", lambda *_: pytest.fail("trained again"))
    ended = run(*small, f"--workdir={workdir}")
    assert (ended.code, ended.stderr) == (0, "")
    assert "finished before, visit 4 of 4: nothing is left to train" in ended.stdout
    assert results(workdir) == before
    assert curves.exists()


def test_killed_before_the_summary(run, small, unbroken, tmp_path):
    run_until_killed(run, 4, False, *small, f"--workdir={tmp_path}")
    assert run(*small, f"--workdir={tmp_path}").code == 0
    assert results(tmp_path) == results(unbroken(run))


@pytest.fixture(scope="module")
def killed_for_real(small, tmp_path_factory):
    """`(folder, exit code, screen, stderr)` of a run that was killed with SIGKILL, then finished on
    a terminal.
    """
    workdir = tmp_path_factory.mktemp("killed") / "run"
    flag_list = [*small, "--cycles=12", f"--workdir={workdir}"]
    with in_new_process(flag_list) as process:
        _wait_for_lines(process, workdir / "metrics.jsonl", 3)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    ours, theirs = pty.openpty()
    with in_new_process(
        flag_list, stdout=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "110"}
    ) as process:
        os.close(theirs)
        screen = _read_terminal(ours)
        stderr = process.stderr.read()
    return workdir, process.returncode, screen, stderr


def _wait_for_lines(process, file, count):
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < count):
        time.sleep(0.01)


def _read_terminal(descriptor):
    screen = b""
    try:
        while part := os.read(descriptor, 65536):
            screen += part
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(descriptor)
    return screen.decode()


def test_sigkill_changes_nothing(killed_for_real, unbroken, run):
    assert results(killed_for_real[0]) == results(unbroken(run, "--cycles=12"))


def test_a_terminal_shows_a_bar_and_the_time_left(killed_for_real):
    _, code, screen, stderr = killed_for_real
    assert (code, stderr) == (0, "")
    assert "going on after visit" in screen
    assert "24/24" in screen
    assert "\x1b[?25h" in screen, "the cursor is back"


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(run, small, unbroken, tmp_path):
    def interrupted_save(self, saved):
        # While the next visit runs; the visit that is being written is written to its end.
        if saved.rounds == 2:
            signal.raise_signal(signal.SIGINT)
        save(self, saved)

    save = Checkpoints.save
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell may start background jobs without one
    try:
        with run.monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", interrupted_save)
            ended = run(*small, f"--workdir={tmp_path}")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code == 130
    assert ended.stderr == "interrupted; the same command goes on from the last finished visit\n"
    assert "going on after visit 2 of 4" in run(*small, f"--workdir={tmp_path}").stdout
    assert results(tmp_path) == results(unbroken(run))


# Damage


def damage(checkpoint):
    """Cuts short whatever the checkpoint consists of."""
    for file in [checkpoint, *checkpoint.rglob("*")]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_damaged_checkpoint_is_left_out_and_said(run, small, unbroken, tmp_path):
    run_until_killed(run, 3, False, *small, f"--workdir={tmp_path}")
    damage(tmp_path / "checkpoints" / "3.npz")
    ended = run(*small, f"--workdir={tmp_path}")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"warning: checkpoint {tmp_path / 'checkpoints' / '3.npz'} is damaged")
    assert ended.code == 0
    assert "going on after visit 2 of 4" in ended.stdout
    assert results(tmp_path) == results(unbroken(run))


def test_nothing_is_lost_where_no_checkpoint_can_be_read(run, small, tmp_path):
    run(*small, f"--workdir={tmp_path}")
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    checkpoints = list((tmp_path / "checkpoints").iterdir())
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        damage(checkpoint)
    for _ in range(2):
        *warnings, last = run(*small, f"--workdir={tmp_path}").stderr.splitlines()
        assert len(warnings) == len(checkpoints)
        assert f"error: no checkpoint in {tmp_path / 'checkpoints'} can be read" in last
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


# Wrong input


WRONG_VALUES = [
    (
        "--algorithm=adam",
        "--algorithm=adam: not one of snake, fedavg, fedprox, scaffold, fednova, fedpart, "
        "progressive, badam, lisa, hift, sequential, centralised",
    ),
    ("--model=resnet", "not one of vgg11, cnn, lenet, mlp, 2nn, fedavg_cnn"),
    ("--dataset=mnist", "allowed: digits, cifar10, tfds:NAME, npz:PATH"),
    ("--dataset=npz:/absent.npz", "/absent.npz: no such file"),
    (
        "--partition=random",
        "--partition=random is unknown; allowed: iid, dirichlet, dirichlet_split, "
        "dirichlet_capped, pathological, drawn:LEAST-MOST, file:PATH",
    ),
    ("--augment=cutout", "not one of none, crop_flip, crop_flip_reflect, flip"),
    ("--always_train=first,conv9", "no layer conv9; say none, or of fc1, fc2, fc3, fc4"),
    ("--model=vgg11", "--model=vgg11 needs images of at least 32x32"),
    ("--alpha=0", "--alpha=0.0: must be greater than 0"),
    ("--alpha=-1", "--alpha=-1.0: must be greater than 0"),
    ("--alpha=nan", "--alpha=nan: must be a finite number"),
    ("--nodes=0", "--nodes=0: must be at least 1"),
    ("--nodes=91", "--nodes=91 is more than the 90 training examples"),
    ("--nodes=three", "--nodes=three: invalid literal for int()"),
    ("--batch_size=0", "--batch_size=0: must be at least 1"),
    ("--learning_rate=-0.1", "--learning_rate=-0.1: must be greater than 0"),
    ("--dropout=1", "--dropout=1.0: must be at most 0.95"),
    ("--interrupt=4@2", "want VISIT or VISIT@SHARE"),
    ("--nodes=1 --fault_rate=0.1", "need an idle node"),
    (
        "--algorithm=fedavg --interrupt=0",
        "--interrupt=0: fedavg has no use for it; it is for snake, sequential",
    ),
    ("--algorithm=fedavg --carry_optimizer_state", "--carry_optimizer_state"),
    ("--algorithm=fedavg --mode=peer_to_peer", "fedavg has no use for it"),
    ("--algorithm=fedavg --nodes_per_round=4", "--nodes_per_round=4 is more than --nodes=3"),
    ("--server_momentum=0.9", "snake has no use for it; it is for fedavg"),
    (
        "--pixel_std=0.2,0.2",
        "--pixel_std=0.2,0.2: want 3 numbers in (0, 1], a channel each; the data's: 0.",
    ),
    ("--pixel_std=0.2,0,x", "want 3 numbers in (0, 1]"),
    ("--pixel_std=0.2,0,0.2", "want 3 numbers in (0, 1]"),
    ("--pixel_mean=0,0,-0.1", "--pixel_mean=0,0,-0.1: want 3 numbers in [0, 1], a channel each"),
    ("--partition=file:/absent.json", "--partition=file:/absent.json: No such file or directory"),
    ("--seed=-1", "--seed=-1: must be at least 0"),
    ("--seed=4294967296", "--seed=4294967296: must be at most 4294967295"),
    ("--learning_rate=1e300", "--learning_rate=1e+300: must be a finite number of at most 1e+30"),
    ("--lr_decay=1e20 --cycles=3", "--lr_decay=1e+20: the learning rate would grow beyond 1e+30"),
    ("--interrupt=99", "--interrupt=99: there is no visit 99; the last is"),
    ("--nodse=3", "Unknown command line flag 'nodse'. Did you mean: nodes"),
    ("--cached=perhaps", "flag --cached=perhaps: ('Non-boolean argument"),
    ("--nocached=1", "--nocached=1 does not take an argument"),
    ("--order", "Missing value for flag --order"),
    ("nodes=3", "nodes=3: flags begin with --"),
    ("--flagfile=/absent.flags", "Unable to open flagfile"),
    ("--workdir=", "--workdir is needed"),
]
WRONG_FOLDERS = [
    ("--workdir=/dev/null", "--workdir=/dev/null: File exists; give a folder that can be written"),
    (
        "--compilation_cache_dir=/dev/null",
        "--compilation_cache_dir=/dev/null: File exists; give a folder",
    ),
]
CHOICES = [
    (
        f"--{field.name}=nonsense",
        f"--{field.name}=nonsense: not one of {', '.join(field.metadata['choices'])}",
    )
    for field in dataclasses.fields(ImageConfig)
    if "choices" in field.metadata
]
NOISE = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 3), dtype=np.uint8)
WRONG_DATA = [
    (
        {"train_x": NOISE[..., 0, 0]},
        "images have shape [90, 4], expected [N, H, W, C] or [N,",
    ),
    (
        {"train_x": NOISE[..., 0]},
        "training images are uint8 [4, 4, 1] and test images uint8 [4",
    ),
    ({"train_x": NOISE.astype(float)}, "float64 images go from 0 to 255, expected [0, 1]"),
    ({"train_x": NOISE[:80]}, "80 images but 90 labels"),
    ({"test_y": np.full(30, 4)}, "test label 4 is out of range"),
    ({"train_y": np.full(90, -1)}, "out of range"),
    ({"train_y": np.full(90, np.nan)}, "labels hold NaN"),
    ({"train_y": np.array([{}] * 90)}, "not a readable .npz file"),
]


@pytest.fixture
def compiled():
    """Names of the compilations since the test began."""
    found = []

    def listen(name, _seconds, **_):
        if "compile" in name:
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(("wrong", "message"), WRONG_VALUES + WRONG_FOLDERS + CHOICES)
def test_wrong_flags_are_one_line_before_anything_is_compiled(
    wrong, message, run, small, tmp_path, compiled
):
    ended = run(*small, f"--workdir={tmp_path / 'run'}", *wrong.split())
    assert message in error_line(ended)
    assert ended.stdout == ""
    assert not compiled
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("arrays", "message"), WRONG_DATA)
def test_wrong_data_is_one_line_that_names_the_file(
    arrays, message, run, small, tmp_path, compiled
):
    file = write_images(tmp_path / "wrong.npz", **arrays)
    line = error_line(run(*small, f"--dataset=npz:{file}", f"--workdir={tmp_path / 'run'}"))
    assert str(file) in line
    assert message in line
    assert not compiled


def test_a_broken_data_file_is_one_line(run, small, images, tmp_path):
    (tmp_path / "cut.npz").write_bytes(images.read_bytes()[:500])
    assert "not a readable .npz file" in error_line(
        run(*small, f"--dataset=npz:{tmp_path / 'cut.npz'}", "--workdir=x")
    )


def test_the_listener_hears_compilations(compiled):
    jax.jit(lambda x: x + 1)(np.ones(3))
    assert compiled


def test_another_configuration_names_the_flags_that_differ(run, small, unbroken):
    before = results(unbroken(run))
    line = error_line(
        run(*small, f"--workdir={unbroken(run)}", "--alpha=3", "--order=random", "--nocached")
    )
    other = "--order=sequential (here random), --cached=True (here False), --alpha=2.0 (here 3.0)"
    assert f"holds a run with other flags: {other}; use those" in line
    assert results(unbroken(run)) == before


def test_the_full_help_says_all_and_ends_well():
    stdout, stderr = (process := in_new_process(["--helpfull"])).communicate()
    text = " ".join(stdout.split())
    assert (process.returncode, stderr) == (0, "")
    assert "snake-jax classify --algorithm=snake" in text
    for field in dataclasses.fields(ImageConfig):
        assert f"--{field.name}: " in text or f"--[no]{field.name}: " in text
        assert ", ".join(field.metadata.get("choices", ())) in text
    methods = "snake, fedavg, fedprox, scaffold, fednova, fedpart, progressive, badam, lisa, "
    methods += "hift, sequential, centralised"
    assert f"what trains the model: {methods}" in text
    assert "--alpha: Dirichlet concentration; smaller is less alike (greater than 0)" in text


# Divergence: the second cycle's learning rate is 1e19 times the first's

DIVERGING = ("--lr_decay=1e19", "--clip_norm=0")


def test_divergence_names_the_visit_and_keeps_the_state_before_it(run, small, tmp_path):
    for _ in range(2):  # and the same command again comes to the same end
        line = error_line(run(*small, *DIVERGING, f"--workdir={tmp_path}"), code=1)
        assert "visit 2 (node 2, layers fc1, fc2, fc4) diverged" in line
        assert [record["visit"] for record in json_lines(tmp_path / "metrics.jsonl")] == [0, 1]
        step, arrays = last_arrays(tmp_path)
        assert step == 2
        assert np.isfinite(np.frombuffer(b"".join(arrays.values()), np.float32)).all()


def test_divergence_at_once_keeps_the_fresh_model(run, small, tmp_path):
    line = error_line(
        run(*small, "--learning_rate=1e20", "--clip_norm=0", f"--workdir={tmp_path}"), code=1
    )
    assert "visit 0 " in line
    assert last_arrays(tmp_path)[0] == 0


def test_skipping_goes_on_from_the_state_before_divergence(run, small, tmp_path):
    run(*small, *DIVERGING, f"--workdir={tmp_path}")
    kept = last_arrays(tmp_path)[1]
    ended = run(*small, *DIVERGING, "--on_divergence=skip", f"--workdir={tmp_path}")
    assert (ended.code, ended.stderr) == (0, "")
    assert last_arrays(tmp_path) == (4, kept)
    metrics = json_lines(tmp_path / "metrics.jsonl")
    assert [record["event"] for record in metrics] == ["", "", "skipped", "skipped"]
    assert math.isfinite(strict_json((tmp_path / "summary.json").read_text())["final_accuracy"])
    assert strict_json((tmp_path / "config.json").read_text())["on_divergence"] == "skip"


# Repeatability and speed


@pytest.mark.parametrize("method", ["snake", "fedavg"])
def test_same_seed_same_bits_another_seed_others(method, run, small, unbroken, tmp_path):
    run(*small, *METHODS[method], f"--workdir={tmp_path / 'same'}")
    run(*small, *METHODS[method], "--seed=1", f"--workdir={tmp_path / 'other'}")
    same, other, first = (
        results(tmp_path / "same"),
        results(tmp_path / "other"),
        results(unbroken(run, *METHODS[method])),
    )
    assert same == first
    assert other["arrays"][1].keys() == first["arrays"][1].keys()
    assert all(value != first["arrays"][1][name] for name, value in other["arrays"][1].items())


def test_kept_programs_are_not_compiled_again(run, small, unbroken, tmp_path):
    hits = []

    def listen(name, **_):
        hits.append(name.endswith("cache_hits"))

    before = results(unbroken(run))["summary"]
    jax.monitoring.register_event_listener(listen)
    assert run(*small, f"--workdir={tmp_path}").code == 0
    jax.monitoring.unregister_event_listener(listen)
    after = strict_json((tmp_path / "summary.json").read_text())
    assert sum(hits) >= after["num_compilations"] == 3
    assert after["peak_train_bytes"] == before["peak_train_bytes"] > 0
