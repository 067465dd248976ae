"""`snake-jax scct --train`: a run in its folder, gone on with after a kill, and drawn."""

import os
import signal
import time

import pytest

from tests.launches import Launcher, in_new_process, results, strict_json, write_model

FLAGS = (
    "--train=personal",
    "--nodes=2",
    "--rounds=3",
    "--epochs=1",
    "--iterations=2",
    "--batch_size=2",
    "--small_layers=2",
    "--small_width=16",
    "--adapter_width=2",
    "--train_questions=6",
    "--held_out=2",
    "--max_length=40",
    "--max_answer=4",
    "--subcarriers=4",
    "--samples=2",
    "--splits=descent",
    "--plain_loss=never",
    "--events=drop:1@2",
)


@pytest.fixture
def run(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd, "scct")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bits(run, model, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    ended = run(*FLAGS, f"--model={model}", f"--workdir={unbroken}")
    assert ended.code == 0, ended.stderr
    for mechanism in ("scctt", "scctl", "sccts"):
        assert f"{mechanism}: " in ended.stdout

    process = in_new_process([*FLAGS, f"--model={model}", f"--workdir={broken}"], "scct")
    metrics = broken / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ended = run(*FLAGS, f"--model={model}", f"--workdir={broken}")
    assert ended.code == 0, ended.stderr
    assert results(broken) == results(unbroken)

    # The page draws it by its figure of merit, against simulated time too.
    report = Launcher(run.monkeypatch, run.capfd, "report")
    page = tmp_path / "page.html"
    assert report(str(unbroken), f"--output={page}").code == 0
    text = page.read_text()
    for word in ("held-out F1", "personal_f1", "simulated time"):
        assert word in text
    summary = strict_json((unbroken / "summary.json").read_text())
    assert set(summary["clocks_s"]) == {"scctt", "scctl", "sccts"}
    assert summary["final_f1"] <= summary["best_f1"] <= 1

    # Other flags are another run.
    ended = run(*FLAGS, f"--model={model}", f"--workdir={unbroken}", "--seed=1")
    assert ended.code == 2
    assert "--seed=0 (here 1)" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train=personal"], "--workdir"),
        (["--train=nowhere.json", "--workdir=x"], "nowhere.json"),
        (["--train=personal", "--workdir=x", "--model=nowhere"], "no folder and no preset"),
        (["--train=personal", "--workdir=x", "--mechanisms=cloudo", "--arm=scct"], "cloudo"),
        (["--train=personal", "--workdir=x", "--solver=paper"], "--solver"),
        (["--train=personal", "--workdir=x", "--splits=best"], "--splits=best"),
        (["--random=0,2,4,2", "--out=x", "--nodes=3"], "--nodes"),
    ],
)
def test_wrong_flags_are_told_in_a_line(flags, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run(*flags)
    assert ended.code == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
