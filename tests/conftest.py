"""Tests run on the CPU unless the caller says otherwise; set before anything imports jax."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_compilation_of_each_program(tmp_path_factory):
    """Many tests run the same small programs; the second one finds them compiled. A cache of this session alone, which
    its processes share.
    """
    folder = tmp_path_factory.getbasetemp()
    programs = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "programs"
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="module")
def quick_compilation():
    """The compiler without its optimisations, for tests of values and of code whose time goes into compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
