"""Compiled programs are kept for later launches, in the user's own folder unless told otherwise."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from snake_jax.cli import kept_programs
from tests.launches import Launcher, in_new_process, strict_json, write_images

SMALL = ("--model=mlp", "--width=0.1", "--nodes=2", "--batch_size=8", "--algorithm=fedavg")
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
FOLDER = ".cache/snake_jax/programs"


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launches as a user without settings does, whose home folder is `tmp_path / "home"`."""
    images = write_images(tmp_path / "images.npz")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)

    def launched(*flag_list):
        process = in_new_process([*SMALL, f"--dataset=npz:{images}", *flag_list], "classify")
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0
        return stderr

    return launched


def programs(home):
    return {file.name for file in (home / FOLDER).glob("*-cache")}


def test_a_second_launch_compiles_nothing(launch, tmp_path):
    assert launch(f"--workdir={tmp_path / 'first'}", "--cycles=1") == ""
    kept = programs(tmp_path / "home")
    assert len(kept) >= 2, "a program that trains and one that evaluates"
    # Another seed, and more cycles: other data and weights, and the same programs.
    assert launch(f"--workdir={tmp_path / 'second'}", "--cycles=2", "--seed=1") == ""
    assert programs(tmp_path / "home") == kept
    summary = strict_json((tmp_path / "second" / "summary.json").read_text())
    assert summary["num_compilations"] >= 2, "they count where they are read, too"


@pytest.fixture
def nothing_set(tmp_path, monkeypatch):
    """This process as one in which jax was told of no folder for programs; gives a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update(SETTINGS[0], None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_an_empty_flag_keeps_nothing(nothing_set, monkeypatch, capfd):
    images = write_images(nothing_set / "images.npz")
    run = Launcher(monkeypatch, capfd)
    folder = nothing_set / "run"
    flag_list = (*SMALL, f"--dataset=npz:{images}", f"--workdir={folder}", "--cycles=1")
    assert run(*flag_list, "--compilation_cache_dir=").code == 0
    assert jax.config.jax_compilation_cache_dir is None
    assert not (nothing_set / FOLDER).exists()


def test_a_folder_that_cannot_be_made_is_a_warning(nothing_set, capfd):
    (nothing_set / "file").write_text("no folder")
    kept_programs.keep_programs_at_home("~/file/programs")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: compiled programs are not kept for later runs: ")
    assert line.endswith("give a folder that can be written")
    assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_programs_go_first_where_there_is_too_much(tmp_path):
    (tmp_path / "tuned").mkdir()
    for age, name in enumerate(("new", "tuned/old", "tuned/older")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    kept_programs._forget_oldest(tmp_path, 200)
    assert {file.name for file in tmp_path.rglob("*")} == {"new", "tuned", "old"}
    kept_programs._forget_oldest(tmp_path, 200)
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_folder_of_jax_s_own_stays(nothing_set):
    jax.config.update(SETTINGS[0], str(nothing_set / "mine"))
    kept_programs.keep_programs_at_home("~/programs")
    assert jax.config.jax_compilation_cache_dir == str(nothing_set / "mine")
