"""The fast convolution and pooling equal XLA's own, in values and gradients, and cost what they should."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.kernels import bench as command
from snake_jax.kernels.conv import LOWERINGS, bench, conv2d, max_pool, reference, shapes, vgg11
from snake_jax.kernels.conv.shapes import ConvShape

PLAIN = ConvShape("plain", (4, 8, 8, 16), (3, 3, 16, 16))
TINY = vgg11.Sizes(batch=2, side=2, channels=(4,), pooled=(1,), hidden=8)


def draw(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arrays(shape, dtype=jnp.float32):
    return draw(shape.x, dtype, 0), draw(shape.w, dtype, 1), draw(shape.y, dtype, 2)


def conv_of(shape, lowering):
    return lambda x, w: conv2d(x, w, strides=shape.strides, padding=shape.padding, lowering=lowering)


def values_and_gradients(function, x, w, g):
    """[y, dx, dw] for the cotangent g."""

    @jax.jit
    def program(x, w, g):
        y, backward = jax.vjp(function, x, w)
        return y, *backward(g)

    return [np.asarray(a, np.float64) for a in program(x, w, g)]


def assert_within(actual, expected, bound):
    """Equal up to `bound` times the largest expected value: sums of many terms round in proportion to those."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=bound * np.abs(e).max())


def numpy_conv(x, w, strides, pads):
    """The sum of products, window by window: x [B,H,W,Cin], w [Kh,Kw,Cin,Cout] -> [B,Ho,Wo,Cout]."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return np.einsum("bhwcij,ijco->bhwo", windows, w)


@pytest.mark.parametrize("shape", shapes.SMALL, ids=lambda s: s.name)
def test_equals_xla_in_float32(shape):
    expected = values_and_gradients(conv_of(shape, "xla"), *arrays(shape))
    # At most 150 products in a sum: the rounding of a few of them, 2**-24 each.
    assert_within(values_and_gradients(conv_of(shape, "matmul"), *arrays(shape)), expected, 1e-6)


@pytest.mark.parametrize("shape", shapes.SMALL, ids=lambda s: s.name)
def test_equals_xla_in_float64(shape):
    with jax.enable_x64(True):
        expected = values_and_gradients(conv_of(shape, "xla"), *arrays(shape, jnp.float64))
        actual = values_and_gradients(conv_of(shape, "matmul"), *arrays(shape, jnp.float64))
    assert_within(actual, expected, 1e-14)


@pytest.mark.parametrize("shape", shapes.SMALL, ids=lambda s: s.name)
def test_equals_the_sum_of_products(shape):
    x, w, g = (np.asarray(a, np.float64) for a in arrays(shape))
    pads = shape.padding
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], w.shape[:2], shape.strides, pads)
    y, dx, dw = values_and_gradients(conv_of(shape, "matmul"), *arrays(shape))
    assert_within([y], [numpy_conv(x, w, shape.strides, pads)], 1e-6)
    # The convolution is linear in x and in w, so <g, y> = <dx, x> = <dw, w> for gradients that are its transposes.
    inner = np.vdot(g, numpy_conv(x, w, shape.strides, pads))
    scale = np.linalg.norm(g) * np.linalg.norm(y)
    np.testing.assert_allclose([np.vdot(dx, x), np.vdot(dw, w)], inner, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_bfloat16_sums_in_float32(lowering):
    shape = ConvShape("deep", (2, 6, 6, 64), (3, 3, 64, 8))
    rounded = arrays(shape, jnp.bfloat16)
    expected = values_and_gradients(conv_of(shape, "xla"), *(a.astype(jnp.float32) for a in rounded))
    actual = values_and_gradients(conv_of(shape, lowering), *rounded)
    # One rounding to 8 bits is at most 2**-8 of the result; nine columns added up in bfloat16 are 1.4 times as far.
    assert_within(actual, expected, 2**-8)
    assert conv_of(shape, lowering)(*rounded[:2]).dtype == jnp.bfloat16


def test_gradient_with_respect_to_one_argument():
    shape = shapes.SMALL[1]
    x, w, g = arrays(shape)
    _, dx, dw = values_and_gradients(conv_of(shape, "xla"), x, w, g)
    for lowering in ("matmul", "auto"):
        conv = conv_of(shape, lowering)
        alone = [jax.jit(jax.grad(lambda x, w, of=conv: jnp.vdot(g, of(x, w)), argument))(x, w) for argument in (0, 1)]
        assert_within([np.asarray(a) for a in alone], [dx, dw], 1e-6)


def test_under_vmap_scan_and_cond():
    shape = ConvShape("same channels", (2, 5, 5, 3), (3, 3, 3, 3))
    x, ws = draw(shape.x), draw((4, *shape.w), seed=1)

    def loss(x, ws, lowering):
        conv = conv_of(shape, lowering)
        nodes = jax.vmap(conv, (None, 0))(x, ws)
        chain = jax.lax.scan(lambda h, w: (conv(h, w), None), x, ws)[0]
        choice = jax.lax.cond(ws[0].sum() > 0, lambda: conv(x, ws[0]), lambda: conv(x, ws[1]))
        return jnp.sum(nodes.sum(0) * chain * choice)

    def gradients(lowering):
        program = jax.jit(jax.grad(lambda x, ws: loss(x, ws, lowering), (0, 1)))
        return [np.asarray(a, np.float64) for a in program(x, ws)]

    expected = gradients("xla")
    for lowering in ("matmul", "auto"):
        assert_within(gradients(lowering), expected, 3e-6)  # four convolutions deep


def test_a_scan_keeps_x_and_not_its_patches():
    x, w, _ = arrays(PLAIN)

    def loss(x, w):
        return jax.lax.scan(lambda h, _: (jnp.sin(conv2d(h, w)), None), x, length=64)[0].sum()

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile().memory_analysis()
    # Kept for the backward pass: conv's input and sin's, 64 times each; patches alone would be 9 of x a step.
    assert memory.temp_size_in_bytes < 3.5 * 64 * x.nbytes


def compiled_flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("lowering", ["matmul", "auto"])
@pytest.mark.parametrize(("argument", "products"), [(0, 1), (1, 1), ((0, 1), 2)])
def test_compiles_only_the_gradients_asked_for(lowering, argument, products):
    x, w, g = arrays(PLAIN)
    conv = conv_of(PLAIN, lowering)
    # <g, y> needs no y for its gradient: what remains are the products of the gradients asked for.
    flops = compiled_flops(jax.grad(lambda x, w, g: jnp.vdot(g, conv(x, w)), argument), x, w, g)
    assert products * PLAIN.flops <= flops < 1.05 * products * PLAIN.flops


def test_a_frozen_kernel_costs_no_weight_gradient_in_a_scan():
    x, w, _ = arrays(PLAIN)
    scales = draw((3,), seed=3)

    def loss(scales, w):
        return jax.lax.scan(lambda h, s: (jnp.sin(s * conv2d(h, w)), None), x, scales)[0].sum()

    # The body is counted once: forward, and input gradient.
    assert compiled_flops(jax.grad(loss), scales, w) < 2.1 * PLAIN.flops
    assert compiled_flops(jax.grad(loss, (0, 1)), scales, w) > 2.9 * PLAIN.flops


@pytest.mark.parametrize(("platform", "convolutions", "products"), [("cpu", 0, 3), ("cuda", 3, 0), ("tpu", 3, 0)])
def test_auto_chooses_by_platform(platform, convolutions, products):
    x, w, g = arrays(PLAIN)
    conv = conv_of(PLAIN, "auto")
    traced = jax.jit(lambda x, w, g: (conv(x, w), jax.vjp(conv, x, w)[1](g))).trace(x, w, g)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert (text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")) == (convolutions, products)


def test_auto_leaves_no_branch_in_the_program():
    x, w, _ = arrays(PLAIN)
    text = jax.jit(jax.grad(lambda x, w: max_pool(conv2d(x, w)).sum(), (0, 1))).lower(x, w).compile().as_text()
    assert "conditional" not in text
    assert "reduce-window" not in text


POOLS = [((2, 2), None), ((2, 3), None), ((3, 3), (2, 2)), ((2, 2), (1, 1)), ((1, 1), None)]


@pytest.mark.parametrize(("window", "strides"), POOLS)
@pytest.mark.parametrize("side", [6, 7])
def test_pool_equals_xla_with_ties(window, strides, side):
    # Three values only: most windows hold their largest more than once.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, side, 9, 3)), jnp.float32)

    def both(lowering):
        y, backward = jax.vjp(lambda x: max_pool(x, window, strides, lowering), x)
        return y, backward(draw(y.shape, seed=1))[0]

    y, dx = both("xla")
    for lowering in ("matmul", "auto"):
        fast_y, fast_dx = both(lowering)
        np.testing.assert_array_equal(fast_y, y)
        # Overlapping windows add up in one pixel, in any order; others give one value or none.
        np.testing.assert_allclose(fast_dx, dx, rtol=0, atol=0 if strides is None else 1e-6)


def test_pool_gives_a_tie_to_the_first():
    x = jnp.array([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    for lowering in LOWERINGS:
        dx = jax.grad(lambda x, by=lowering: max_pool(x, lowering=by).sum())(x)
        np.testing.assert_array_equal(dx.reshape(2, 2), [[0, 1], [0, 0]])


def test_pool_of_bfloat16_under_vmap():
    x = draw((3, 2, 5, 4, 2), jnp.bfloat16)
    np.testing.assert_array_equal(
        jax.vmap(max_pool)(x), jnp.stack([reference.max_pool(one, (2, 2), (2, 2)) for one in x])
    )


X, W = np.zeros((2, 4, 4, 3), np.float32), np.zeros((3, 3, 3, 5), np.float32)
WRONG = [
    (lambda: conv2d(X, W[:, :, :2]), r"x \(2, 4, 4, 3\) has 3 channels, w \(3, 3, 2, 5\) takes 2"),
    (lambda: conv2d(X[0], W), r"x must be \[B,H,W,Cin\].*got shapes \(4, 4, 3\) and \(3, 3, 3, 5\)"),
    (lambda: conv2d(X, W.astype(np.float16)), "one floating dtype, got float32 and float16"),
    (lambda: conv2d(X.astype(int), W.astype(int)), "one floating dtype, got int64 and int64"),
    (lambda: conv2d(X, W, lowering="gemm"), "lowering 'gemm' is not one of auto, xla, matmul"),
    (lambda: conv2d(X, W, padding="FULL"), r"padding 'FULL' is not SAME, VALID or \(\(top"),
    (lambda: conv2d(X, W, padding=1), r"padding 1 is not SAME"),
    (lambda: conv2d(X, W, padding=((1, 1),)), r"padding \(\(1, 1\),\) is not SAME"),
    (lambda: conv2d(X, W, padding=((1, 1), (-1, 1))), r"padding must be two integers of at least 0, got \(-1, 1\)"),
    (lambda: conv2d(X, W, strides=2), "strides must be two integers of at least 1, got 2"),
    (lambda: conv2d(X, W, strides=(0, 1)), r"strides must be two integers of at least 1, got \(0, 1\)"),
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


def test_vgg11_has_its_parameters_and_flops():
    sizes = vgg11.FULL_SIZE
    params = jax.eval_shape(lambda: vgg11.init(sizes))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 9_750_922
    assert sum(vgg11.forward_flops(sizes).values()) == pytest.approx(9.81e9, rel=2e-3)
    assert shapes.VGG11[-1].x == (32, 2, 2, 512)


@pytest.fixture(scope="module")
def tiny_result():
    return bench.run(TINY, repeats=1, with_torch=False, peak_size=16)


def test_bench_measures_every_layer_pass_and_visit(tiny_result):
    passes = [(row["layer"], row["pass"]) for row in tiny_result["layers"]]
    assert passes == [("conv1", name) for name in ("forward", "input gradient", "weight gradient")]
    assert [row["middle"] for row in tiny_result["snake"]] == ["fc2", "fc3"]
    assert set(tiny_result["step"]["rows"]) == {"ours", "ours, in a scan", "xla"}
    assert set(tiny_result["step"]["ratios"]) == {"ours / xla", "ours, in a scan / xla"}
    assert all(row["fastest_ms"] > 0 for row in tiny_result["step"]["rows"].values())


def test_bench_prints_tables_and_json(tiny_result, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", lambda repeats: tiny_result | {"asked_repeats": repeats})
    assert command.main(["conv", "--json", "--repeats", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["asked_repeats"] == 2
    assert printed["machine"]["jax"] == jax.__version__
    assert command.main(["conv"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("processor: ", "weight gradient", "ours / xla: ", "FLOP ratio"))


def test_torch_runs_the_same_passes_and_step():
    pytest.importorskip("torch")
    from snake_jax.kernels.conv import torch_side

    (layer,) = TINY.convolutions
    results = {name: run() for name, run in torch_side.passes(layer).items()}
    assert results["forward"].shape == (2, 4, 2, 2)
    assert [r is not None for r in results["input gradient"]] == [True, False, False]
    assert [r is not None for r in results["weight gradient"]] == [False, True, False]
    step = torch_side.step(vgg11.Sizes(batch=2, side=4, channels=(4, 8), pooled=(1, 2), hidden=8))
    losses = [step() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_our_step_learns():
    step = bench._Step(TINY, "matmul", steps=20)
    losses = step()
    assert losses[-1] < losses[0]


def test_analytic_flops_are_the_compilers():
    # Images large enough that products outweigh what is counted beside them.
    sizes = vgg11.Sizes(batch=8, side=8, channels=(32, 64), pooled=(1, 2), hidden=64)
    names = vgg11.layer_names(sizes)
    for trained in (names, (names[0], names[1], names[-1])):
        counted = bench._Step(sizes, "matmul", trained).counted()["compiler_flops"]
        assert counted == pytest.approx(vgg11.step_flops(sizes, trained), rel=0.06)


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
        [sys.executable, "-m", "snake_jax.kernels.bench", "pooling"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "suite 'pooling' is not one of conv" in done.stderr
