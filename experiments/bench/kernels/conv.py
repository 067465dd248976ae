"""Times every pass of VGG-11's convolutions beside XLA's own, PyTorch's and the bare matrix product
of the same size.

Ours and the bare product run in a loop of `LOOP` calls inside one program, as training runs them:
fresh memory is paid for once. XLA's own convolution is timed alone, because it is slower in a loop;
PyTorch's as PyTorch runs it. Whole steps are timed by `experiments.bench`.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.bench.kernels.conv_tables import report
from snake_jax.costs.timing import interleaved, machine, paired_ratio, sample_summary
from snake_jax.kernels import conv
from snake_jax.kernels.conv.shapes import ConvShape
from snake_jax.models import registry
from snake_jax.models.layered import LayeredModel
from snake_jax.params import Params

__all__ = [
    "CLASSES",
    "Network",
    "Product",
    "Stage",
    "convolutions",
    "product",
    "report",
    "run",
    "stages",
]

OURS = "matmul"
CLASSES = 10
LOOP = 4
LARGEST_PRODUCT = 2048
PASSES = ("forward", "input gradient", "weight gradient")

Run = Callable[[], object]


class Network(NamedTuple):
    """Which network is timed: the defaults are VGG-11 with 9,750,922 parameters for 32x32x3
    images.
    """

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
    """Measures everything; the result is what --json prints. Times are milliseconds, rates GFLOP/s,
    sizes examples.
    """
    network, largest = network or Network(), product(size)
    with_torch = with_torch and importlib.util.find_spec("torch") is not None
    header = machine()
    fastest_s = min(
        sample.wall_s for sample in interleaved({"product": largest.run}, repeats)["product"]
    )
    peak_gflops = largest.flops / fastest_s / 1e9
    return {
        "suite": "conv",
        "machine": header,
        "sizes": network._asdict(),
        "peak_gflops": peak_gflops,
        "layers": [
            row
            for layer in convolutions(network)
            for row in _layer_rows(layer, repeats, peak_gflops, with_torch)
        ],
    }


def stages(network: Network, params: Params) -> list[Stage]:
    """The layers in order, with their shapes and parameters (of which the shapes suffice)."""
    model = network.build(OURS)
    x = jax.ShapeDtypeStruct((network.batch, *model.input_shape), jnp.float32)
    found = []
    for index, name in enumerate(model.layer_names):
        y = jax.eval_shape(lambda p, x, at=index: model.apply(p, x, at, at + 1), params, x)
        bias, kernel = sorted(jax.tree.leaves(params[name]), key=lambda leaf: leaf.ndim)
        found.append(Stage(name, x.shape, y.shape, kernel, bias))
        x = y
    return found


def convolutions(network: Network) -> list[ConvShape]:
    """Those of the layers that are convolutions, all of them 3x3, SAME, without strides."""
    shapes = jax.eval_shape(network.build(OURS).init, jax.random.key(0))
    return [
        ConvShape(s.name, _four(s.x), _four(s.kernel.shape))
        for s in stages(network, shapes)
        if s.kernel.ndim == 4
    ]


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
        samples = interleaved(
            {side: passes[name] for side, passes in sides.items()}, repeats, budget_s=1.0
        )
        each = {
            side: [s._replace(wall_s=s.wall_s / n, cpu_s=s.cpu_s / n) for s in taken]
            for side, taken in samples.items()
            for n in [LOOP if side in ("ours", "product") else 1]
        }
        timed = {
            side: _rated(sample_summary(taken), layer.flops, peak_gflops)
            for side, taken in each.items()
        }
        ratios = {
            f"ours / {side}": paired_ratio(each["ours"], each[side])
            for side in each
            if side != "ours"
        }
        rows.append(
            {"layer": layer.name, "pass": name, "flops": layer.flops, **timed, "ratios": ratios}
        )
    return rows


def _rated(timed: dict[str, float], flops: int, peak_gflops: float) -> dict[str, float]:
    gflops = flops / timed["median_ms"] / 1e6
    return timed | {"gflops": gflops, "of_peak": gflops / peak_gflops}


def looped_passes(layer: ConvShape) -> dict[str, Run]:
    """Our passes, `LOOP` times each on as many inputs."""
    x, w, g = _draw((LOOP, *layer.x), layer.w, (LOOP, *layer.y))
    forward = _forward(layer, OURS)
    return {
        "forward": _looped(lambda w, x: forward(x, w), w, x),
        "input gradient": _looped(lambda xw, g: jax.vjp(forward, *xw)[1](g)[0], (x[0], w), g),
        "weight gradient": _looped(
            lambda w, xg: jax.vjp(forward, xg[0], w)[1](xg[1])[1], w, (x, g)
        ),
    }


def bare_products(layer: ConvShape) -> dict[str, Run]:
    """Each pass's matrix product and nothing else, `LOOP` times on as many of its smaller operand.

    Patches are [M,K] with M = B Ho Wo and K = Kh Kw Cin, weights [K,N], gradients of the result
    [M,N].
    """
    m, n = layer.y[0] * layer.y[1] * layer.y[2], layer.w[3]
    k = layer.flops // (2 * m * n)
    patches, g, ws, gs = _draw((m, k), (m, n), (LOOP, k, n), (LOOP, m, n))
    contract_last, contract_first = (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
    return {
        "forward": _looped(jnp.dot, patches, ws),
        "input gradient": _looped(lambda g, w: lax.dot_general(g, w, contract_last), g, ws),
        "weight gradient": _looped(lambda p, g: lax.dot_general(p, g, contract_first), patches, gs),
    }


def _xla_passes(layer: ConvShape) -> dict[str, Run]:
    x, w, g = _draw(layer.x, layer.w, layer.y)
    forward = _forward(layer, "xla")
    return {
        "forward": _compiled(forward, x, w),
        "input gradient": _compiled(lambda x, w, g: jax.vjp(forward, x, w)[1](g)[0], x, w, g),
        "weight gradient": _compiled(lambda x, w, g: jax.vjp(forward, x, w)[1](g)[1], x, w, g),
    }


def _forward(layer: ConvShape, lowering: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda x, w: conv.conv2d(
        x, w, strides=layer.strides, padding=layer.padding, lowering=lowering
    )


def _draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _looped(function: Callable[[Any, Any], jax.Array], fixed: Any, stacked: Any) -> Run:
    """Calls of `function(fixed, one)` for each of the stacked, in one program that gives the last
    result.
    """

    def every(fixed: Any, stacked: Any) -> jax.Array:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)
        like = jax.eval_shape(function, fixed, one)
        return lax.scan(
            lambda _, one: (function(fixed, one), None), jnp.zeros(like.shape, like.dtype), stacked
        )[0]

    return _compiled(every, fixed, stacked)


def _compiled(function: Callable[..., jax.Array], *args: Any) -> Run:
    program = jax.jit(function).lower(*args).compile()
    return lambda: program(*args)
