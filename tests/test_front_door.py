"""`import snake_jax`: names that are imported when they are first used."""

import importlib
import subprocess
import sys

import pytest

import snake_jax

HEAVY = ("jax", "flax", "numpy", "transformers", "orbax")


def test_the_import_itself_imports_nothing():
    code = "import snake_jax, sys; print(*sys.modules)"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(HEAVY) & set(done.stdout.split()) == set()


@pytest.mark.parametrize("name", snake_jax._MODULES)
def test_every_name_is_there_and_is_the_one_of_its_module(name):
    assert name in dir(snake_jax)
    assert getattr(snake_jax, name) is getattr(
        importlib.import_module(snake_jax._MODULES[name]), name
    )


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'snake_jax' has no attribute 'no_such_name'"):
        _ = snake_jax.no_such_name
