"""Every pass of VGG-11's convolutions beside the bare matrix product of its size:
`kernels/conv/bench.py` as rows.
"""

from experiments.bench import vgg
from experiments.bench.kernels import conv as bench
from experiments.bench.rows import Measured, Request, Row, importable

REPEATS = 9
TABLE = "Convolution passes of VGG-11, batch 32"
SIDES = {"ours": "ours", "product": "its product", "xla": "XLA", "torch": "PyTorch"}


def run(request: Request) -> Measured:
    """All layers and passes."""
    network = vgg.QUICK if request.quick else bench.Network()
    request.say("conv: all passes")
    found = bench.run(
        request.repeats or REPEATS, network, size=64 if request.quick else bench.LARGEST_PRODUCT
    )
    rows = [row for layer in found["layers"] for row in _rows(layer)]
    version = importable("torch") or "not importable: pip install torch"
    return Measured(
        rows, {"torch": version}, [f"The fastest product: {found['peak_gflops']:.0f} GFLOP/s."]
    )


def _rows(layer: dict) -> list[Row]:
    subject = f"{layer['layer']} {layer['pass']}"
    rows = [
        Row(
            TABLE,
            subject,
            name,
            layer[side]["median_ms"],
            "ms",
            layer[side]["spread_ms"],
            layer[side]["repeats"],
        )
        for side, name in SIDES.items()
        if side in layer
    ]
    ratio = layer["ratios"]["ours / product"]
    repeats = layer["ours"]["repeats"]
    return [*rows, Row(TABLE, subject, "ours / its product", ratio, repeats=repeats)]
