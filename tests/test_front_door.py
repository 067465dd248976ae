"""The names of the front door: there, lazy, and what the README's library screen uses."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import snake_jax
from tests.test_docs import blocks

ROOT = Path(__file__).parents[1]


def test_every_name_is_what_its_module_has():
    assert 15 <= len(snake_jax._MODULES) <= 30
    for name, module in snake_jax._MODULES.items():
        assert getattr(snake_jax, name) is getattr(importlib.import_module(module), name)
        assert name in dir(snake_jax)


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import snake_jax; "
        "heavy = {'jax', 'flax', 'numpy', 'optax', 'orbax', 'transformers', 'matplotlib'}; "
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match="'snake_jax' has no attribute 'Snail'"):
        _ = snake_jax.Snail


def test_the_readmes_library_screen_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    (screen,) = blocks("README.md", "python")
    assert len(screen.splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    for count in (4, 0):  # the second time all rounds are finished
        exec(compile(screen, "README.md", "exec"), {"__name__": "screen"})
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == count
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()
