"""Times convolution beside XLA's own and PyTorch's: each VGG-11 layer and pass, the full step, a Snake visit's step."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snake_jax.kernels import conv
from snake_jax.kernels.conv import vgg11
from snake_jax.kernels.conv.shapes import ConvShape
from snake_jax.kernels.conv.vgg11 import FULL_SIZE, Params, Sizes, State
from snake_jax.kernels.timing import Sample, interleaved, machine, paired_ratio, summary

OURS = "matmul"
SCAN_STEPS = 4
LARGEST_PRODUCT = 2048

Run = Callable[[], object]


def run(sizes: Sizes = FULL_SIZE, repeats: int = 15, with_torch: bool = True, peak_size: int = LARGEST_PRODUCT) -> dict:
    """Measures everything; the result is what --json prints. Times are milliseconds, rates GFLOP/s, sizes examples."""
    with_torch = with_torch and importlib.util.find_spec("torch") is not None
    header, peak = machine(), _peak_gflops(peak_size, repeats)
    layers = [row for layer in sizes.convolutions for row in _layer_rows(layer, repeats, peak, with_torch)]
    full = _Step(sizes, OURS)
    return {
        "suite": "conv",
        "machine": header,
        "sizes": sizes._asdict(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(vgg11.init(sizes))),
        "peak_gflops": peak,
        "layers": layers,
        "step": _step_rows(sizes, repeats, with_torch, full),
        "snake": _snake_rows(sizes, repeats, full),
    }


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
    """A compiled training step that owns its donated state; one call is one call of the program."""

    def __init__(self, sizes: Sizes, lowering: str, trained: Sequence[str] = (), steps: int = 1) -> None:
        params = vgg11.init(sizes)
        training = {name: params.pop(name) for name in trained or tuple(params)}
        self.frozen, self.state = params, (training, jax.tree.map(jnp.zeros_like, training))
        self.batches = jax.tree.map(lambda a: jnp.stack([a] * steps), vgg11.batch_of(sizes))
        start_s = time.perf_counter()
        step = jax.jit(_vgg11_step(sizes, lowering, steps), donate_argnums=0)
        self.program = step.lower(self.state, self.frozen, self.batches).compile()
        self.compile_s = time.perf_counter() - start_s

    def __call__(self) -> jax.Array:
        self.state, value = self.program(self.state, self.frozen, self.batches)
        return value

    def counted(self) -> dict[str, float]:
        """The compiler's own count, which takes the body of a scan once, and its temporary memory."""
        cost: Any = self.program.cost_analysis()
        memory: Any = self.program.memory_analysis()
        sizes = {"compiler_flops": cost["flops"], "temporary_bytes": memory.temp_size_in_bytes}
        return {"compile_s": self.compile_s, **sizes}


def _vgg11_step(sizes: Sizes, lowering: str, steps: int) -> Callable[..., tuple[State, jax.Array]]:
    """The step that is timed: (state, frozen, batches) -> (state, losses), `steps` batches in one program."""

    def program(state: State, frozen: Params, batches: Any) -> tuple[State, jax.Array]:
        def body(state: State, batch: Any) -> tuple[State, jax.Array]:
            return vgg11.sgd_step(state, frozen, batch, sizes, lowering)

        return jax.lax.scan(body, state, batches) if steps > 1 else body(state, jax.tree.map(lambda a: a[0], batches))

    return program


def _step_rows(sizes: Sizes, repeats: int, with_torch: bool, full: _Step) -> dict[str, Any]:
    """The full step a call, and `SCAN_STEPS` of them in one scan, as training runs them; PyTorch's and XLA's own."""
    steps = {"ours": full, "ours, in a scan": _Step(sizes, OURS, steps=SCAN_STEPS), "xla": _Step(sizes, "xla")}
    runs: dict[str, Run] = dict(steps)
    if with_torch:
        from snake_jax.kernels.conv import torch_side

        runs["torch"] = torch_side.step(sizes)
    samples = interleaved(runs, repeats, budget_s=20.0)
    scan = samples["ours, in a scan"]
    samples["ours, in a scan"] = [Sample(s.wall_s / SCAN_STEPS, s.cpu_s / SCAN_STEPS) for s in scan]
    rows = {name: summary(taken) | (steps[name].counted() if name in steps else {}) for name, taken in samples.items()}
    ratios = {
        f"{side} / {other}": paired_ratio(samples[side], samples[other])
        for side in ("ours", "ours, in a scan")
        for other in ("torch", "xla")
        if other in samples
    }
    return {"flops": vgg11.step_flops(sizes, vgg11.layer_names(sizes)), "rows": rows, "ratios": ratios}


def _snake_rows(sizes: Sizes, repeats: int, full: _Step) -> list[dict[str, Any]]:
    """First + one middle + last layer trained, for each middle layer, over the full step of the same rounds."""
    names = vgg11.layer_names(sizes)
    visits = {middle: (names[0], middle, names[-1]) for middle in names[1:-1]}
    steps = {middle: _Step(sizes, OURS, trained) for middle, trained in visits.items()}
    samples = interleaved({"full": full, **steps}, repeats, budget_s=20.0)
    full_flops = vgg11.step_flops(sizes, names)
    rows = []
    for middle, trained in visits.items():
        flops = vgg11.step_flops(sizes, trained)
        time_ratio, flop_ratio = paired_ratio(samples[middle], samples["full"]), flops / full_flops
        ratios = {"time_ratio": time_ratio, "flop_ratio": flop_ratio, "off": time_ratio / flop_ratio - 1}
        rows.append({"middle": middle, "flops": flops, **ratios, **summary(samples[middle]), **steps[middle].counted()})
    return rows


def report(result: dict) -> str:
    """The tables of one result, as text."""
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    lines += [f"float32 matrix product at its fastest: {result['peak_gflops']:.0f} GFLOP/s", ""]
    lines += _layer_table(result["layers"]) + [""] + _step_table(result) + [""] + _snake_table(result["snake"])
    return "\n".join(lines)


def _layer_table(rows: Sequence[dict]) -> list[str]:
    sides = [side for side in ("ours", "xla", "torch") if side in rows[0]]
    lines = ["Median ms (spread between quartiles), GFLOP/s, fraction of that product", f"{'layer':7}{'pass':16}"]
    lines[1] += "".join(f"{side:>32}" for side in sides)
    for row in rows:
        cells = [
            f"{t['median_ms']:10.2f} ({t['spread_ms']:6.2f}) {t['gflops']:6.1f} {t['of_peak']:5.2f}"
            for t in (row[side] for side in sides)
        ]
        lines.append(f"{row['layer']:7}{row['pass']:16}" + "".join(f"{cell:>32}" for cell in cells))
    return lines


def _step_table(result: dict) -> list[str]:
    step = result["step"]
    lines = [
        f"Full VGG-11 step, batch {result['sizes']['batch']}, {result['parameters']:,} parameters, "
        f"{step['flops'] / 1e9:.2f} GFLOP",
        f"{'':16}{'median ms':>11}{'spread':>9}{'fastest':>9}{'CPU ms':>9}{'repeats':>9}"
        f"{'compile s':>11}{'temp MB':>9}",
    ]
    for name, t in step["rows"].items():
        line = f"{name:16}{t['median_ms']:11.1f}{t['spread_ms']:9.1f}{t['fastest_ms']:9.1f}{t['cpu_ms']:9.1f}"
        line += f"{t['repeats']:9d}"
        if "compile_s" in t:
            line += f"{t['compile_s']:11.1f}{t['temporary_bytes'] / 1e6:9.1f}"
        lines.append(line)
    return lines + [f"{name}: {ratio:.3f}" for name, ratio in step["ratios"].items()]


def _snake_table(rows: Sequence[dict]) -> list[str]:
    lines = ["Snake visit's step (first + middle + last layer) over the full step, medians of paired rounds"]
    lines.append(f"{'middle':8}{'median ms':>11}{'spread':>9}{'time ratio':>12}{'FLOP ratio':>12}{'off':>8}")
    for r in rows:
        times = f"{r['median_ms']:11.1f}{r['spread_ms']:9.1f}"
        lines.append(f"{r['middle']:8}{times}{r['time_ratio']:12.3f}{r['flop_ratio']:12.3f}{r['off']:8.1%}")
    return lines
