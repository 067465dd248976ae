"""Every pass of VGG-11's convolutions beside the bare matrix product of its size, as rows."""

from experiments.bench import vgg
from experiments.bench.kernels import conv as bench
from experiments.bench.rows import Measured, Request, Row, importable

REPEATS = 9
TABLE = "Convolution passes of VGG-11, batch 32"
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
    version = importable("torch") or "not importable: pip install torch"
    note = f"The fastest product: {found['peak_gflops']:.0f} GFLOP/s."
    return Measured(rows, {"torch": version}, [note])


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
