"""Small runs of every method, each made once for a module of tests."""

import functools

import pytest

from snake_jax.config import ImageConfig
from snake_jax.runs import loop
from tests.launches import write_images

NAMES = ("fc1", "fc2", "fc3", "fc4")
SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8, "eval_every": 100}


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory, quick_compilation):
    """90 training images of 4x4x3 and 4 classes, for all runs of a module that imports this."""
    SMALL["dataset"] = f"npz:{write_images(tmp_path_factory.mktemp('data') / 'images.npz')}"
    yield
    kept.cache_clear()


def prepared(**flags):
    return loop.prepare(ImageConfig(**{**SMALL, **flags}))


@functools.cache
def kept(flags):
    """Setup, executor, first state and reports of the run of `((name, value), ...)`."""
    setup = prepared(**dict(flags))
    executor, state = loop.make_engine(setup), loop.initial_state(setup)
    return setup, executor, state, list(loop.train(setup, executor, state, lambda state: None))


def run(**flags):
    """The reports of a run, made once for the same flags."""
    return kept(tuple(sorted(flags.items())))[-1]


def final(**flags):
    """The parameters that a run ends with."""
    return run(**flags)[-1].state.params
