"""Times every pass of VGG-11's convolutions beside XLA's own, PyTorch's and the bare product.

That is the matrix product of the same size. Ours and the bare product run in a loop of `LOOP` calls
inside one program, as training runs them: fresh memory is paid for once. XLA's own convolution is
timed alone, because it is slower in a loop; PyTorch's as PyTorch runs it. Whole steps are timed by
`experiments.bench`.
"""

import functools
import importlib.util
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.bench.kernels.conv_tables import report
from snake_jax import compiling
from snake_jax.costs.timing import Sample, interleaved, machine, paired_ratio, sample_summary
from snake_jax.kernels import conv
from snake_jax.kernels.conv.shapes import ConvShape
from snake_jax.models import registry
from snake_jax.models.layered import LayeredModel
from snake_jax.params import Params

__all__ = [
    "CLASSES",
    "LOOP",
    "Network",
    "Product",
    "Run",
    "Stage",
    "convolutions",
    "draw",
    "looped",
    "product",
    "report",
    "run",
    "stages",
]

OURS = "auto"
CLASSES = 10
LOOP = 4
LARGEST_PRODUCT = 2048
PASSES = ("forward", "input gradient", "weight gradient")

Run = Callable[[], object]


class Network(NamedTuple):
    """Which network is timed: by default VGG-11 of 9,750,922 parameters for 32x32x3 images."""

    model: str = "vgg11"
    batch: int = 32
    side: int = 32
    width: float = 1.0

    def build(self, lowering: str) -> LayeredModel:
        """The library's model."""
        return registry.build(
            self.model, CLASSES, (self.side, self.side, 3), width=self.width, conv=lowering
        )


class Stage(NamedTuple):
    """One layer: x [B,...] -> y [B,...], kernel [Kh,Kw,Cin,Cout] or [Cin,Cout], bias [Cout]."""

    name: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    kernel: jax.Array
    bias: jax.Array


class Product(NamedTuple):
    """A float32 product of two square matrices, and its FLOPs."""

    run: Run
    flops: int


def product(size: int = LARGEST_PRODUCT) -> Product:
    """The product that tells how fast this machine can be: large enough to hide everything else."""
    a = jnp.ones((size, size), jnp.float32)
    return Product(_compiled(jnp.dot, a, a), 2 * size**3)


def run(
    repeats: int,
    network: Network | None = None,
    with_torch: bool = True,
    size: int = LARGEST_PRODUCT,
) -> dict:
    """Measures everything; the result is what --json prints.

    Times are milliseconds, rates GFLOP/s, sizes examples.
    """
    network = network or Network()
    with_torch = with_torch and importlib.util.find_spec("torch") is not None
    header = machine()

    # What this machine can do at best, which every pass is set against.
    largest = product(size)
    samples = interleaved({"product": largest.run}, repeats)
    fastest_s = min(sample.wall_s for sample in samples["product"])
    peak_gflops = largest.flops / fastest_s / 1e9

    layers = []
    for layer in convolutions(network):
        layers += _layer_rows(layer, repeats, peak_gflops, with_torch)
    return {
        "suite": "conv",
        "machine": header,
        "sizes": network._asdict(),
        "peak_gflops": peak_gflops,
        "layers": layers,
    }


def stages(network: Network, params: Params) -> list[Stage]:
    """The layers in order, with their shapes and parameters (of which the shapes suffice)."""
    model = network.build(OURS)
    x = jax.ShapeDtypeStruct((network.batch, *model.input_shape), jnp.float32)
    found = []
    for index, name in enumerate(model.layer_names):
        layer = functools.partial(model.apply, start=index, stop=index + 1)
        y = jax.eval_shape(layer, params, x)
        bias, kernel = sorted(jax.tree.leaves(params[name]), key=np.ndim)
        found.append(Stage(name, x.shape, y.shape, kernel, bias))
        x = y
    return found


def convolutions(network: Network) -> list[ConvShape]:
    """Those of the layers that are convolutions, all of them 3x3, SAME, without strides."""
    params = jax.eval_shape(network.build(OURS).init, jax.random.key(0))
    shapes = []
    for stage in stages(network, params):
        if stage.kernel.ndim == 4:
            shapes.append(ConvShape(stage.name, _four(stage.x), _four(stage.kernel.shape)))
    return shapes


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    a, b, c, d = shape
    return a, b, c, d


def _layer_rows(
    layer: ConvShape, repeats: int, peak_gflops: float, with_torch: bool
) -> list[dict[str, Any]]:
    sides = {
        "ours": looped_passes(layer),
        "product": bare_products(layer),
        "xla": _xla_passes(layer),
    }
    if with_torch:
        from experiments.bench.kernels import conv_torch as torch_side

        sides["torch"] = torch_side.passes(layer)
    rows = []
    for name in PASSES:
        calls = {side: passes[name] for side, passes in sides.items()}
        samples = interleaved(calls, repeats, budget_s=1.0)
        # A call of ours, and of the bare product, is a loop of several.
        for side in ("ours", "product"):
            samples[side] = [_one_of(LOOP, sample) for sample in samples[side]]

        timed = {}
        ratios = {}
        for side, taken in samples.items():
            timed[side] = _rated(sample_summary(taken), layer.flops, peak_gflops)
            if side != "ours":
                ratios[f"ours / {side}"] = paired_ratio(samples["ours"], taken)
        rows.append(
            {"layer": layer.name, "pass": name, "flops": layer.flops, **timed, "ratios": ratios}
        )
    return rows


def _one_of(calls: int, sample: Sample) -> Sample:
    """What one of several calls took."""
    return sample._replace(wall_s=sample.wall_s / calls, cpu_s=sample.cpu_s / calls)


def _rated(timed: dict[str, float], flops: int, peak_gflops: float) -> dict[str, float]:
    gflops = flops / timed["median_ms"] / 1e6
    return timed | {"gflops": gflops, "of_peak": gflops / peak_gflops}


def looped_passes(layer: ConvShape) -> dict[str, Run]:
    """Our passes, `LOOP` times each on as many inputs."""
    xs, w, gs = draw((LOOP, *layer.x), layer.w, (LOOP, *layer.y))
    forward = _forward(layer, OURS)

    # One result of `jax.vjp` alone is asked for: what the other takes is left out when compiled.
    def forward_of(w: jax.Array, x: jax.Array) -> jax.Array:
        return forward(x, w)

    def input_gradient(at: tuple[jax.Array, jax.Array], g: jax.Array) -> jax.Array:
        x, w = at
        _, backward = jax.vjp(forward, x, w)
        return backward(g)[0]

    def weight_gradient(w: jax.Array, given: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, g = given
        _, backward = jax.vjp(forward, x, w)
        return backward(g)[1]

    return {
        "forward": looped(forward_of, w, xs),
        "input gradient": looped(input_gradient, (xs[0], w), gs),
        "weight gradient": looped(weight_gradient, w, (xs, gs)),
    }


def bare_products(layer: ConvShape) -> dict[str, Run]:
    """Each pass's matrix product and nothing else, `LOOP` times on as many of its smaller operand.

    Patches are [M,K] with M = B Ho Wo and K = Kh Kw Cin, weights [K,N], gradients of the result
    [M,N].
    """
    batch, height, width, n = layer.y
    m = batch * height * width
    k = layer.flops // (2 * m * n)
    patches, g, ws, gs = draw((m, k), (m, n), (LOOP, k, n), (LOOP, m, n))
    no_batch: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    # [M,N] with [K,N] over N, and [M,K] with [M,N] over M: no operand is turned in memory.
    over_last = functools.partial(lax.dot_general, dimension_numbers=(((1,), (1,)), no_batch))
    over_first = functools.partial(lax.dot_general, dimension_numbers=(((0,), (0,)), no_batch))
    return {
        "forward": looped(jnp.dot, patches, ws),
        "input gradient": looped(over_last, g, ws),
        "weight gradient": looped(over_first, patches, gs),
    }


def _xla_passes(layer: ConvShape) -> dict[str, Run]:
    x, w, g = draw(layer.x, layer.w, layer.y)
    forward = _forward(layer, "xla")

    def input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        _, backward = jax.vjp(forward, x, w)
        return backward(g)[0]

    def weight_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        _, backward = jax.vjp(forward, x, w)
        return backward(g)[1]

    return {
        "forward": _compiled(forward, x, w),
        "input gradient": _compiled(input_gradient, x, w, g),
        "weight gradient": _compiled(weight_gradient, x, w, g),
    }


def _forward(layer: ConvShape, lowering: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return functools.partial(
        conv.conv2d, strides=layer.strides, padding=layer.padding, lowering=lowering
    )


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Normal numbers of these shapes."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def looped(function: Callable[[Any, Any], jax.Array], fixed: Any, stacked: Any) -> Run:
    """Calls of `function(fixed, one)` for each of the stacked, in one program.

    It gives the last result.
    """

    def every(fixed: Any, stacked: Any) -> jax.Array:
        def call(last: jax.Array, one: Any) -> tuple[jax.Array, None]:
            del last
            return function(fixed, one), None

        # Before the first call there is no result; its place is of the same shape.
        first = jax.tree.map(operator.itemgetter(0), stacked)
        like = jax.eval_shape(function, fixed, first)
        last, _ = lax.scan(call, jnp.zeros(like.shape, like.dtype), stacked)
        return last

    return _compiled(every, fixed, stacked)


def _compiled(function: Callable[..., jax.Array], *args: Any) -> Run:
    program = compiling.jit(compiling.IMAGES, function).lower(*args).compile()
    return functools.partial(program, *args)
