"""All programs of an engine are compiled with the same options, whichever way they are compiled."""

import re

import jax
import numpy as np
import pytest
from jax._src import compiler

from experiments.bench import vgg
from snake_jax import compiling
from snake_jax.algorithms.visits import Visit
from snake_jax.costs.compiled import compiled_cost
from snake_jax.engines.build import image_engine
from snake_jax.engines.contract import run_visits
from snake_jax.engines.epochs import VisitSettings
from tests.helpers import random_examples, small_model, small_step

LAYERS = ("fc1", "fc4")
VISITS = (Visit(0, 0, 0, LAYERS), Visit(1, 0, 1, LAYERS))
SETTINGS = VisitSettings(
    local_epochs=1, batch_size=5, frozen_dtype="float32", early_stop=0.0, seed=7
)
# What an engine runs for minutes, by the names that jax gives programs.
PROGRAMS = ("jit_epoch", "jit_nodes", "jit_spread", "jit_evaluation")


@pytest.fixture
def told(monkeypatch):
    """`(name, options)` of every program that is compiled from here on."""
    found = []
    inner = compiler.compile_or_get_cached

    def compiled(backend, computation, devices, compile_options, *rest, **more):
        name = computation.operation.attributes["sym_name"].value
        found.append((name, dict(compile_options.env_option_overrides)))
        return inner(backend, computation, devices, compile_options, *rest, **more)

    monkeypatch.setattr(compiler, "compile_or_get_cached", compiled)
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.clear_caches()
    return found


def engine_of(emulation):
    model, params = small_model("mlp")
    examples, test = random_examples(20), random_examples(9, seed=1)
    shards = (np.arange(10), np.arange(10, 20))
    return image_engine(small_step(model), examples, test, shards, SETTINGS, emulation), params


def test_ahead_at_once_and_however_nodes_are_emulated(told):
    for emulation, ahead in (
        *(("loop", True), ("loop", False), ("scan", False), ("vmap", False)),
        *(("pmap", False), ("shard_map", False)),
    ):
        engine, params = engine_of(emulation)
        if ahead:
            engine.expect((VISITS,), params, wait=True)
        run_visits(engine, VISITS, params, {}, 0.05)
        engine.evaluate(params)
        engine.close()
    compiled_cost(small_step(small_model("mlp")[0]), LAYERS, 5)
    expected = compiling.options(compiling.IMAGES)
    assert expected, "there is something to be told on a CPU"
    ours = [options for name, options in told if name in PROGRAMS]
    assert len(ours) == 2 * 6 + 1, told
    assert [options for options in ours if options != expected] == []


def test_what_the_user_says_to_the_compiler_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert compiling.options(compiling.IMAGES, "cpu") == {
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }


def test_a_step_without_clipping_copies_no_trained_layer():
    # A kernel above the first trained layer is read by its input gradient and overwritten by its
    # update, which nothing but the compiler's analysis puts in order.
    params = vgg.params_of(vgg.QUICK)
    text = vgg.Step(vgg.QUICK, tuple(params)).program.as_text()
    for name in ("conv3", "fc4", "fc5"):
        (layer,) = params[name].values()
        shape = ",".join(str(size) for size in layer["kernel"].shape)
        assert f"= f32[{shape}]" in text, "the step updates it"
        assert re.findall(rf"= f32\[{shape}\]\S* copy\(", text) == []


@pytest.mark.parametrize(
    ("work", "platform"),
    [(compiling.TEXT, "cpu"), (compiling.IMAGES, "tpu"), (compiling.IMAGES, "gpu"), ("", "cpu")],
)
def test_other_work_and_other_compilers_are_told_nothing(work, platform):
    assert compiling.options(work, platform) is None
