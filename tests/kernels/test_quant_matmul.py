"""A product with a quantized matrix: every form equals float64, and on a TPU the matrix is never
dense in memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from snake_jax.costs.compiled import compile_placed, devices, placed
from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.quant_matmul import LOWERINGS, OfStack, mosaic_tpu, quant_matmul, reference
from snake_jax.kernels.quant_matmul.shapes import LARGE, ODD, SMALL
from snake_jax.training.quantization import freeze
from tests.sweeps import sweep

values = pytest.mark.usefixtures("quick_compilation")
KINDS = ("int8", "nf4")
KERNELS = ("mosaic_tpu", "triton")
PLAIN, ADAPTED = SMALL[:2]
BOUND = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}  # of the largest value; a bfloat16 has 8 bits


@pytest.fixture
def quick_compilation():
    """Leaves out the compiler's late optimisations, for tests of values alone."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def stored(shape, kind, scale_dtype=jnp.float32):
    return freeze({"kernel": draw(shape.inputs, shape.outputs, seed=1) / 8}, kind, scale_dtype)[
        "kernel"
    ]


def arguments(shape, dtype=jnp.float32):
    """x, adapter, cotangent."""
    x, g = (
        draw(shape.rows, shape.inputs, dtype=dtype),
        draw(shape.rows, shape.outputs, seed=4, dtype=dtype),
    )
    adapter = (
        (draw(shape.inputs, shape.rank, seed=2), draw(shape.rank, shape.outputs, seed=3))
        if shape.rank
        else None
    )
    return x, adapter, g


def everything(weight, x, adapter, g, lowering):
    """Value, and gradients of x and of the adapter, for the cotangent."""

    @jax.jit
    def pulled(x, adapter, g):
        y, pull = jax.vjp(
            lambda x, adapter: quant_matmul(x, weight, adapter, lowering=lowering), x, adapter
        )
        return y, pull(g)

    return jax.tree.leaves(pulled(x, adapter, g))


def in_numpy(weight, x, adapter, g):
    """The same in float64."""
    w, x, g = (np.asarray(v, np.float64) for v in (dense(weight, jnp.float32), x, g))
    if adapter is None:
        return [x @ w, g @ w.T]
    a, b = (np.asarray(v, np.float64) for v in adapter)
    return [x @ w + x @ a @ b, g @ w.T + g @ b.T @ a.T, x.T @ (g @ b.T), (x @ a).T @ g]


def assert_within(actual, expected, bound):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), e, rtol=0, atol=bound * np.abs(e).max()
        )


@values
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", sweep(SMALL, quick=[ADAPTED, SMALL[3], SMALL[4]]), ids=lambda s: s.name
)
@pytest.mark.parametrize("lowering", ["xla", *KERNELS])
def test_values_and_gradients_equal_float64(lowering, shape, kind):
    weight, args = stored(shape, kind), arguments(shape)
    assert_within(everything(weight, *args, lowering), in_numpy(weight, *args), BOUND[jnp.float32])


@values
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ODD, ids=lambda s: s.name)
@pytest.mark.parametrize("lowering", ["auto", "xla"])
def test_sizes_without_tiles_are_multiplied_all_the_same(lowering, shape, kind):
    weight, args = stored(shape, kind), arguments(shape)
    assert_within(everything(weight, *args, lowering), in_numpy(weight, *args), BOUND[jnp.float32])


@values
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_bfloat16_activations_and_scales(lowering, kind):
    weight, (x, adapter, g) = stored(ADAPTED, kind, jnp.bfloat16), arguments(ADAPTED, jnp.bfloat16)
    actual = everything(weight, x, adapter, g, lowering)
    assert [leaf.dtype for leaf in actual] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    assert_within(actual, in_numpy(weight, x, adapter, g), BOUND[jnp.bfloat16])


@values
@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_the_algorithm_is_exact(kind):
    weight = stored(ADAPTED, kind)
    with jax.enable_x64(True):
        x, adapter, g = jax.tree.map(lambda v: v.astype(jnp.float64), arguments(ADAPTED))
        actual = everything(weight, x, adapter, g, "auto")
        w = np.asarray(dense(weight, jnp.float32), np.float64)
        assert actual[0].dtype == jnp.float64
        np.testing.assert_allclose(
            actual[0], x @ w + x @ adapter[0] @ adapter[1], rtol=1e-12, atol=1e-12
        )


@values
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_leading_axes_are_rows(lowering):
    weight, (x, adapter, _) = stored(ADAPTED, "nf4"), arguments(ADAPTED)
    flat = quant_matmul(x, weight, adapter, lowering=lowering)
    folded = quant_matmul(x.reshape(4, 2, 2, -1), weight, adapter, lowering=lowering)
    np.testing.assert_array_equal(folded.reshape(flat.shape), flat)


@values
def test_the_weight_is_a_constant():
    weight, (x, _, _) = stored(PLAIN, "int8"), arguments(PLAIN)
    gradient = jax.grad(lambda w: quant_matmul(x, w).sum(), allow_int=True)(weight)
    assert not np.asarray(gradient.scale).any()


def test_one_trace_for_one_shape():
    traces = []

    @jax.jit
    def function(x, weight, adapter):
        traces.append(x.shape)
        return quant_matmul(x, weight, adapter)

    for seed in range(3):
        function(draw(16, 128, seed=seed), stored(PLAIN, "nf4"), None)
    assert traces == [(16, 128)]


def described(chip):
    """A chip that needs not be there; compiling needs neither its address nor to be alone."""
    pytest.importorskip("libtpu")
    return devices(f"tpu:{chip}")[0]


def on_chip(chip, shape, kind, rank, transposed, dtype=jnp.bfloat16):
    """Arguments of `matmul` as shapes on the chip."""
    width, across = (shape.outputs, shape.inputs) if transposed else (shape.inputs, shape.outputs)
    weight = jax.eval_shape(
        lambda w: freeze({"kernel": w}, kind)["kernel"],
        jax.ShapeDtypeStruct((shape.inputs, shape.outputs), jnp.float32),
    )
    low_rank = reference.LowRank(
        jax.ShapeDtypeStruct((shape.rows, rank), dtype), jax.ShapeDtypeStruct((rank, across), dtype)
    )
    x = jax.ShapeDtypeStruct((shape.rows, width), dtype)
    return placed(described(chip), (x, weight, low_rank if rank else None))


@pytest.fixture
def tpu_compiler(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chip", sweep(["v5e", "v6e"], quick=["v5e"]))
def test_compiled_for_a_tpu_the_matrix_is_never_dense(chip, kind, transposed):
    shape = LARGE[1]
    matmul = functools.partial(mosaic_tpu.matmul, transposed=transposed)
    compiled = compile_placed(matmul, on_chip(chip, shape, kind, 16, transposed))
    assert compiled.memory.temporaries == 0
    text = compiled.program.as_text()
    assert text.count("tpu_custom_call") == 1
    assert f"bf16[{shape.inputs},{shape.outputs}]" not in text


@pytest.mark.usefixtures("tpu_compiler")
def test_xla_writes_the_dense_matrix_of_nf4_and_not_of_int8():
    shape = LARGE[1]
    matmul = functools.partial(reference.matmul, transposed=False)
    whole_bytes = 2 * shape.inputs * shape.outputs
    temporaries = {
        kind: compile_placed(matmul, on_chip("v5e", shape, kind, 0, False)).memory.temporaries
        for kind in KINDS
    }
    assert temporaries["int8"] == 0
    assert temporaries["nf4"] >= whole_bytes


def calls_for(platform, kind, rank, marker, lowering="auto"):
    """How many kernels are in the program of value and gradient lowered for a platform, which needs
    not be there.
    """
    weight = jax.eval_shape(functools.partial(stored, ADAPTED, kind))
    adapter = (
        tuple(draw(*s) for s in ((ADAPTED.inputs, rank), (rank, ADAPTED.outputs))) if rank else None
    )
    total = lambda x, w: quant_matmul(x, w, adapter, lowering=lowering).sum()  # noqa: E731
    x = jax.ShapeDtypeStruct((ADAPTED.rows, ADAPTED.inputs), jnp.bfloat16)
    traced = jax.jit(jax.value_and_grad(total)).trace(x, weight)
    return traced.lower(lowering_platforms=(platform,)).as_text().count(marker)


@pytest.mark.parametrize(
    ("kind", "rank", "calls"), [("nf4", 0, 2), ("nf4", 4, 2), ("int8", 4, 2), ("int8", 0, 0)]
)
def test_by_itself_it_takes_the_kernel_on_tpus_where_that_pays(kind, rank, calls):
    assert calls_for("tpu", kind, rank, "@tpu_custom_call") == calls
    assert calls_for("cpu", kind, rank, "custom_call") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_on_gpus_the_kernel_is_lowered_when_asked_for(kind):
    assert calls_for("cuda", kind, 4, "__gpu$xla.gpu.triton", lowering="triton") == 2
    assert calls_for("cuda", kind, 4, "__gpu$xla.gpu.triton") == 0


def test_the_bytes_that_a_grid_moves_are_counted_by_hand():
    # Two parts of the rows, two of K, two of N, forward: [i, j, k].
    x = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16)
    weight = qwix.QArray(
        jax.ShapeDtypeStruct((2048, 2048), jnp.int8),
        jax.ShapeDtypeStruct((1, 2048), jnp.float32),
        None,
        jnp.int8,
    )
    block = 1024 * 1024
    # Every step another block of x and of the weight; scales change with (i, j); the result is
    # written once.
    assert (
        mosaic_tpu.moved_bytes(x, weight, None, False)
        == 8 * 2 * block + 8 * block + 4 * 4 * 1024 + 4 * 2 * block
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": jnp.zeros((3, 5))}, r"x must be floating \[..., 128\], got float32 \(3, 5\)"),
        ({"x": jnp.zeros((3, 128), jnp.int32)}, r"x must be floating \[..., 128\], got int32"),
        ({"weight": jnp.zeros((128, 256))}, r"weight must be a symmetric quantized \[K, N\], got"),
        (
            {"adapter": (jnp.zeros((128, 4)), jnp.zeros((3, 256)))},
            r"adapter must be \[128, r\] and \[r, 256\]",
        ),
        ({"lowering": "fast"}, "lowering 'fast' is not one of auto, xla, mosaic_tpu, triton"),
    ],
)
def test_what_does_not_fit_is_refused(changes, reason):
    x, adapter, _ = arguments(ADAPTED)
    given = {"x": x, "weight": stored(ADAPTED, "int8"), "adapter": adapter, **changes}
    with pytest.raises(ValueError, match=reason):
        quant_matmul(**given)


@pytest.mark.parametrize("lowering", KERNELS)
def test_a_kernel_asked_for_by_name_refuses_sizes_without_tiles(lowering):
    x, *_ = arguments(ODD[0])
    with pytest.raises(
        ValueError, match=rf"{lowering} has no tiles for int8 \(24, 37\) and float32"
    ):
        quant_matmul(x, stored(ODD[0], "int8"), lowering=lowering)


def stack_of(shape, kind, count=3):
    """A stack of matrices, and them."""
    matrices = [
        freeze({"kernel": draw(shape.inputs, shape.outputs, seed=i) / 8}, kind)["kernel"]
        for i in range(count)
    ]
    return jax.tree.map(lambda *w: jnp.stack(w), *matrices), matrices


@values
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", sweep([PLAIN, ADAPTED, ODD[0]], quick=[ADAPTED]), ids=lambda s: s.name
)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_one_of_a_stack_is_multiplied_with_as_if_it_were_alone(lowering, shape, kind):
    """To the bit: the same blocks in the same order."""
    if shape in ODD and lowering in KERNELS:
        pytest.skip("no tiles")
    (stack, matrices), args = stack_of(shape, kind), arguments(shape)
    for at, matrix in enumerate(matrices):
        found = everything(OfStack(stack, jnp.int32(at)), *args, lowering)
        for one, other in zip(found, everything(matrix, *args, lowering), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_for_a_tpu_nothing_of_a_stack_is_copied(kind):
    shape = LARGE[1]
    x, weight, low_rank = on_chip("v5e", shape, kind, 16, False)
    placed = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=x.sharding)  # noqa: E731
    stack = jax.tree.map(lambda w: placed((4, *w.shape), w.dtype), weight)
    at = placed((), jnp.int32)
    matmul = functools.partial(mosaic_tpu.matmul, transposed=False)
    compiled = compile_placed(
        lambda x, stack, at, low: matmul(x, OfStack(stack, at), low), (x, stack, at, low_rank)
    )
    assert compiled.memory.temporaries == 0
