"""A model over a mesh: where arrays lie, what is gathered, and the same results as on one
device.
"""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from snake_jax.config import TextConfig
from snake_jax.costs import collectives, compiled
from snake_jax.costs.shapes import BatchShape, step_program
from snake_jax.errors import UserError
from snake_jax.models import lora
from snake_jax.models.presets import PRESETS, from_preset
from snake_jax.runs import loop
from snake_jax.training import quantization, sharding
from snake_jax.training.optimizers import init_states, update_rule
from snake_jax.training.text_step import LanguageStep
from tests.launches import ROOT
from tests.sharded_runs import CASES, GATHERED, RUNS
from tests.sweeps import sweep

MESHES = [AbstractMesh(shape, sharding.AXES) for shape in ((8, 1), (4, 2), (1, 8), (3, 5))]


# Flags


@pytest.mark.parametrize(
    ("flag", "sizes"),
    [
        ("fsdp:4,tensor:2", (4, 2)),
        ("tensor:2, fsdp:4", (4, 2)),
        ("fsdp:8", (8, 1)),
        ("tensor:8", (1, 8)),
    ],
)
def test_a_mesh_is_named_in_any_order_and_in_part(flag, sizes):
    assert tuple(sharding.sizes(flag).items()) == tuple(zip(sharding.AXES, sizes, strict=True))


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("data:8", "data is no axis; axes are fsdp, tensor"),
        ("fsdp:4,fsdp:2", "fsdp is named twice"),
        ("fsdp", "fsdp has no size of at least 1"),
        ("fsdp:0", "fsdp has no size of at least 1"),
        ("fsdp:-4", "fsdp has no size of at least 1"),
        ("fsdp:4,", "a gap is no axis"),
        ("fsdp:512", "512 devices, there are 1; take a smaller mesh"),
        ("fsdp:3", "fsdp does not divide --batch_size=4; take a multiple of 3"),
        ("tensor:3", "tensor does not divide the model's 4 heads"),
        ("tensor:4", "tensor does not divide the model's 2 key heads"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(flag, reason):
    flags = {"model": "tiny-llama", "batch_size": 512 if flag == "fsdp:512" else 4, "mesh": flag}
    with pytest.raises(UserError, match=re.escape(f"--mesh={flag}: {reason}")) as error:
        loop.prepare(TextConfig(**flags))
    assert "\n" not in str(error.value)


def test_a_prefix_is_not_kept_on_the_devices_of_a_mesh():
    with pytest.raises(UserError, match="--cache_prefix=host"):
        loop.prepare(TextConfig(mesh="fsdp:1", cache_prefix="device", batch_size=4))


# Places


def shapes_of(name, dtype, adapters=None):
    """Shapes of a block and both ends as they are stored, or of a block's adapters."""
    shapes = jax.eval_shape(from_preset(name).init, jax.random.key(0))
    block = "block_00"
    if adapters:
        return jax.eval_shape(
            lambda: lora.init(jax.random.key(0), shapes[block], lora.Lora(adapters))
        )
    some = {name: shapes[name] for name in ("embed", block, "head")}
    return jax.eval_shape(lambda tree: quantization.freeze(tree, dtype), some)


def divided(place, shape):
    """Into how many parts each axis is divided."""
    spec = [*place.spec, *[None] * (len(shape) - len(place.spec))]
    return [
        int(np.prod([place.mesh.shape[name] for name in np.atleast_1d(names)])) if names else 1
        for names in spec
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("name", [name for name in PRESETS if "tiny" not in name])
def test_what_is_divided_is_divided_evenly_and_codes_as_their_scales(name, dtype):
    tree = shapes_of(name, dtype)
    for mesh in MESHES:
        for way in (sharding.stored_sharding, sharding.gathered_sharding):
            places = way(mesh, tree)
            for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True):
                parts = divided(place, leaf.shape)
                assert all(
                    size % count == 0 for size, count in zip(leaf.shape, parts, strict=True)
                ), (leaf, place)
            pairs = zip(
                *(jax.tree.leaves(t, is_leaf=quantization.is_quantized) for t in (tree, places)),
                strict=True,
            )
            for leaf, place in pairs:
                if quantization.is_quantized(leaf) and 1 not in leaf.scale.shape:
                    assert place.qvalue.spec == place.scale.spec


def test_nearly_all_that_is_stored_is_divided_by_all_devices():
    for name, adapters in (("opt-1.3b", None), ("llama-3-8b", None), ("llama-3-8b", 128)):
        tree = shapes_of(name, "int8", adapters)
        for mesh in MESHES[:3]:
            leaves = zip(
                jax.tree.leaves(tree),
                jax.tree.leaves(sharding.stored_sharding(mesh, tree)),
                strict=True,
            )
            here = sum(
                leaf.size * leaf.dtype.itemsize / np.prod(divided(p, leaf.shape))
                for leaf, p in leaves
            )
            whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
            # All of a device's feature axis: adapters' narrow halves are divided by fsdp alone.
            assert here < (0.6 if adapters and mesh.shape["fsdp"] == 1 else 0.17) * whole, (
                name,
                adapters,
                mesh,
            )


def test_a_stack_and_optimizer_states_lie_as_their_blocks_and_no_axis_of_blocks_is_divided():
    mesh, block = MESHES[1], shapes_of("opt-125m", "nf4")["block_00"]
    stacked = jax.tree.map(lambda w: jax.ShapeDtypeStruct((8, *w.shape), w.dtype), block)
    for one, many in zip(
        *(jax.tree.leaves(sharding.stored_sharding(mesh, tree)) for tree in (block, stacked)),
        strict=True,
    ):
        assert tuple(many.spec) == ((None, *one.spec) if len(one.spec) else ())
    weights = shapes_of("opt-125m", "float32")["block_00"]
    rule = update_rule("adamw", momentum=0.0, weight_decay=0.1)
    states = jax.eval_shape(lambda: init_states(rule, {"block_0": weights}, ("block_0",)))
    places = [
        tuple(place.spec) for place in jax.tree.leaves(sharding.stored_sharding(mesh, weights))
    ]
    found = [
        tuple(place.spec)
        for place in jax.tree.leaves(sharding.stored_sharding(mesh, states)["block_0"])
    ]
    assert found == [(), *places, *places], "the number of steps, and two moments"


def test_a_linear_pair_is_divided_along_what_it_has_in_common():
    mesh, block = MESHES[1], shapes_of("llama-3-8b", "bfloat16")["block_00"]
    stored, gathered = (
        sharding.stored_sharding(mesh, block),
        sharding.gathered_sharding(mesh, block),
    )
    assert tuple(stored["mlp"]["up_proj"]["kernel"].spec) == ("fsdp", "tensor")
    assert tuple(stored["mlp"]["down_proj"]["kernel"].spec) == ("tensor", "fsdp")
    assert tuple(gathered["mlp"]["up_proj"]["kernel"].spec) == (None, "tensor")
    assert tuple(gathered["mlp"]["down_proj"]["kernel"].spec) == ("tensor",)
    assert all(not len(place.spec) for place in jax.tree.leaves(stored["input_layernorm"]))


# Eight devices


def on_eight_devices(request, what, every):
    """What `tests.sharded_runs` prints of those that tests of this session ask for."""
    asked = set()
    for item in request.session.items:
        if hasattr(item, "callspec"):
            asked.update(str(value) for value in item.callspec.params.values())
    names = [name for name in every if name in asked]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-W", "error", "-m", "tests.sharded_runs", what, *names]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


STEPS = sweep(CASES, quick=["nf4 adapters"])


@pytest.fixture(scope="module")
def steps(request):
    return on_eight_devices(request, "steps", CASES)


@pytest.fixture(scope="module")
def runs(request):
    return on_eight_devices(request, "runs", RUNS)


@pytest.fixture(scope="module")
def gathered(request):
    return on_eight_devices(request, "gathered", GATHERED)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_a_mesh_is_that_of_one_device(steps, name):
    """Sums over rows and features are made in another order: some hundred roundings, 6e-8 of the
    largest value.
    """
    found = steps[name]
    assert found["loss"] < 1e-6
    assert found["states"] < 1e-4, "gradients"
    assert found["trained"] < (1e-4 if CASES[name].optimizer == "sgd" else 1e-2), (
        "Adam divides by small gradients"
    )


@pytest.mark.parametrize("name", STEPS)
def test_what_trains_stays_divided_where_it_was(steps, name):
    assert steps[name]["stays"]
    assert steps[name]["devices"] == 8


def test_frozen_copies_made_on_a_mesh_are_the_same_bits(steps):
    assert steps["frozen"] == {"bfloat16": True, "int8": True, "nf4": True}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_mesh_ends_as_on_one_device(runs, name):
    """After training, a block is quantized anew: a code on the edge may be the next one, by 1/127
    of the largest.
    """
    found, flags = runs[name], RUNS[name]
    assert found["params"] < (
        1e-3 if (flags["lora_rank"], flags.get("frozen_dtype")) == (0, "int8") else 1e-5
    )
    assert found["states"] < 1e-4
    np.testing.assert_allclose(*found["test_loss"], rtol=1e-5)
    assert found["counts"][0] == found["counts"][1], (
        "bytes, FLOPs and tokens are a node's, however many devices it has"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_one_program_of_each_kind_serves_all_visits_on_a_mesh(runs, name):
    wanted = {"train": 1, "evaluate": 1} | ({"prefix": 1} if "cache_prefix" in RUNS[name] else {})
    assert runs[name]["programs"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_what_never_trains_has_the_bits_of_one_device_after_the_run(runs, name):
    assert runs[name]["same_frozen"]


@pytest.mark.slow
def test_a_device_holds_its_part_of_the_stack(runs):
    assert (runs["blocks"]["least_part"], runs["adapters"]["least_part"]) == (1 / 8, 1 / 8)
    for found in runs.values():
        on_mesh, alone = found["peak_bytes"]
        assert on_mesh < alone


@pytest.mark.parametrize("dtype", sweep(GATHERED, quick=["int8"]))
def test_a_block_is_gathered_as_it_is_stored_and_nothing_else_is_large(gathered, dtype):
    """Codes of one block at a time; no kernel in floating point, no stack, no logits."""
    # A CPU has a 4-bit code in a byte of its own; that the TPU sends 4 bits is shown below.
    kernels, codes = {128 * 128, 128 * 256}, {"int8": "s8", "nf4": "u8"}[dtype]
    found = re.findall(
        r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", gathered[dtype]
    )
    arrays = [
        (kind, [int(n) for n in shape.split(",") if n])
        for r in found
        for kind, shape in _ARRAYS.findall(r)
    ]
    # tensor:2 leaves each device half of a kernel
    assert {2 * int(np.prod(shape)) for kind, shape in arrays if kind == codes} >= kernels
    wide = [
        (kind, shape)
        for kind, shape in arrays
        if kind != codes and np.prod(shape) >= min(kernels) / 2
    ]
    assert not wide
    assert not [shape for _, shape in arrays if {5, 6} & set(shape)], "a stack"
    reduced = re.findall(r"= (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", gathered[dtype])
    everything = [shape for _, shape in arrays] + [
        [int(n) for n in shape.split(",") if n] for r in reduced for _, shape in _ARRAYS.findall(r)
    ]
    assert not [shape for shape in everything if 264 in shape and shape[-1] not in (1, 2, 128)], (
        "logits"
    )


_ARRAYS = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\]")


# What is sent


def test_messages_count_once_however_often_they_are_written():
    text = """
%all-reduce-scatter (input: bf16[8,4]) -> bf16[1,4] {
  %a = bf16[8,4]{1,0} all-reduce(%input), channel_id=1, replica_groups={}
}
ENTRY %main (p: s8[2]) -> s8[16] {
  %b = s8[16]{0} all-gather(%p), channel_id=2, dimensions={0}
  %c = s8[16]{0} all-gather(%p), channel_id=2, dimensions={0}
  %d = (u4[3], u4[24]) all-gather-start(%q), channel_id=3, dimensions={0}
  %e = (f32[], f32[2,2]) all-reduce(%r, %s), channel_id=4, to_apply=%add
  %f = f32[5] add(%t, %u)
}
"""
    assert collectives.sent(text) == {
        "all-gather s8": (1, 16),
        "all-gather u4": (1, 12),
        "all-reduce f32": (1, 20),
        "reduce-scatter bf16": (1, 8),
    }


# The TPU's compiler


@pytest.mark.slow
def test_the_tpu_gathers_codes_of_four_bits_and_sums_gradients_where_they_are_kept():
    try:
        devices = compiled.devices("tpu:v5e:2x4")
    except UserError as error:
        pytest.skip(str(error))
    mesh = sharding.make_mesh("fsdp:4,tensor:2", devices)
    sizes = {"hidden_size": 512, "ffn_dim": 1024, "num_attention_heads": 8, "num_hidden_layers": 4}
    model = from_preset("tiny-opt", vocab_size=1024, **sizes)
    step = LanguageStep(
        model, update_rule("sgd", momentum=0.0, weight_decay=0.0), 0.0, compute_dtype="bfloat16"
    )
    alone, spread = (
        compiled.compiled_step(
            step_program(step._replace(mesh=m), ("block_00",), BatchShape(8, 128), "nf4"),
            devices[0],
        )
        for m in (None, mesh)
    )
    assert spread.memory.arguments < 0.2 * alone.memory.arguments
    sent = collectives.sent(spread.program.as_text())
    # Each gathers six kernels: the loops over the blocks below the trained one, from there to it,
    # above it, and back. The table is gathered once.
    assert sent["all-gather u4"].messages == 4 * 6 + 1
    assert sent["reduce-scatter bf16"].num_bytes > 0
    assert not collectives.sent(alone.program.as_text())
