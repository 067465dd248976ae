"""Every pass of VGG-11's convolutions beside the bare matrix product of its size, as rows.

And the forms that a pass can take beside each other.
"""

from experiments.bench import vgg
from experiments.bench.kernels import conv as bench
from experiments.bench.kernels import conv_forms
from experiments.bench.rows import Measured, Request, Row, importable, measured, paired, walls_ms
from snake_jax.costs.timing import interleaved
from snake_jax.kernels.conv.canonical import is_direct
from snake_jax.kernels.conv.shapes import ConvShape

REPEATS = 9
TABLE = "Convolution passes of VGG-11, batch 32"
FORMS = "Forms of a pass, time over that of the product of patches"
SIDES = {"ours": "ours", "product": "its product", "xla": "XLA", "torch": "PyTorch"}


def run(request: Request) -> Measured:
    """All layers and passes."""
    network = vgg.QUICK if request.quick else bench.Network()
    size = 64 if request.quick else bench.LARGEST_PRODUCT
    request.say("conv: all passes")
    found = bench.run(request.repeats or REPEATS, network, size=size)
    rows = []
    for layer in found["layers"]:
        rows += _rows(layer)
    for layer in bench.convolutions(network):
        # Of an image with fewer pixels XLA's own would take seconds.
        if is_direct(layer.x[1:3], layer.w[:2], layer.strides):
            request.say(f"conv: forms of {layer.name}")
            rows += _forms(layer, request.repeats or REPEATS)
    version = importable("torch") or "not importable: pip install torch"
    fastest = f"The fastest product: {found['peak_gflops']:.0f} GFLOP/s."
    tiles = f"In tiles: {conv_forms.TILES} parts of the batch, one after the other."
    return Measured(rows, {"torch": version}, [fastest, tiles])


def _forms(layer: ConvShape, repeats: int) -> list[Row]:
    """Each pass in every form, all called once a round."""
    rows = []
    for name, runs in conv_forms.runs(layer).items():
        subject = f"{layer.name} {name}"
        samples = interleaved(runs, repeats, budget_s=1.0)
        base = samples[conv_forms.PRODUCT]
        times = walls_ms(base, bench.LOOP)
        rows.append(measured(FORMS, subject, conv_forms.PRODUCT, times, "ms"))
        for form in (conv_forms.IN_TILES, conv_forms.OWN):
            rows.append(measured(FORMS, subject, form, paired(samples[form], base)))
    return rows


def _rows(layer: dict) -> list[Row]:
    subject = f"{layer['layer']} {layer['pass']}"
    rows = []
    for side, name in SIDES.items():
        if side in layer:
            timed = layer[side]
            milliseconds = timed["median_ms"]
            spread = timed["spread_ms"]
            rows.append(Row(TABLE, subject, name, milliseconds, "ms", spread, timed["repeats"]))
    ratio = layer["ratios"]["ours / product"]
    repeats = layer["ours"]["repeats"]
    rows.append(Row(TABLE, subject, "ours / its product", ratio, repeats=repeats))
    return rows
