"""Losses straight from hidden states: chunked equals whole logits, in values and gradients, and
never holds them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from jax.extend import core

from experiments.bench.kernels import described
from snake_jax.costs.compiled import devices
from snake_jax.kernels.dequantize import dense
from snake_jax.kernels.distill_xent import LOWERINGS, linear_xent, shapes, tile
from snake_jax.kernels.distill_xent.shapes import LARGE, SMALL, XentShape
from tests.sweeps import sweep

PLAIN = SMALL[0]
TILES = ((8, 3), (1, 100), (1000, 2), (5, 1))
TABLES = {
    "float32": lambda w: w,
    "bfloat16": lambda w: w.astype(jnp.bfloat16),
    "int8": lambda w: qwix.quantize(w, jnp.int8, channelwise_axes=[0]),
    "int8, one scale": lambda w: qwix.quantize(w, jnp.int8),
    "nf4, blocks of 64": lambda w: qwix.quantize(
        w, "nf4", channelwise_axes=[0], tiled_axes={1: 64}
    ),
    "nf4": lambda w: qwix.quantize(w, "nf4", channelwise_axes=[0], tiled_axes={1: 8}),
}


@pytest.fixture
def quick_compilation():
    """Leaves out the compiler's late optimisations, for tests of values alone."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


values = pytest.mark.usefixtures("quick_compilation")


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(shape, dtype=jnp.float32):
    """hidden, table, targets, teacher, teacher_table, and cotangents of both losses."""
    hidden, teacher = draw(2, shape.tokens, shape.width, dtype=dtype)
    table, teacher_table = draw(2, shape.vocabulary, shape.width, seed=1) / 4
    targets = jnp.asarray(
        np.random.default_rng(2).integers(0, shape.vocabulary, shape.tokens), jnp.int32
    )
    return hidden, table, targets, teacher, teacher_table, draw(2, shape.tokens, seed=3)


def everything(hidden, table, targets, teacher, teacher_table, pull, **options):
    """(nll, distance, hit, gradient of hidden, of the table if wanted) for random cotangents."""
    wanted = (0, 1) if options.get("table_gradient") else (0,)

    def pulled(hidden, table):
        out = linear_xent(
            hidden, table, targets, teacher=teacher, teacher_table=teacher_table, **options
        )
        return (out.nll * pull[0] + out.distance * pull[1]).sum(), out

    gradients, out = jax.jit(jax.grad(pulled, wanted, has_aux=True))(hidden, table)
    return *out, *gradients


def in_numpy(hidden, table, targets, teacher, teacher_table, pull, temperature=1.0, cap=None):
    """The same in float64, gradients by hand."""
    hidden, table, pull = (np.asarray(x, np.float64) for x in (hidden, table, pull))

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def capped(x):
        return x if cap is None else cap * np.tanh(x / cap)

    products = hidden @ table.T
    logits = capped(products)
    one_hot = np.eye(len(table))[targets]
    nll = -np.log((softmax(logits) * one_hot).sum(1))
    to_logits = pull[0][:, None] * (softmax(logits) - one_hot)
    distance = np.zeros_like(nll)
    if teacher is not None:
        taught = capped(np.asarray(teacher, np.float64) @ np.asarray(teacher_table, np.float64).T)
        share, own = softmax(taught / temperature), softmax(logits / temperature)
        distance = -(share * np.log(own)).sum(1)
        to_logits += pull[1][:, None] * (own - share) / temperature
    if cap is not None:
        to_logits /= np.cosh(products / cap) ** 2
    return nll, distance, logits.argmax(1) == targets, to_logits @ table, to_logits.T @ hidden


def assert_within(actual, expected, bound):
    """Equal up to `bound` times the largest expected value, and `hit` exactly."""
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=bound * max(np.abs(e).max(), 1))


@values
@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_values_and_gradients_equal_float64_by_hand(shape, lowering):
    args = arguments(shape)
    options = {} if lowering == "xla" else {"chunk": 8, "rows": 3}
    actual = everything(*args, temperature=2.0, table_gradient=True, lowering=lowering, **options)
    assert_within(actual, in_numpy(*args, temperature=2.0), 2e-6)


@values
@pytest.mark.parametrize(("chunk", "rows"), TILES)
@pytest.mark.parametrize("shape", SMALL[:2], ids=lambda s: s.name)
def test_every_tile_gives_the_same_losses(shape, chunk, rows):
    args = arguments(shape)
    actual = everything(*args, temperature=0.5, table_gradient=True, chunk=chunk, rows=rows)
    assert_within(actual, in_numpy(*args, temperature=0.5), 2e-6)


@values
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("shape", SMALL[:2], ids=lambda s: s.name)
def test_capped_logits_are_those_of_both_and_of_the_gradient(shape, lowering):
    # Products are some 2 to 4 wide: the cap bends most of them. Windows of 12 overlap.
    args = arguments(shape)
    options = {"temperature": 2.0, "cap": 1.5}
    tiles = {} if lowering == "xla" else {"chunk": 12, "rows": 3}
    actual = everything(*args, table_gradient=True, lowering=lowering, **tiles, **options)
    assert_within(actual, in_numpy(*args, **options), 2e-6)
    uncapped = in_numpy(*args, temperature=2.0)
    assert not np.allclose(actual[0], uncapped[0], atol=0.1)


@values
def test_in_float64_the_algorithm_is_exact():
    with jax.enable_x64(True):
        args = tuple(
            x if x.dtype == jnp.int32 else x.astype(jnp.float64) for x in arguments(SMALL[1])
        )
        options = {"temperature": 3.0, "cap": 5.0}
        actual = everything(*args, **options, table_gradient=True, chunk=8, rows=3)
        assert actual[0].dtype == jnp.float64
        assert_within(actual, in_numpy(*args, **options), 1e-13)


@values
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int8, one scale", "nf4"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_stored_table_and_compute_dtype(kind, dtype):
    hidden, table, targets, teacher, _, pull = arguments(PLAIN, dtype)
    stored = TABLES[kind](table)
    actual = everything(hidden, stored, targets, teacher, None, pull, chunk=12, rows=3)
    rows = dense(stored, dtype)
    expected = in_numpy(hidden, rows, targets, teacher, rows, pull)[:4]
    assert actual[0].dtype == jnp.float32
    assert actual[3].dtype == dtype
    # In bfloat16 the logits' gradients are rounded to 8 bits before their product.
    assert_within(actual, expected, 2e-6 if dtype == jnp.float32 else 4e-3)


@values
def test_a_trained_table_gets_its_gradient_in_its_own_dtype():
    args = arguments(PLAIN, jnp.bfloat16)
    gradient = everything(*args, table_gradient=True, chunk=12, rows=3)[4]
    stored = args[1].astype(jnp.bfloat16)
    assert gradient.dtype == jnp.float32
    assert_within(
        [gradient],
        [in_numpy(args[0], stored, *args[2:4], args[4].astype(jnp.bfloat16), args[5])[4]],
        5e-3,
    )


@values
def test_a_table_that_is_not_trained_and_the_teacher_get_no_gradient():
    hidden, table, targets, teacher, teacher_table, _ = arguments(PLAIN)

    def total(trees, lowering):
        table, teacher, teacher_table = trees
        out = linear_xent(
            hidden, table, targets, teacher=teacher, teacher_table=teacher_table, lowering=lowering
        )
        return (out.nll + out.distance).sum()

    for lowering in LOWERINGS:
        gradients = jax.jit(jax.grad(total), static_argnums=1)(
            (table, teacher, teacher_table), lowering
        )
        assert not any(g.any() for g in gradients)


@values
def test_a_table_that_both_share_is_taught_by_constants():
    hidden, table, targets, teacher, _, pull = arguments(PLAIN)
    actual = everything(hidden, table, targets, teacher, None, pull, table_gradient=True, chunk=12)
    assert_within(actual, in_numpy(hidden, table, targets, teacher, table, pull), 2e-6)


@values
def test_without_a_teacher_there_is_no_distance():
    hidden, table, targets, _, _, pull = arguments(PLAIN)
    actual = everything(hidden, table, targets, None, None, pull, chunk=12)
    assert not actual[1].any()
    assert_within(actual, in_numpy(hidden, table, targets, None, None, pull)[:4], 2e-6)


def test_losses_are_those_of_optax():
    optax = pytest.importorskip("optax")
    hidden, table, targets, teacher, _, _ = arguments(PLAIN)
    out = linear_xent(hidden, table, targets, teacher=teacher, temperature=2.0, chunk=12)
    logits, taught = hidden @ table.T, teacher @ table.T
    expected = optax.softmax_cross_entropy(logits / 2, jax.nn.softmax(taught / 2))
    np.testing.assert_allclose(
        out.nll, optax.softmax_cross_entropy_with_integer_labels(logits, targets), rtol=1e-5
    )
    np.testing.assert_allclose(out.distance, expected, rtol=1e-5)


@values
def test_large_logits_stay_finite():
    hidden, table, targets, teacher, _, pull = arguments(PLAIN)
    actual = everything(hidden * 1e4, table, targets, -teacher * 1e4, None, pull, chunk=12)
    assert all(np.isfinite(x).all() for x in actual)


@values
@pytest.mark.parametrize("chunk", [2, 3, 32])
def test_of_equal_logits_the_first_counts(chunk):
    hidden, table = jnp.ones((3, 4)), jnp.ones((32, 4)).at[0].set(0)
    hit = linear_xent(hidden, table, jnp.array([0, 1, 31]), chunk=chunk).hit
    assert hit.tolist() == [False, True, False]


def arrays_written(function, *args):
    """Shapes of all that the program computes, loops' bodies included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars)
            for inner in core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return set(walk(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int8, one scale", "nf4"])
def test_neither_logits_nor_a_second_table_are_ever_whole(kind):
    shape = XentShape("odd", 24, 40, 133)
    hidden, table, targets, teacher, _, _ = arguments(shape)
    stored = TABLES[kind](table)

    def total(hidden, stored):
        out = linear_xent(hidden, stored, targets, teacher=teacher, chunk=16, rows=8)
        return out.nll.sum() + out.distance.sum()

    written = arrays_written(jax.grad(total), hidden, stored)
    assert (8, 16) in written
    assert not {(24, 133), (133, 24), (24, 16), (8, 133), (133, 40), (40, 133)} & written


def temporary_bytes(tokens, vocabulary, kind, **options):
    hidden, table, targets = (
        jax.ShapeDtypeStruct((tokens, 128), jnp.float32),
        jax.eval_shape(TABLES[kind], jax.ShapeDtypeStruct((vocabulary, 128), jnp.float32)),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    gradient = jax.grad(lambda h, w, t: linear_xent(h, w, t, **options).nll.sum())
    return (
        jax.jit(gradient)
        .lower(hidden, table, targets)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


# The CPU compiler itself widens whole bfloat16 and 4-bit arrays before it cuts them.
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_memory_grows_with_the_tile_not_with_the_vocabulary(kind):
    tiles = {"chunk": 512, "rows": 256}
    small, large = (temporary_bytes(1024, v, kind, **tiles) for v in (4000, 32000))
    assert large < 1.05 * small
    # Hidden's gradient [1024, 128] in float32, and a few tiles of logits [256, 512] and of the
    # table [512, 128].
    assert large < 4 * (1024 * 128 + 4 * 256 * 512 + 4 * 512 * 128)
    assert temporary_bytes(1024, 32000, kind, lowering="xla") > 4 * 1024 * 32000


@pytest.mark.parametrize(
    "kind", sweep(["float32", "int8", "nf4, blocks of 64"], quick=["nf4, blocks of 64"])
)
def test_compiled_for_a_tpu_the_table_is_not_copied(kind, monkeypatch):
    pytest.importorskip("libtpu")
    # Compiling needs no chip: nor to be the one process that uses it.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    place = jax.sharding.SingleDeviceSharding(devices("tpu:v5e")[0])
    width, vocabulary = LARGE[1].width, LARGE[1].vocabulary
    inputs = (
        jax.ShapeDtypeStruct((256, width), jnp.bfloat16),
        jax.eval_shape(TABLES[kind], jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)),
        jax.ShapeDtypeStruct((256,), jnp.int32),
    )
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), inputs)
    program = (
        jax.jit(jax.grad(lambda h, w, t: linear_xent(h, w, t).nll.sum())).lower(*inputs).compile()
    )
    # The smallest table is 4.5 bits a parameter; a dense piece of one is at most 32 MiB.
    assert program.memory_analysis().temp_size_in_bytes < 100 * 2**20 < vocabulary * width / 2


@pytest.mark.parametrize(
    "shape", [*LARGE, *SMALL, shapes.MIDDLE, XentShape("long", 65536, 8192, 151936)]
)
def test_default_tiles_are_even_and_within_their_budget(shape):
    chunk, rows = tile(shape.tokens, shape.vocabulary, shape.width, 2)
    chunks, blocks = -(-shape.vocabulary // chunk), -(-shape.tokens // rows)
    assert 4 * chunk * rows <= 32 * 2**20
    assert 2 * chunk * shape.width <= 32 * 2**20
    assert chunk <= shape.vocabulary
    assert chunks * chunk < shape.vocabulary + 128 * chunks
    assert blocks * rows < shape.tokens + 8 * blocks


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"hidden": jnp.zeros((2, 3, 4))},
            r"hidden must be floating \[N, E\], got float32 \(2, 3, 4\)",
        ),
        ({"targets": jnp.zeros(8)}, r"targets must be integers \[8\], got float32 \(8,\)"),
        ({"table": jnp.zeros((5, 4))}, r"table must be \[V, 64\], got \(5, 4\)"),
        (
            {"teacher": jnp.zeros((8, 64), jnp.bfloat16)},
            r"teacher must be float32 \(8, 64\) as hidden is",
        ),
        ({"teacher_table": jnp.zeros((32, 64))}, "a teacher_table without a teacher"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"lowering": "fast"}, "lowering 'fast' is not one of chunked, xla"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"rows": -1}, "rows must be at least 1, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, reason):
    hidden, table, targets, *_ = arguments(PLAIN)
    with pytest.raises(ValueError, match=reason):
        linear_xent(**{"hidden": hidden, "table": table, "targets": targets, **changes})


def test_a_quantized_table_is_not_trained():
    hidden, table, targets, *_ = arguments(PLAIN)
    with pytest.raises(ValueError, match="a quantized table has no gradient"):
        linear_xent(hidden, TABLES["int8"](table), targets, table_gradient=True)


@pytest.mark.parametrize("chip", sweep(described.CHIPS, quick=["v5e"]))
def test_compiled_for_a_tpu_logits_stay_in_vmem(chip, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    shape = LARGE[0]
    inputs = (
        jax.ShapeDtypeStruct((shape.tokens, shape.width), jnp.bfloat16),
        jax.ShapeDtypeStruct((shape.vocabulary, shape.width), jnp.bfloat16),
        jax.ShapeDtypeStruct((shape.tokens,), jnp.int32),
    )
    chunk, rows = tile(shape.tokens, shape.vocabulary, shape.width, 2)
    gradient = jax.value_and_grad(lambda h, w, t: linear_xent(h, w, t).nll.sum())
    program = described.described(chip, gradient, inputs)
    tiles = described.placed(program.program, "f32", (rows, chunk))
    assert tiles.vmem > 0
    assert tiles.hbm == 0
    assert program.temporary_bytes < 2**20
