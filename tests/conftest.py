"""Tests run on the CPU unless the caller says otherwise; set before anything imports jax."""

import gc
import os
import secrets

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs to machine code that runs once: none of it is
# optimised, fusions do not go through MLIR (half of the compiler's time, snake_jax/compiling.py),
# and since each of two processes has a core, none divides a program among threads. What XLA makes
# of a program before that, its counts and its memory stay as they are. XLA_FLAGS= (empty) brings
# the code of every run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)
# Ray reads these when it is imported: its clusters here let in this session alone, and none leaves
# a token in the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))

import jax
import pytest

# Tracing makes many small objects that live long: as jax fills the heap, looking through all of it
# every 700 new ones takes a tenth of the time. Cycles are still found, less often.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def _one_compilation_of_each_program(tmp_path_factory):
    """Many tests run the same small programs; the second one finds them compiled. A cache of this
    session alone, which its processes share, and those that tests start; or the caller's own folder
    in JAX_COMPILATION_CACHE_DIR, which the next session finds filled.
    """
    folder = tmp_path_factory.getbasetemp()
    own = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "programs"
    programs = os.environ.get("JAX_COMPILATION_CACHE_DIR", own)
    options = {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs():
    """A process keeps all that it compiled; other modules have other programs."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation():
    """The compiler without its optimisations, for tests of values and of code whose time goes into
    compilation.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
