"""Times convolution beside XLA's own and PyTorch's: each VGG-11 layer and pass, the full step, a Snake visit's step.

The network and its step are the library's own, `models.build` and `steps.local_epoch`; a step's time is that of a call
over its steps.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snake_jax import models
from snake_jax.accounting import layer_costs, step_flops
from snake_jax.kernels import conv
from snake_jax.kernels.conv.shapes import ConvShape
from snake_jax.kernels.conv.tables import report
from snake_jax.kernels.timing import Sample, interleaved, machine, paired_ratio, summary
from snake_jax.layers import LayeredModel, Params, num_params, select, without
from snake_jax.optimizers import OptimizerStates, apply_updates, init_states, update_rule
from snake_jax.steps import Batches, EpochStats, Examples, LocalStep, local_epoch

__all__ = ["Network", "Stage", "convolutions", "report", "run", "stages", "targets"]

OURS = "matmul"
CLASSES, LEARNING_RATE, MOMENTUM = 10, 1e-3, 0.9
SCAN_STEPS = 4
LARGEST_PRODUCT = 2048
GREATEST_RATIOS = {"ours / torch": 1.3, "ours / xla": 0.2}
GREATEST_OFF = 0.15
"""How far a Snake visit's share of the full step's time may be from its share of the FLOPs."""

Run = Callable[[], object]


class Network(NamedTuple):
    """Which network is timed: the defaults are VGG-11 with 9,750,922 parameters for 32x32x3 images."""

    model: str = "vgg11"
    batch: int = 32
    side: int = 32
    width: float = 1.0

    def build(self, lowering: str) -> LayeredModel:
        """The library's model."""
        return models.build(self.model, CLASSES, (self.side, self.side, 3), width=self.width, conv=lowering)


class Stage(NamedTuple):
    """One layer: x [B,...] -> y [B,...], kernel [Kh,Kw,Cin,Cout] or [Cin,Cout], bias [Cout]."""

    name: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    kernel: jax.Array
    bias: jax.Array


def run(
    network: Network | None = None, repeats: int = 15, with_torch: bool = True, peak_size: int = LARGEST_PRODUCT
) -> dict:
    """Measures everything; the result is what --json prints. Times are milliseconds, rates GFLOP/s, sizes examples."""
    network = network or Network()
    with_torch = with_torch and importlib.util.find_spec("torch") is not None
    header, peak = machine(), _peak_gflops(peak_size, repeats)
    layers = [row for layer in convolutions(network) for row in _layer_rows(layer, repeats, peak, with_torch)]
    full = _Step(network, OURS, steps=SCAN_STEPS)
    step, snake = _step_rows(network, repeats, with_torch, full), _snake_rows(network, repeats, full)
    return {
        "suite": "conv",
        "machine": header,
        "sizes": network._asdict(),
        "parameters": num_params(_params(network)),
        "peak_gflops": peak,
        "scan_steps": SCAN_STEPS,
        "layers": layers,
        "step": step,
        "snake": snake,
        "targets": targets(step["ratios"], snake),
    }


@functools.cache
def _params(network: Network) -> Params:
    return jax.jit(network.build(OURS).init)(jax.random.key(0))


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
    return [ConvShape(s.name, _four(s.x), _four(s.kernel.shape)) for s in stages(network, shapes) if s.kernel.ndim == 4]


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    a, b, c, d = shape
    return a, b, c, d


def _batch(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Noise images [B,H,W,3] and their labels [B]."""
    images = np.random.default_rng(1).normal(size=(network.batch, network.side, network.side, 3))
    return images.astype(np.float32), np.arange(network.batch, dtype=np.int32) % CLASSES


def _peak_gflops(size: int, repeats: int) -> float:
    """The fastest float32 product of two square matrices of `size`."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.dot)
    times = interleaved({"product": lambda: product(a, a)}, repeats)["product"]
    return 2 * size**3 / min(s.wall_s for s in times) / 1e9


def _layer_rows(layer: ConvShape, repeats: int, peak_gflops: float, with_torch: bool) -> list[dict[str, Any]]:
    sides = {"ours": _passes(layer, OURS), "xla": _passes(layer, "xla")}
    if with_torch:
        from snake_jax.kernels.conv import torch_side

        sides["torch"] = torch_side.passes(layer)
    rows = []
    for name in sides["ours"]:
        samples = interleaved({side: passes[name] for side, passes in sides.items()}, repeats, budget_s=1.0)
        timed = {side: _rated(summary(taken), layer.flops, peak_gflops) for side, taken in samples.items()}
        rows.append({"layer": layer.name, "pass": name, "flops": layer.flops, **timed})
    return rows


def _rated(timed: dict[str, float], flops: int, peak_gflops: float) -> dict[str, float]:
    gflops = flops / timed["median_ms"] / 1e6
    return timed | {"gflops": gflops, "of_peak": gflops / peak_gflops}


def _passes(layer: ConvShape, lowering: str) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x, w, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (layer.x, layer.w, layer.y))

    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        return conv.conv2d(x, w, strides=layer.strides, padding=layer.padding, lowering=lowering)

    return {
        "forward": _compiled(forward, x, w),
        "input gradient": _compiled(lambda x, w, g: jax.vjp(forward, x, w)[1](g)[0], x, w, g),
        "weight gradient": _compiled(lambda x, w, g: jax.vjp(forward, x, w)[1](g)[1], x, w, g),
    }


def _compiled(function: Callable[..., jax.Array], *args: jax.Array) -> Run:
    program = jax.jit(function).lower(*args).compile()
    return lambda: program(*args)


class _Step:
    """A compiled `local_epoch` of `steps` batches that owns its donated state; one call is one call of the program.

    With `looped=False` the same step once, outside the loop: inside, XLA leaves its own convolutions in a slow form.
    """

    def __init__(
        self, network: Network, lowering: str, trained: Sequence[str] = (), steps: int = 1, looped: bool = True
    ) -> None:
        model, params = network.build(lowering), _params(network)
        rule = update_rule("sgd", momentum=MOMENTUM, weight_decay=0.0)
        names = tuple(trained) or model.layer_names
        trainable = jax.tree.map(jnp.copy, select(params, names))
        self.state = trainable, init_states(rule, trainable, model.layer_names)
        schedule = *_epoch(network, steps), jax.random.key(0), jnp.float32(LEARNING_RATE)
        self.fixed: tuple[Any, ...] = without(params, names), {}, *schedule
        step = LocalStep(model, rule, clip_norm=0.0, normalise=lambda x: x)
        start_s = time.perf_counter()
        program = jax.jit(local_epoch(step, names) if looped else _lone_step(step), donate_argnums=(0, 1))
        self.program = program.lower(*self.state, *self.fixed).compile()
        self.compile_s = time.perf_counter() - start_s

    def __call__(self) -> EpochStats:
        *state, stats = self.program(*self.state, *self.fixed)
        self.state = tuple(state)
        return stats

    def counted(self) -> dict[str, float]:
        """The compiler's own count, which takes the body of a scan once, and its temporary memory."""
        cost: Any = self.program.cost_analysis()
        memory: Any = self.program.memory_analysis()
        sizes = {"compiler_flops": cost["flops"], "temporary_bytes": memory.temp_size_in_bytes}
        return {"compile_s": self.compile_s, **sizes}


def _lone_step(step: LocalStep) -> Callable[..., tuple[Params, OptimizerStates, EpochStats]]:
    """One step on all examples, with the arguments of `local_epoch`."""

    def lone(trainable, states, frozen, teacher, examples, batches, key, learning_rate):
        def loss(trainable):
            logits = step.model.apply({**frozen, **trainable}, examples.images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels).mean()

        value, gradients = jax.value_and_grad(loss)(trainable)
        names, count = step.model.layer_names, examples.labels.size
        trainable, states = apply_updates(step.rule, 0.0, learning_rate, gradients, states, trainable, names)
        return trainable, states, EpochStats(value * count, jnp.float32(count), jnp.isfinite(value))

    return lone


def _epoch(network: Network, steps: int) -> tuple[Examples, Batches]:
    """The same batch `steps` times."""
    images, labels = _batch(network)
    index = jnp.tile(jnp.arange(network.batch, dtype=jnp.int32), (steps, 1))
    return Examples(jnp.asarray(images), jnp.asarray(labels)), Batches(index, jnp.ones(index.shape), jnp.int32(steps))


def _step_rows(network: Network, repeats: int, with_torch: bool, full: _Step) -> dict[str, Any]:
    """The full step as training runs it, in the loop of `local_epoch` (of XLA's one round must do), and a lone one."""
    lone = {f"{side}, one step": _Step(network, by, looped=False) for side, by in (("ours", OURS), ("xla", "xla"))}
    steps = {"ours": full, "xla": _Step(network, "xla"), **lone}
    runs: dict[str, Run] = dict(steps)
    if with_torch:
        runs["torch"] = _torch_step(network)
    samples = interleaved(runs, repeats, budget_s=20.0)
    samples["ours"] = _per_step(samples["ours"])
    rows = {name: summary(taken) | (steps[name].counted() if name in steps else {}) for name, taken in samples.items()}
    pairs = {
        "ours / torch": ("ours", "torch"),
        "ours / xla": ("ours", "xla"),
        "one step: ours / torch": ("ours, one step", "torch"),
        "one step: ours / xla": ("ours, one step", "xla, one step"),
    }
    ratios = {name: paired_ratio(samples[a], samples[b]) for name, (a, b) in pairs.items() if b in samples}
    costs = layer_costs(network.build(OURS), network.batch)
    return {"flops": step_flops(costs, [cost.name for cost in costs]), "rows": rows, "ratios": ratios}


def _torch_step(network: Network) -> Run:
    """PyTorch's step from the same parameters on the same batch."""
    from snake_jax.kernels.conv import torch_side

    layers = []
    for stage in stages(network, _params(network)):
        pooled = stage.kernel.ndim == 4 and stage.y[1] < stage.x[1]
        layers.append(torch_side.Layer(np.asarray(stage.kernel), np.asarray(stage.bias), pooled))
    return torch_side.step(layers, *_batch(network), LEARNING_RATE, MOMENTUM)


def _per_step(samples: Sequence[Sample]) -> list[Sample]:
    return [Sample(s.wall_s / SCAN_STEPS, s.cpu_s / SCAN_STEPS) for s in samples]


def _snake_rows(network: Network, repeats: int, full: _Step) -> list[dict[str, Any]]:
    """First + one middle + last layer trained, for each middle layer, over the full step of the same rounds."""
    costs = layer_costs(network.build(OURS), network.batch)
    names = [cost.name for cost in costs]
    visits = {middle: (names[0], middle, names[-1]) for middle in names[1:-1]}
    steps = {middle: _Step(network, OURS, trained, SCAN_STEPS) for middle, trained in visits.items()}
    samples = interleaved({"full": full, **steps}, repeats, budget_s=20.0)
    full_flops = step_flops(costs, names)
    rows = []
    for middle, trained in visits.items():
        flops = step_flops(costs, trained)
        time_ratio, flop_ratio = paired_ratio(samples[middle], samples["full"]), flops / full_flops
        ratios = {"time_ratio": time_ratio, "flop_ratio": flop_ratio, "off": time_ratio / flop_ratio - 1}
        timed = summary(_per_step(samples[middle]))
        rows.append({"middle": middle, "flops": flops, **ratios, **timed, **steps[middle].counted()})
    return rows


def targets(ratios: dict[str, float], snake: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the benchmark is held to, for steps as training runs them; `met` is None where PyTorch is missing."""
    worst = max(snake, key=lambda row: abs(row["off"]))
    values = [(name, ratios.get(name), ratios.get(f"one step: {name}"), most) for name, most in GREATEST_RATIOS.items()]
    values.append((f"Snake's time over its FLOPs, worst: {worst['middle']}", worst["off"], None, GREATEST_OFF))
    return [
        {
            "target": name,
            "value": value,
            "one_step": one,
            "limit": most,
            "met": None if value is None else abs(value) <= most,
        }
        for name, value, one, most in values
    ]
