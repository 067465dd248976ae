"""The limit on one page: work, floor, ours and the best peer, from the committed results.

A line of `WORKS` says where its numbers lie and, beside that, why it is far from its floor or
behind its peer, where it is. `document.py` writes the table at the head of docs/performance.md.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.bench import floors
from experiments.bench.floors import Found, Unmeasured
from experiments.bench.table import number

FAR = 1.5
"""A distance above it has a sentence that says why."""
UNMEASURED = "not measured yet"
UNEXPLAINED = "why is not known yet."


class Work(NamedTuple):
    """A line of the table.

    Attributes:
      name: of the work.
      command: that measures it.
      floor: what the floor is, in a word or two; empty: none is known.
      read: takes the numbers from the committed results.
      far: why it takes more than `FAR` times the floor, if it does.
      behind: why it takes more than `FAR` times what the peer takes, if it does.
    """

    name: str
    command: str
    floor: str
    read: Callable[[], Found]
    far: str = ""
    behind: str = ""


class Distance(NamedTuple):
    """One that is above `FAR`.

    Attributes:
      work: whose.
      ratio: how far.
      other: from what.
      why: the sentence; empty: nobody has written one.
    """

    work: str
    ratio: float
    other: str
    why: str


_BENCH = "python -m experiments.bench"
# What floors are, as the table says it; `NOTE` says it at length.
PRODUCT = "fastest product"
ROOFLINE = "roofline"
NOTE = (
    f"Floors. *{PRODUCT}*: every FLOP at the rate of the fastest large product of the same "
    f"machine. *{ROOFLINE}*: that, or all bytes at the rate of a copy, whichever is longer. Ratios "
    "are medians of ratios within one round, in which each was called once; floor and peer are "
    "ours over them."
)
_STEPS_WHY = (
    "Products of 512 rows are slower, FLOP for FLOP, than the largest one, and norms, softmax, "
    "rotations, the loss and AdamW's update move bytes and count no FLOP."
)
_ROUND_WHY = (
    "The network's convolutions are products with 16 and 32 columns, far from the shape of the "
    "fastest one, and patches, pooling, shuffling and the update count no FLOP."
)
WORKS = (
    Work(
        "VGG-11, a step of all layers",
        f"{_BENCH} step",
        PRODUCT,
        functools.partial(floors.step, floors.VGG, "full"),
    ),
    Work(
        "VGG-11, a Snake visit's step of three layers, median of nine",
        f"{_BENCH} step",
        PRODUCT,
        floors.three_layers,
    ),
    Work(
        "Llama, a step of all blocks",
        f"{_BENCH} step",
        PRODUCT,
        functools.partial(floors.step, floors.LLAMA, "full"),
        far=_STEPS_WHY,
    ),
    Work(
        "Llama, a step of one block, median of three",
        f"{_BENCH} step",
        PRODUCT,
        functools.partial(floors.step, floors.LLAMA, "block 0", "block 1", "block 3"),
        far=_STEPS_WHY,
    ),
    Work(
        "Llama, a step of LoRA in all blocks",
        f"{_BENCH} step",
        PRODUCT,
        functools.partial(floors.step, floors.LLAMA, "LoRA"),
        far=f"{_STEPS_WHY} Adapters are products of a few columns, slower still.",
    ),
    Work(
        "VGG-11, a visit of ten steps",
        f"{_BENCH} visit",
        "its bare steps",
        functools.partial(floors.visit, "VGG-11, conv1 conv6 fc11"),
    ),
    Work(
        "Llama, a visit of ten steps",
        f"{_BENCH} visit",
        "its bare steps",
        functools.partial(floors.visit, "Llama, block 2"),
    ),
    Work(
        "FedAvg, a round of 8 nodes of 160 images",
        f"{_BENCH} round",
        PRODUCT,
        functools.partial(floors.fedavg_round, "round", "A round on digits", 8 * 160),
        far=_ROUND_WHY,
    ),
    Work(
        "FedAvg, a round of 100 nodes of 50 images",
        f"{_BENCH} round",
        PRODUCT,
        functools.partial(
            floors.fedavg_round, "round", "A round of 100 nodes of 50 examples", 100 * 50
        ),
        far=f"{_ROUND_WHY} Steps of ten images leave the second core little.",
    ),
    Work(
        "FedAvg, a round of 16 nodes of 320 images",
        f"{_BENCH} emulation",
        PRODUCT,
        functools.partial(floors.fedavg_round, "emulation", "A round of FedAvg on noise", 16 * 320),
        far=_ROUND_WHY,
    ),
    Work(
        "50 of 10,000 nodes, a round, of all cores",
        f"{_BENCH} many",
        "50 of 100 nodes",
        floors.many,
    ),
    Work(
        "Llama, fine-tuning by blocks, a thousand tokens",
        f"{_BENCH} finetune",
        "",
        floors.finetuning,
    ),
    Work(
        "a hop of 40 MB between processes",
        f"{_BENCH} hops",
        "a copy there and one back",
        floors.hop,
        far=(
            "The layers are serialized, put into Ray's store, read from it by the other process "
            "and put on its device, each a copy of all bytes, and the way back is the same."
        ),
    ),
    Work(
        "a program of the demo traced and compiled, of all cores",
        f"{_BENCH} compile",
        "the same program read from a file",
        floors.compiling,
        far=(
            "Making machine code of two hundred kernels is what the floor leaves out. A program is "
            "compiled once on a machine, beside the training of those that are ready; from then on "
            "a launch takes the floor."
        ),
    ),
    Work(
        "the demo's start, first launch",
        f"{_BENCH} start",
        "the stages' floors",
        functools.partial(floors.start, "classify, demo, first launch"),
        far="Its programs are compiled; the line below is without that.",
    ),
    Work(
        "the demo's start, programs kept",
        f"{_BENCH} start",
        "the stages' floors",
        functools.partial(floors.start, "classify, demo, programs kept"),
        far=(
            "Each module of a library is found, read and run, programs are traced before they can "
            "be looked up, and the first evaluation is no training."
        ),
    ),
    Work(
        "SCCT, 100 samples of shares and subcarriers",
        f"{_BENCH} scct",
        "",
        floors.scct,
    ),
    Work(
        "product with int8 weights",
        f"{_BENCH}.kernels quant_matmul --json",
        ROOFLINE,
        functools.partial(floors.product, "int8"),
    ),
    Work(
        "product with nf4 weights",
        f"{_BENCH}.kernels quant_matmul --json",
        ROOFLINE,
        functools.partial(floors.product, "nf4"),
        far="Four bits of each weight are looked up in a table of sixteen before the product.",
    ),
    Work(
        "loss and distance to a teacher over a vocabulary",
        f"{_BENCH}.kernels distill_xent --json",
        ROOFLINE,
        floors.loss,
        far=(
            "Every logit of student and teacher goes through an exponential, which the floor does "
            "not count."
        ),
    ),
)
HEADS = ("work", "floor", "ours", "ours / floor", "best peer", "ours / peer", "command")


def distances(work: Work, found: Found) -> list[Distance]:
    """Those of a work that are above `FAR`."""
    far = []
    if found.over_floor is not None and found.over_floor > FAR:
        far.append(Distance(work.name, found.over_floor, "its floor", work.far))
    if found.over_peer is not None and found.over_peer > FAR:
        far.append(Distance(work.name, found.over_peer, found.peer, work.behind))
    return far


def measured(works: Sequence[Work] = WORKS) -> list[tuple[Work, Found | None]]:
    """What the committed results say of each; None: they do not yet."""
    lines: list[tuple[Work, Found | None]] = []
    for work in works:
        try:
            lines.append((work, work.read()))
        except Unmeasured:
            lines.append((work, None))
    return lines


def markdown(works: Sequence[Work] = WORKS) -> str:
    """The table, and below it a sentence for every distance above `FAR`."""
    lines = [f"| {' | '.join(HEADS)} |", "| :-- | --: | --: | --: | :-- | --: | :-- |"]
    far: list[Distance] = []
    for work, found in measured(works):
        if found is None:
            cells = ["", UNMEASURED, "", "", ""]
        else:
            cells = _cells(work, found)
            far += distances(work, found)
        lines.append(f"| {' | '.join([work.name, *cells, f'`{work.command}`'])} |")
    # What is far for the same reason stands in one line.
    reasons: dict[str, list[str]] = {}
    for one in far:
        about = f"**{one.work}**, {number(one.ratio)} times {one.other}"
        reasons.setdefault(one.why or UNEXPLAINED, []).append(about)
    said = [f"- {'; '.join(about)}: {why}" for why, about in reasons.items()]
    parts = ["\n".join(lines), NOTE]
    if said:
        parts += [f"Distances above {FAR:g}, and why:", "\n".join(said)]
    return "\n\n".join(parts)


def _cells(work: Work, found: Found) -> list[str]:
    """Floor, ours, and the peer, with both distances."""
    floor = over_floor = peer = over_peer = ""
    if found.over_floor is not None:
        floor = f"{number(found.ours / found.over_floor)} {found.unit}, {work.floor}"
        over_floor = number(found.over_floor)
    if found.over_peer is not None:
        peer = f"{found.peer}, {number(found.ours / found.over_peer)} {found.unit}"
        over_peer = number(found.over_peer)
    return [floor, f"{number(found.ours)} {found.unit}", over_floor, peer, over_peer]
