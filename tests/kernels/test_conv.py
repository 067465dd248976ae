"""The fast convolution and pooling equal XLA's own, in values and gradients, and cost what they
should.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.kernels import __main__ as command
from experiments.bench.kernels import conv as bench
from experiments.bench.kernels import conv_forms
from snake_jax.costs.layers import layer_costs
from snake_jax.kernels.conv import LOWERINGS, conv2d, max_pool, reference, shapes
from snake_jax.kernels.conv.shapes import ConvShape

PLAIN = ConvShape("plain", (4, 8, 8, 16), (3, 3, 16, 16))
OFF_PADDING = (22 / 24) ** 2
"""Of the taps of `PLAIN`, those that the compiler counts of a convolution of its own.

Along a side of 8 pixels the windows have 24 taps, of which 2 lie on padding.
"""
SMALLER = ConvShape("no more pixels than taps", (4, 3, 3, 16), (3, 3, 16, 16))
TINY = bench.Network("cnn", batch=4, side=8, width=0.5)


@pytest.fixture(scope="module")
def quick_compilation():
    """Leaves out the compiler's late optimisations, for tests of values alone."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def draw(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arrays(shape, dtype=jnp.float32):
    return draw(shape.x, dtype, 0), draw(shape.w, dtype, 1), draw(shape.y, dtype, 2)


def conv_of(shape, lowering):
    return lambda x, w: conv2d(
        x, w, strides=shape.strides, padding=shape.padding, lowering=lowering
    )


def values_and_gradients(function, x, w, g):
    """(y, dx, dw) for the cotangent g."""
    y, backward = jax.vjp(function, x, w)
    return y, *backward(g)


def assert_within(actual, expected, bound):
    """Equal up to `bound` times the largest expected value: sums of many terms round in proportion
    to those.
    """
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=bound * np.abs(e).max())


def numpy_conv(x, w, strides, pads):
    """The sum of products, window by window: x [B,H,W,Cin], w [Kh,Kw,Cin,Cout] ->
    [B,Ho,Wo,Cout].
    """
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))[
        :, :: strides[0], :: strides[1]
    ]
    return np.einsum("bhwcij,ijco->bhwo", windows, w)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("lowering", ["matmul", "auto"])
@pytest.mark.parametrize("shape", shapes.SMALL, ids=lambda s: s.name)
def test_equals_xla_and_the_sum_of_products(shape, lowering):
    @jax.jit
    def program(x, w, g):
        single = [a.astype(jnp.float32) for a in (x, w, g)]
        fast = conv_of(shape, lowering)
        xla = values_and_gradients(conv_of(shape, "xla"), x, w, g)
        return xla, values_and_gradients(fast, x, w, g), values_and_gradients(fast, *single)

    with jax.enable_x64(True):
        x, w, g = arrays(shape, jnp.float64)
        expected, double, single = jax.device_get(program(x, w, g))
    assert [a.dtype for a in (*double, *single)] == [np.float64] * 3 + [np.float32] * 3
    assert_within(double, expected, 1e-14)
    # At most 150 products in a sum: the rounding of a few of them, 2**-24 each, and of the
    # arguments.
    assert_within(single, expected, 1e-6)
    pads = shape.padding
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], shape.strides, pads)
    y, dx, dw = double
    assert_within([y], [numpy_conv(x, w, shape.strides, pads)], 1e-14)
    # The convolution is linear in x and in w, so <g, y> = <dx, x> = <dw, w> for gradients that are
    # its transposes.
    scale = np.linalg.norm(g) * np.linalg.norm(y)
    np.testing.assert_allclose(
        [np.vdot(dx, x), np.vdot(dw, w)], np.vdot(g, y), rtol=0, atol=1e-14 * scale
    )


def test_bfloat16_sums_in_float32():
    shape = ConvShape("deep", (2, 6, 6, 64), (3, 3, 64, 8))

    @jax.jit
    def program(x, w, g):
        wide = [a.astype(jnp.float32) for a in (x, w, g)]
        return values_and_gradients(conv_of(shape, "xla"), *wide), [
            values_and_gradients(conv_of(shape, lowering), x, w, g)
            for lowering in ("matmul", "auto", "xla")
        ]

    expected, rounded = program(*arrays(shape, jnp.bfloat16))
    for actual in rounded:
        # One rounding to 8 bits is at most 2**-8 of the result; nine columns added up in bfloat16
        # are 1.4 times as far.
        assert_within(actual, expected, 2**-8)
        assert {a.dtype for a in actual} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("lowering", "argument", "products"),
    [
        ("matmul", 0, 1),
        ("matmul", 1, 1),
        ("auto", 0, 1),
        ("auto", 1, OFF_PADDING),
        ("auto", (0, 1), 1 + OFF_PADDING),
    ],
)
def test_compiles_only_the_gradients_asked_for(lowering, argument, products):
    x, w, g = arrays(PLAIN)
    conv = conv_of(PLAIN, lowering)
    # <g, y> needs no y for its gradient: what remains are the products of the gradients asked for.
    program = compiled(jax.grad(lambda x, w, g: jnp.vdot(g, conv(x, w)), argument), x, w, g)
    assert (
        products * PLAIN.flops <= program.cost_analysis()["flops"] < 1.05 * products * PLAIN.flops
    )
    _, *expected = values_and_gradients(conv_of(PLAIN, "xla"), x, w, g)
    alone = program(x, w, g)
    assert_within(
        alone if argument == (0, 1) else [alone],
        expected if argument == (0, 1) else [expected[argument]],
        1e-6,
    )


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


@pytest.mark.usefixtures("quick_compilation")
def test_under_vmap_scan_and_cond():
    shape = ConvShape("same channels", (2, 5, 5, 3), (3, 3, 3, 3))
    x, ws = draw(shape.x), draw((4, *shape.w), seed=1)

    def loss(x, ws, lowering):
        conv = conv_of(shape, lowering)
        nodes = jax.vmap(conv, (None, 0))(x, ws)
        chain = jax.lax.scan(lambda h, w: (conv(h, w), None), x, ws)[0]
        choice = jax.lax.cond(ws[0].sum() > 0, lambda: conv(x, ws[0]), lambda: conv(x, ws[1]))
        return jnp.sum(nodes.sum(0) * chain * choice)

    @jax.jit
    def gradients(x, ws):
        return [jax.grad(loss, (0, 1))(x, ws, lowering) for lowering in ("xla", "auto")]

    expected, actual = gradients(x, ws)
    assert_within(actual, expected, 3e-6)  # four convolutions deep


def test_a_scan_keeps_x_and_not_its_patches():
    x, w, _ = arrays(PLAIN)

    def loss(x, w):
        return jax.lax.scan(lambda h, _: (jnp.sin(conv2d(h, w)), None), x, length=64)[0].sum()

    memory = compiled(jax.grad(loss, (0, 1)), x, w).memory_analysis()
    # Kept for the backward pass: conv's input and sin's, 64 times each; patches alone would be 9 of
    # x a step.
    assert memory.temp_size_in_bytes < 3.5 * 64 * x.nbytes


def test_a_frozen_kernel_costs_no_weight_gradient_in_a_scan():
    x, w, _ = arrays(PLAIN)
    scales = draw((3,), seed=3)

    def loss(scales, w):
        return jax.lax.scan(lambda h, s: (jnp.sin(s * conv2d(h, w)), None), x, scales)[0].sum()

    # The body is counted once: forward, and input gradient; then the weight gradient too.
    least = (OFF_PADDING + 1) * PLAIN.flops
    frozen = compiled(jax.grad(loss), scales, w).cost_analysis()["flops"]
    trained = compiled(jax.grad(loss, (0, 1)), scales, w).cost_analysis()["flops"]
    assert least < frozen < 1.1 * least
    assert trained > frozen + 0.9 * OFF_PADDING * PLAIN.flops


@pytest.mark.parametrize(
    ("platform", "shape", "convolutions", "products"),
    [
        ("cpu", PLAIN, 2, 1),
        ("cpu", SMALLER, 0, 3),
        ("cuda", PLAIN, 3, 0),
        ("cuda", SMALLER, 3, 0),
        ("tpu", PLAIN, 3, 0),
    ],
)
def test_auto_chooses_by_platform_and_size(platform, shape, convolutions, products):
    x, w, g = arrays(shape)
    conv = conv_of(shape, "auto")
    traced = jax.jit(lambda x, w, g: (conv(x, w), jax.vjp(conv, x, w)[1](g))).trace(x, w, g)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert (text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")) == (
        convolutions,
        products,
    )


def test_auto_leaves_no_branch_in_the_program():
    x, w, _ = arrays(PLAIN)
    text = (
        jax.jit(jax.grad(lambda x, w: max_pool(conv2d(x, w)).sum(), (0, 1)))
        .lower(x, w)
        .compile()
        .as_text()
    )
    assert "conditional" not in text
    assert "reduce-window" not in text


POOLS = [
    ((2, 2), None, 6),
    ((2, 2), None, 7),
    ((2, 3), None, 7),
    ((3, 3), (2, 2), 6),
    ((2, 2), (1, 1), 7),
    ((1, 1), None, 7),
]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("window", "strides", "side"), POOLS)
def test_pool_equals_xla_with_ties(window, strides, side):
    # Three values only: most windows hold their largest more than once.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, side, 9, 3)), jnp.float32)

    def both(x, lowering):
        y, backward = jax.vjp(lambda x: max_pool(x, window, strides, lowering), x)
        return y, backward(draw(y.shape, seed=1))[0]

    (y, dx), *others = jax.jit(
        lambda x: [both(x, lowering) for lowering in ("xla", "matmul", "auto")]
    )(x)
    for fast_y, fast_dx in others:
        np.testing.assert_array_equal(fast_y, y)
        # Overlapping windows add up in one pixel, in any order; others give one value or none.
        np.testing.assert_allclose(fast_dx, dx, rtol=0, atol=0 if strides is None else 1e-6)


@pytest.mark.usefixtures("quick_compilation")
def test_pool_gives_a_tie_to_the_first():
    x = jnp.array([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    gradients = [
        jax.grad(lambda x, by=lowering: max_pool(x, lowering=by).sum()) for lowering in LOWERINGS
    ]
    for dx in jax.jit(lambda x: [gradient(x) for gradient in gradients])(x):
        np.testing.assert_array_equal(dx.reshape(2, 2), [[0, 1], [0, 0]])


@pytest.mark.usefixtures("quick_compilation")
def test_pool_of_bfloat16_under_vmap():
    x = draw((3, 2, 5, 4, 2), jnp.bfloat16)
    one_by_one = jnp.stack([reference.max_pool(one, (2, 2), (2, 2)) for one in x])
    np.testing.assert_array_equal(jax.jit(jax.vmap(max_pool))(x), one_by_one)


X, W = np.zeros((2, 4, 4, 3), np.float32), np.zeros((3, 3, 3, 5), np.float32)
WRONG = [
    (lambda: conv2d(X, W[:, :, :2]), r"x \(2, 4, 4, 3\) has 3 channels, w \(3, 3, 2, 5\) takes 2"),
    (
        lambda: conv2d(X[0], W),
        r"x must be \[B,H,W,Cin\].*got shapes \(4, 4, 3\) and \(3, 3, 3, 5\)",
    ),
    (lambda: conv2d(X, W.astype(np.float16)), "one floating dtype, got float32 and float16"),
    (lambda: conv2d(X.astype(int), W.astype(int)), "one floating dtype, got int64 and int64"),
    (lambda: conv2d(X, W, lowering="gemm"), "lowering 'gemm' is not one of auto, xla, matmul"),
    (lambda: conv2d(X, W, padding="FULL"), r"padding 'FULL' is not SAME, VALID or \(\(top"),
    (lambda: conv2d(X, W, padding=1), r"padding 1 is not SAME"),
    (lambda: conv2d(X, W, padding=((1, 1),)), r"padding \(\(1, 1\),\) is not SAME"),
    (
        lambda: conv2d(X, W, padding=((1, 1), (-1, 1))),
        r"padding must be two integers of at least 0, got \(-1, 1\)",
    ),
    (lambda: conv2d(X, W, strides=2), "strides must be two integers of at least 1, got 2"),
    (
        lambda: conv2d(X, W, strides=(0, 1)),
        r"strides must be two integers of at least 1, got \(0, 1\)",
    ),
    (lambda: conv2d(X, W, strides=(1.5, 1)), r"got \(1.5, 1\)"),
    (
        lambda: conv2d(X[:, :2], W, padding="VALID"),
        r"w of shape \(3, 3, 3, 5\) is larger than x of shape \(2, 2, 4, 3\)",
    ),
    (lambda: max_pool(X[0]), r"x must be \[B,H,W,C\], got shape \(4, 4, 3\)"),
    (lambda: max_pool(X, (5, 1)), r"window \(5, 1\) is larger than x of shape \(2, 4, 4, 3\)"),
    (lambda: max_pool(X, (2,)), r"window must be two integers of at least 1, got \(2,\)"),
    (lambda: max_pool(X, lowering="fast"), "lowering 'fast' is not one of auto, xla, matmul"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_default_network_is_vgg11():
    layers = bench.convolutions(bench.Network())
    costs = layer_costs(bench.Network().build("matmul"), 32)
    assert sum(cost.params for cost in costs) == 9_750_922
    assert sum(cost.forward for cost in costs) == pytest.approx(9.81e9, rel=2e-3)
    assert [(layer.name, layer.flops) for layer in layers] == [
        (c.name, c.forward) for c in costs[:8]
    ]
    assert (layers[0].x, layers[-1].x) == ((32, 32, 32, 3), (32, 2, 2, 512))


@pytest.fixture(scope="module")
def tiny_result(quick_compilation):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            bench, "convolutions", lambda network, found=bench.convolutions: found(network)[:1]
        )
        return bench.run(1, TINY, with_torch=False, size=16)


def test_bench_measures_every_pass_beside_its_product(tiny_result):
    assert [(row["layer"], row["pass"]) for row in tiny_result["layers"]] == [
        ("conv1", name) for name in bench.PASSES
    ]
    for row in tiny_result["layers"]:
        assert {side for side in row if isinstance(row[side], dict)} == {
            "ours",
            "product",
            "xla",
            "ratios",
        }
        assert set(row["ratios"]) == {"ours / product", "ours / xla"}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", bench.PASSES)
def test_a_pass_and_its_bare_product_do_the_same_flops(name):
    (layer,) = bench.convolutions(TINY)[1:2]
    results = [run[name]() for run in (bench.looped_passes(layer), bench.bare_products(layer))]
    m, k, n = (
        layer.y[0] * layer.y[1] * layer.y[2],
        layer.flops // (2 * np.prod(layer.y)),
        layer.w[3],
    )
    shapes = {
        "forward": (layer.y, (m, n)),
        "input gradient": (layer.x, (m, k)),
        "weight gradient": (layer.w, (k, n)),
    }
    assert tuple(result.shape for result in results) == shapes[name]


@pytest.mark.usefixtures("quick_compilation")
def test_a_loop_of_passes_ends_with_the_last_input():
    (layer,) = bench.convolutions(TINY)[1:2]
    x, w, _ = bench.draw((bench.LOOP, *layer.x), layer.w, (bench.LOOP, *layer.y))
    assert_within(
        [bench.looped_passes(layer)["forward"]()], [conv2d(x[-1], w, lowering="xla")], 1e-6
    )


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", bench.PASSES)
def test_every_form_of_a_pass_gives_the_same(name):
    layer = ConvShape("even", (8, 4, 4, 3), (3, 3, 3, 5))
    x, w, g = arrays(layer)
    results = [form(x, w, g) for form in conv_forms.forms(layer)[name].values()]
    assert len(results) == 3
    assert_within(results[1:], results[:1] * 2, 1e-6)
    with pytest.raises(ValueError, match="odd: want 3x3, no strides and a batch of 4 parts"):
        conv_forms.forms(layer._replace(name="odd", x=(6, 4, 4, 3)))


def test_bench_prints_tables_and_json(tiny_result, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", lambda repeats: tiny_result | {"asked_repeats": repeats})
    assert command.main(["conv", "--json", "--repeats", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["asked_repeats"] == 2
    assert printed["machine"]["jax"] == jax.__version__
    assert command.main(["conv"]) == 0
    table = capsys.readouterr().out
    assert all(
        word in table
        for word in ("processor: ", "weight gradient", "ours / its product", "GFLOP/s")
    )


def test_torch_runs_the_same_passes():
    pytest.importorskip("torch")
    from experiments.bench.kernels import conv_torch as torch_side

    results = {
        name: run()
        for name, run in torch_side.passes(ConvShape("first", (2, 4, 3, 3), (3, 3, 3, 5))).items()
    }
    assert results["forward"].shape == (2, 5, 4, 3)
    assert [r is not None for r in results["input gradient"]] == [True, False, False]
    assert [r is not None for r in results["weight gradient"]] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pooling"], "suite 'pooling' is not one of conv"),
        (["conv", "--repeats=0"], "--repeats must be at least 1, got 0"),
        (["conv", "--jason"], "unrecognized arguments: --jason"),
        ([], "required: suite"),
    ],
)
def test_wrong_command_is_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_command_as_typed():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.kernels", "pooling"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "suite 'pooling' is not one of conv" in done.stderr
