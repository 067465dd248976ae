"""What the committed results say of a work: our time, its floor, and the best peer's."""

import json
from statistics import median
from typing import Any, NamedTuple

from experiments.bench import results, vgg
from experiments.bench.kernels.conv import Network
from experiments.bench.rows import Row
from snake_jax.costs.flops import step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.errors import UserError
from snake_jax.models.registry import build

VGG = "VGG-11, batch 32"
LLAMA = "Llama, 4 blocks of width 512, 4 x 128 tokens"
_SCCT = "Shares and subcarriers of 30 devices, 200 subcarriers, 100 samples"


class Found(NamedTuple):
    """What the results say of a work.

    Attributes:
      ours: the time of this library.
      unit: of it.
      over_floor: ours over the floor; None: no floor is known.
      peer: the fastest other program's name; empty: there is none.
      over_peer: ours over that one's; None: there is none.
    """

    ours: float
    unit: str
    over_floor: float | None = None
    peer: str = ""
    over_peer: float | None = None


class Unmeasured(Exception):
    """A suite, or a table of it, that no committed result has yet."""


class Table(NamedTuple):
    """The rows of one table of a suite.

    Attributes:
      suite: its file, without the ending.
      title: of the table.
      rows: by subject and name.
    """

    suite: str
    title: str
    rows: dict[tuple[str, str], Row]

    def row(self, subject: str, name: str) -> Row:
        """One of them.

        Raises:
          UserError: there is none.
        """
        found = self.rows.get((subject, name))
        if found is None:
            raise UserError(
                f"{self.suite}.json: no row {self.title!r}, {subject!r}, {name!r}, which the table "
                "of limits reads; correct experiments/bench/limits.py"
            )
        return found

    def value(self, subject: str, name: str) -> float:
        """Its value."""
        return self.row(subject, name).value

    def of(self, name: str) -> dict[str, float]:
        """By subject, the values that have this name."""
        return {subject: row.value for (subject, own), row in self.rows.items() if own == name}


def table(suite: str, title: str) -> Table:
    """A table of a committed result.

    Raises:
      Unmeasured: there is no such result, or it is older than the table.
    """
    file = results.COMMITTED / f"{suite}.json"
    if not file.exists():
        raise Unmeasured(suite)
    rows: dict[tuple[str, str], Row] = {}
    for row in results.read(file)["rows"]:
        if row.table == title:
            rows[row.subject, row.name] = row
    if not rows:
        raise Unmeasured(f"{suite}: {title}")
    return Table(suite, title, rows)


def step(title: str, *subjects: str) -> Found:
    """The median of several steps, each beside the product and PyTorch of its own rounds."""
    steps = table("step", title)
    times = [steps.value(subject, "ours") for subject in subjects]
    products = [steps.value(subject, "ours / product") for subject in subjects]
    peers = [steps.value(subject, "ours / PyTorch") for subject in subjects]
    return Found(median(times), "ms", median(products), "PyTorch", median(peers))


def three_layers() -> Found:
    """A Snake visit's step: first layer, one of the middle, last."""
    names = Network().build(vgg.OURS).layer_names
    subjects = [f"{names[0]} {middle} {names[-1]}" for middle in names[1:-1]]
    return step(VGG, *subjects)


def visit(subject: str) -> Found:
    """A visit of ten steps over as many bare ones."""
    visits = table("visit", "Visits of 10 batches")
    return Found(visits.value(subject, "visit"), "ms", visits.value(subject, "visit / steps"))


def fedavg_round(suite: str, title: str, examples: int) -> Found:
    """A round of FedAvg of the cnn by the fastest of ours, and the fastest peer."""
    rounds = table(suite, title)
    ours: dict[str, float] = {}
    peers: dict[str, float] = {}
    for subject, round_s in rounds.of("round").items():
        if not subject.startswith("snake_jax"):
            peers[subject] = rounds.value(subject, "over ours")
        elif "Snake cycle" not in subject:
            ours[subject] = round_s
    fastest_s = min(ours.values())
    model = build("cnn", 10, (32, 32, 3))
    flops = examples * step_flops(layer_costs(model, 1), model.layer_names)
    over_floor = fastest_s * _product_flops_s() / flops
    peer = min(peers, key=peers.__getitem__, default="")
    return Found(fastest_s, "s", over_floor, peer, 1 / peers[peer] if peer else None)


def _product_flops_s() -> float:
    """The rate of the fastest product, as the full step of VGG-11 was set beside it."""
    full = table("step", VGG)
    network = Network()
    flops = vgg.flops(network, network.build(vgg.OURS).layer_names)
    return flops * full.value("full", "ours / product") / (1e-3 * full.value("full", "ours"))


def many() -> Found:
    """A round among the most nodes over one among the fewest, in seconds of all cores."""
    rounds = table("many", "A round of many nodes")
    most = "10,000 nodes"
    return Found(rounds.value(most, "CPU"), "s", rounds.value(most, "CPU over the fewest"))


def finetuning() -> Found:
    """Milliseconds for a thousand tokens, since less is better everywhere else."""
    speeds = table("finetune", "Fine-tuning a block after the other")
    peers = speeds.of("over ours")
    peer = min(peers, key=peers.__getitem__)
    return Found(1e6 / speeds.value("snake_jax", "speed"), "ms", None, peer, 1 / peers[peer])


def hop() -> Found:
    """40 MB to a node and back, each byte read once and written once either way."""
    hops = table("hops", "A hop without training")
    hop_ms = hops.value("40 MB, client_server", "hop")
    moved_bytes = 4 * 40 * 2**20
    floor_ms = 1e3 * moved_bytes / _kernels("distill_xent")["peaks"]["bytes_s"]
    return Found(hop_ms, "ms", hop_ms / floor_ms)


def compiling() -> Found:
    """The median of the demo's training programs, in seconds of all cores."""
    programs = table("compile", "Programs of the demo")
    made = []
    over = []
    for subject, read_s in programs.of("read").items():
        if subject != "evaluation":
            made.append(programs.value(subject, "trace") + programs.value(subject, "compile"))
            over.append(made[-1] / read_s)
    return Found(median(made), "s", median(over))


def start(title: str) -> Found:
    """All stages of a launch up to its first round."""
    stages = table("start", title)
    clock_s = stages.value("all", "clock")
    return Found(clock_s, "s", clock_s / stages.value("all", "floor"))


def scct() -> Found:
    """All samples in one compiled call, beside one after the other."""
    solved = table("scct", _SCCT)
    subject = "as many layers as fit"
    over = 1 / solved.value(subject, "NumPy / ours")
    ours_ms = solved.value(subject, "one compiled call")
    return Found(ours_ms, "ms", None, "NumPy, sample after sample", over)


def loss() -> Found:
    """`distill_xent` as it runs on a CPU, beside tokamax and the whole logits."""
    forms = {one["form"]: one for one in _kernels("distill_xent")["timed"]}
    return _kernel(forms.pop("chunked"), forms)


def product(kind: str) -> Found:
    """`quant_matmul` forward as it runs on a CPU, beside qwix and a dense weight."""
    forms = {}
    for one in _kernels("quant_matmul")["timed"]:
        if (one["kind"], one["pass"]) == (kind, "forward"):
            forms[one["form"]] = one
    return _kernel(forms.pop("xla"), forms)


def _kernel(ours: dict[str, Any], others: dict[str, dict[str, Any]]) -> Found:
    """A kernel of ours beside other forms of the same, by name."""
    peers_ms = {name: one["median_ms"] for name, one in others.items()}
    peer = min(peers_ms, key=peers_ms.__getitem__)
    took_ms = ours["median_ms"]
    return Found(took_ms, "ms", 1 / ours["of_roofline"], peer, took_ms / peers_ms[peer])


def _kernels(name: str) -> dict[str, Any]:
    file = results.COMMITTED.parent / "kernels" / f"{name}.json"
    if not file.exists():
        raise Unmeasured(name)
    found: dict[str, Any] = json.loads(file.read_text())
    return found
