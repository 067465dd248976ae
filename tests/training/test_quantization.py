"""Frozen storage: error bounds, exactness where it holds, rows, stacks, and what it weighs."""

import functools
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from jax.extend import core

from snake_jax.kernels import dequantize
from snake_jax.kernels.dequantize import NF4, is_quantized, take_rows
from snake_jax.params import num_bytes
from snake_jax.training.quantization import freeze, packed, thaw, unpacked
from tests.helpers import same_bits

dense = jax.jit(dequantize.dense, static_argnums=1)
DTYPES = ("int8", "nf4")
SHAPES = {
    "matrix": ("kernel", (128, 24)),
    "small blocks": ("kernel", (36, 24)),
    "table": ("embedding", (24, 128)),
    "convolution": ("kernel", (3, 3, 64, 8)),
}


def draw(*shape, seed=0):
    """Normal values whose channels and rows have unlike deviations."""
    rng = np.random.default_rng(seed)
    w = (
        rng.normal(size=shape)
        * np.exp(rng.normal(size=shape[-1:]))
        * np.exp(rng.normal(size=(shape[-2], 1)))
    )
    return jnp.asarray(w, jnp.float32)


@functools.partial(jax.jit, static_argnames=("key", "dtype", "scale_dtype"))
def stored(key, w, dtype, scale_dtype=jnp.float32):
    return freeze({"layer": {key: w}}, dtype, scale_dtype)["layer"][key]


def largest(w, scale):
    """The largest magnitude of each scale's part of w, spread over it: numpy, tile after tile."""
    w, out = np.abs(np.asarray(w)), np.zeros(w.shape)
    for index in np.ndindex(*scale.shape):
        part = tuple(
            slice(i * (n // s), (i + 1) * (n // s))
            for i, n, s in zip(index, w.shape, scale.shape, strict=True)
        )
        out[part] = w[part].max()
    return out


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_within_the_bound_of_its_scale(name, dtype):
    key, shape = SHAPES[name]
    w = draw(*shape)
    q = stored(key, w, dtype)
    error, top = np.abs(np.asarray(dense(q, jnp.float32)) - np.asarray(w)), largest(w, q.scale)
    # Half a step of 255 between -top and top; half of the widest gap between the 16 values.
    bound = top / 127.5 / 2 if dtype == "int8" else top * (1 - 0.6961928) / 2
    assert (error <= bound * (1 + 2e-5)).all()
    assert (error / bound).max() > 0.8


@pytest.mark.parametrize(("dtype", "expected"), [("int8", 0.0065), ("nf4", 0.092)])
def test_error_of_normal_weights_is_the_known_one(dtype, expected):
    w = np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)
    error = dense(stored("kernel", jnp.asarray(w), dtype), jnp.float32) - w
    # A uniform error over steps of largest / 127.5; for nf4 the mean over 20,000 blocks in numpy.
    assert np.sqrt((error**2).mean()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("name", "int8", "nf4"),
    [
        ("matrix", (1, 24), (2, 24)),
        ("small blocks", (1, 24), (1, 24)),
        ("table", (24, 1), (24, 2)),
        ("convolution", (1, 1, 1, 8), (3, 3, 1, 8)),
    ],
)
def test_scales_lie_along_the_output_channels_or_rows(name, int8, nf4):
    key, shape = SHAPES[name]
    assert stored(key, draw(*shape), "int8").scale.shape == int8
    assert stored(key, draw(*shape), "nf4").scale.shape == nf4


@pytest.mark.parametrize(
    ("size", "blocks"), [(64, 1), (192, 3), (96, 2), (100, 2), (8, 1), (11, 1), (2 * 37, 2)]
)
def test_blocks_are_the_largest_divisor_up_to_64(size, blocks):
    assert stored("kernel", draw(size, 3), "nf4").scale.shape == (blocks, 3)


@pytest.mark.parametrize("shape", [(3, 3, 3, 8), (7, 4), (5 * 67, 2)])
def test_axes_without_blocks_of_eight_stay_in_bfloat16(shape):
    w = draw(*shape)
    assert same_bits(stored("kernel", w, "nf4"), w.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", [jnp.float32, jnp.bfloat16])
def test_freezing_what_was_thawed_gives_the_same_codes(name, dtype, scale_dtype):
    key, shape = SHAPES[name]
    once = stored(key, draw(*shape), dtype, scale_dtype=scale_dtype)
    twice = stored(key, dense(once, jnp.float32), dtype, scale_dtype=scale_dtype)
    if dtype == "nf4":
        assert same_bits(twice, once)
    else:  # a channel's largest value lies between two codes, 127.5 steps from 0
        np.testing.assert_array_equal(np.maximum(twice.qvalue, -127), np.maximum(once.qvalue, -127))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_channels_and_blocks_stay_zero(dtype):
    w = draw(128, 6).at[:, 1].set(0).at[64:, 2].set(0)
    back = dense(stored("kernel", w, dtype), jnp.float32)
    assert np.isfinite(back).all()
    assert not back[:, 1].any()
    assert not back[64:, 2].any()
    if dtype == "nf4":  # a scale of 1 and the code of 0, not 0 / 0
        assert same_bits(
            stored("kernel", w, dtype),
            qwix.quantize(w, "nf4", channelwise_axes=[1], tiled_axes={0: 64}),
        )
    tiny = dense(stored("kernel", jnp.full((64, 2), 1e-42), dtype), jnp.float32)
    assert not tiny.any()


def test_nf4_has_the_codes_and_scales_of_qwix():
    w = draw(128, 24)
    ours, theirs = (
        stored("kernel", w, "nf4"),
        qwix.quantize(w, "nf4", channelwise_axes=[1], tiled_axes={0: 64}),
    )
    assert same_bits(ours, theirs)
    assert same_bits(dense(ours, jnp.float32), qwix.dequantize(theirs))


def test_every_code_of_nf4_stands_for_its_published_value():
    q = qwix.QArray(jnp.arange(16, dtype=jnp.uint4)[:, None], jnp.full((1, 1), 2.0), None, "nf4")
    assert same_bits(dense(q, jnp.float32), qwix.dequantize(q))
    assert same_bits(dense(q, jnp.float32)[:, 0], jnp.asarray(2 * NF4))
    assert (np.diff(NF4) > 0).all()


def test_values_are_computed_in_float32_whatever_the_scales_are():
    w = draw(128, 24)
    q = stored("kernel", w, "nf4", scale_dtype=jnp.bfloat16)
    expected = NF4[np.asarray(q.qvalue).astype(int)] * np.repeat(
        np.asarray(q.scale, np.float32), 64, axis=0
    )
    assert q.scale.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dense(q, jnp.float32), expected)
    np.testing.assert_array_equal(dense(q, jnp.bfloat16), expected.astype(ml_dtypes.bfloat16))


def test_bfloat16_scales_hardly_add_to_the_error():
    w = draw(512, 64)
    error = [
        float(jnp.abs(dense(stored("kernel", w, "nf4", scale_dtype=t), jnp.float32) - w).mean())
        for t in (jnp.float32, jnp.bfloat16)
    ]
    assert error[1] < 1.02 * error[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_stay_and_every_matrix_is_quantized(dtype):
    tree = {
        "norm": {"scale": jnp.arange(64.0)},
        "fc": {"kernel": draw(64, 8), "bias": jnp.arange(8.0)},
    }
    frozen = freeze(tree, dtype)
    assert is_quantized(frozen["fc"]["kernel"])
    assert frozen["norm"]["scale"] is tree["norm"]["scale"]
    assert frozen["fc"]["bias"] is tree["fc"]["bias"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(thaw(frozen, jnp.bfloat16))} == {"bfloat16"}


def test_the_other_dtypes_are_casts():
    tree = {"kernel": draw(64, 8), "bias": jnp.arange(8.0)}
    assert freeze(tree, "float32") is tree
    assert same_bits(freeze(tree, "bfloat16"), jax.tree.map(lambda w: w.astype(jnp.bfloat16), tree))
    assert same_bits(thaw(tree, jnp.float32), tree)


@pytest.mark.parametrize("dtype", ["bfloat16", *DTYPES])
def test_weights_that_came_in_bfloat16_are_frozen_as_their_float32_values(dtype):
    w = draw(64, 8).astype(jnp.bfloat16)
    assert same_bits(stored("kernel", w, dtype), stored("kernel", w.astype(jnp.float32), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["matrix", "table"])
def test_a_block_of_a_stack_is_the_block_alone(name, dtype):
    key, shape = SHAPES[name]
    blocks = [
        {"layer": {key: draw(*shape, seed=s)}, "scale": jnp.arange(3.0) + s} for s in range(3)
    ]
    alone = [jax.jit(freeze, static_argnums=1)(block, dtype) for block in blocks]
    by_stacking = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    at_once = jax.jit(jax.vmap(lambda block: freeze(block, dtype)))(
        jax.tree.map(lambda *w: jnp.stack(w), *blocks)
    )
    assert same_bits(at_once, by_stacking)
    for index, block in enumerate(alone):
        one = jax.jit(lambda stack, i: jax.tree.map(lambda x: x[i], stack))(by_stacking, index)
        assert same_bits(one, block)
        assert same_bits(thaw(one, jnp.float32), thaw(block, jnp.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *DTYPES])
def test_rows_taken_are_those_of_the_dense_table(dtype):
    table = stored("embedding", draw(40, 128), dtype)
    ids = jnp.asarray([[0, 39, 7], [7, 7, 1]])
    rows = take_rows(table, ids, jnp.bfloat16)
    assert rows.shape == (2, 3, 128)
    assert same_bits(rows, dense(table, jnp.bfloat16)[ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_taking_rows_never_writes_a_dense_table(dtype):
    table = stored("embedding", draw(40, 128), dtype)
    equations = jax.make_jaxpr(lambda t, i: take_rows(t, i, jnp.float32))(
        table, jnp.arange(3)
    ).jaxpr.eqns

    def shapes(equations):
        for e in equations:
            yield from (v.aval.shape for v in e.outvars)
            yield from (s for inner in core.jaxprs_in_params(e.params) for s in shapes(inner.eqns))

    found = set(shapes(equations))
    assert (3, 128) in found
    assert (40, 128) not in found


def test_bytes_count_two_4_bit_values_in_one():
    sizes = {
        dtype: num_bytes(stored("kernel", draw(128, 24), dtype))
        for dtype in ("float32", "bfloat16", *DTYPES)
    }
    assert sizes == {
        "float32": 12288,
        "bfloat16": 6144,
        "int8": 3072 + 4 * 24,
        "nf4": 1536 + 4 * 48,
    }
    bits = [
        8 * num_bytes(stored("kernel", draw(640, 64), "nf4", scale_dtype=t)) / 640 / 64
        for t in ("f4", "bfloat16")
    ]
    assert bits == [4.5, 4.25]
    shapes = jax.eval_shape(lambda: stored("kernel", jnp.ones((128, 24)), "nf4"))
    assert (
        num_bytes({"a": shapes, "b": np.zeros(3, bool), "c": jnp.zeros(3, jnp.int32)})
        == 1728 + 3 + 12
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stored_layer_travels_in_its_bits_and_arrives_as_it_was(dtype):
    stored = freeze({"kernel": draw(3, 64, 5), "bias": jnp.ones(5)}, dtype)
    sent = pickle.dumps(packed(stored))
    arrived = unpacked(pickle.loads(sent))
    assert same_bits(arrived, stored)
    # Beside its arrays their names, shapes and types.
    assert num_bytes(stored) <= len(sent) < num_bytes(stored) + 800


def test_the_device_stores_what_is_counted():
    q = stored("kernel", draw(640, 64), "nf4")
    arguments = (
        jax.jit(lambda q: dequantize.dense(q, jnp.float32))
        .lower(q)
        .compile()
        .memory_analysis()
        .argument_size_in_bytes
    )
    assert arguments == num_bytes(q)


def test_freezing_in_nf4_stores_no_comparisons():
    w = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    program = jax.jit(lambda w: stored("kernel", w, "nf4")).lower(w).compile()
    assert program.memory_analysis().temp_size_in_bytes < 512 * 1024
