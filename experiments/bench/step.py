"""Training steps: VGG-11 and a small Llama, full and in part, beside PyTorch's and the FLOPs.

A partial step should take of the full step's time what it takes of its FLOPs (the papers'
near-linear acceleration); PyTorch trains the same layers from the same weights with `requires_grad`
off for the others. The distance to the physical limit is a step's seconds a FLOP over those of a
large float32 matrix product.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.bench import llama, vgg
from experiments.bench.kernels.conv import Network, Product, product
from experiments.bench.rows import (
    LOWER,
    Measured,
    Request,
    Row,
    importable,
    measured,
    paired,
    walls_ms,
)
from snake_jax.costs.timing import interleaved

REPEATS = 7
STEPS = 4
"""Of a call; a loop over batches, as training runs them."""
GREATEST_OFF = 0.1
"""Of VGG-11's partial steps, from their share of the FLOPs."""
VGG = "VGG-11, batch {batch}"
LLAMA = "Llama, {blocks} blocks of width {hidden}, {batch} x {length} tokens"

Run = Callable[[], object]


class TimedStep(NamedTuple):
    """One way to train.

    Attributes:
      subject: its name in tables.
      ours: a call is `STEPS` steps.
      flops: of one step of ours.
      peer: likewise, a peer's; None where there is none.
    """

    subject: str
    ours: Run
    flops: int
    peer: Run | None = None


def run(request: Request) -> Measured:
    """Both networks."""
    repeats = request.repeats or REPEATS
    network = vgg.QUICK if request.quick else Network()
    sizes = llama.QUICK if request.quick else llama.SIZES
    largest = product(64) if request.quick else product()
    torch = importable("torch")
    rows, layout = _vgg(network, largest, repeats, request, bool(torch))
    with_transformers = bool(torch and importable("transformers"))
    rows += _llama(sizes, largest, repeats, request, with_transformers)

    # What the peers were, or why they were not there.
    peers = {"torch": "not importable: pip install torch"}
    if torch:
        peers["torch"] = f"{torch}, {layout}"
    for name in ("transformers", "peft"):
        peers[name] = importable(name) or f"not importable: pip install {name}"
    return Measured(rows, peers, NOTES)


NOTES = (
    "ours / PyTorch and ours / product are medians of ratios within one round, in which each was "
    "called once.",
    "time off FLOPs is how far the time ratio is from the FLOP ratio, without sign.",
    "ours / product is the distance to the physical limit: seconds a FLOP over those of the "
    "fastest product there is.",
)


def case_rows(
    table: str,
    case: TimedStep,
    full: TimedStep,
    product: Product,
    repeats: int,
    greatest_off: float | None = None,
) -> list[Row]:
    """A case beside the full step, the peer and the product, all called once a round.

    Args:
      table: its title.
      case: what is timed.
      full: what it is a part of; the same: nothing to compare with.
      product: the fastest there is.
      repeats: rounds.
      greatest_off: how far the time ratio may be from the FLOP ratio; None: no goal.
    """
    runs: dict[str, Run] = {"ours": case.ours, "product": product.run}
    if case is not full:
        runs["full"] = full.ours
    if case.peer:
        runs["PyTorch"] = case.peer
    samples = interleaved(runs, repeats, budget_s=30.0)
    ours = samples["ours"]
    subject = case.subject
    rows = [measured(table, subject, "ours", walls_ms(ours, STEPS), "ms")]

    # Beside the full step: the papers say that time falls as FLOPs do.
    if "full" in samples:
        share = case.flops / full.flops
        ratios = paired(ours, samples["full"])
        rows.append(measured(table, subject, "time / full", ratios))
        rows.append(Row(table, subject, "FLOPs / full", share))
        over_share = [ratio / share for ratio in ratios]
        off = measured(table, subject, "time off FLOPs", over_share, better=LOWER)
        rows.append(off._replace(value=abs(off.value - 1), limit=greatest_off))
    if "PyTorch" in samples:
        theirs = samples["PyTorch"]
        ratios = paired(ours, theirs)
        rows.append(measured(table, subject, "PyTorch", walls_ms(theirs, STEPS), "ms"))
        rows.append(measured(table, subject, "ours / PyTorch", ratios, better=LOWER, limit=1.0))

    # Beside the fastest product there is, FLOP for FLOP.
    scale = product.flops / (STEPS * case.flops)
    ratios = paired(ours, samples["product"], scale)
    rows.append(measured(table, subject, "ours / product", ratios, better=LOWER))
    return rows


def _vgg(
    network: Network, product: Product, repeats: int, request: Request, torch: bool
) -> tuple[list[Row], str]:
    """The full step, and for every middle layer the visit's step with both ends and without.

    Returns:
      The rows, and the peer's layout.
    """
    table = VGG.format(batch=network.batch)
    names = network.build(vgg.OURS).layer_names
    ends = [(names[0], middle, names[-1]) for middle in names[1:-1]]
    alone = [(middle,) for middle in names[1:-1]]
    parts = [*ends, *alone]
    if request.quick:
        parts = parts[:1]
    peer = None
    layout = ""
    if torch:
        peer, layout = _fastest_layout(network, names, request)

    def case(subject: str, trained: Sequence[str]) -> TimedStep:
        ours = vgg.Step(network, trained, STEPS)
        theirs = peer(trained) if peer else None
        return TimedStep(subject, ours, vgg.flops(network, trained), theirs)

    # The full step first, since all others are set against it.
    request.say("VGG-11: full")
    full = case("full", names)
    rows = case_rows(table, full, full, product, repeats, GREATEST_OFF)
    rows += _xla(table, network, full, repeats)
    for trained in parts:
        part = case(" ".join(trained), trained)
        request.say(f"VGG-11: {part.subject}")
        rows += case_rows(table, part, full, product, repeats, GREATEST_OFF)
    return rows, layout


def _xla(table: str, network: Network, full: TimedStep, repeats: int) -> list[Row]:
    """Ours over the step with XLA's own convolution, which is at its best outside of a loop."""
    names = network.build(vgg.OURS).layer_names
    alone = vgg.Step(network, names, lowering="xla", looped=False)
    samples = interleaved({"ours": full.ours, "xla": alone}, repeats, budget_s=10.0)
    ratios = paired(samples["ours"], samples["xla"], 1 / STEPS)
    return [measured(table, full.subject, "ours / XLA's convolution", ratios, better=LOWER)]


def _fastest_layout(
    network: Network, names: Sequence[str], request: Request
) -> tuple[Callable[[Sequence[str]], Run], str]:
    """The peer's steps in the layout in which its full step is faster, and which that is."""
    from experiments.bench import vgg_torch

    def peer(trained: Sequence[str], last: bool) -> Run:
        return repeated(vgg_torch.step(network, trained, request.cores, last))

    tried = interleaved({"first": peer(names, False), "last": peer(names, True)}, 3)
    least_s = {}
    for name, samples in tried.items():
        least_s[name] = min(sample.wall_s for sample in samples)
    if least_s["last"] < least_s["first"]:
        return functools.partial(peer, last=True), "channels last"
    return functools.partial(peer, last=False), "channels first"


def repeated(step: Callable[[], object]) -> Run:
    """`STEPS` calls as one."""

    def run_all() -> object:
        for _ in range(STEPS):
            last = step()
        return last

    return run_all


def _llama(
    sizes: llama.Sizes, product: Product, repeats: int, request: Request, torch: bool
) -> list[Row]:
    table = LLAMA.format(**sizes._asdict())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        llama.save(sizes, Path(folder))
        # The full step comes first; all others are set against it.
        cases = list(_llama_cases(sizes, Path(folder), request, torch))
        rows = []
        for case in cases:
            request.say(f"Llama: {case.subject}")
            rows += case_rows(table, case, cases[0], product, repeats)
    return rows


def _llama_cases(
    sizes: llama.Sizes, folder: Path, request: Request, torch: bool
) -> Iterator[TimedStep]:
    """The full step, a block at either end and in the middle, adapters of all blocks."""
    last = sizes.blocks - 1
    blocks = [f"block {number}" for number in sorted({0, last // 2, last})]
    for way in ("full", *blocks, "LoRA"):
        peer = None
        if torch and (way != "LoRA" or importable("peft")):
            from experiments.bench import llama_torch

            peer = repeated(llama_torch.step(folder, sizes, way, request.cores))
        ours = repeated(llama.Step(sizes, way))
        yield TimedStep(way, ours, llama.flops(sizes, way), peer)
