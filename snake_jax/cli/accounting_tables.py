"""The tables of docs/accounting.md from the numbers of `snake-jax accounting`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from snake_jax.errors import UserError

BEGIN = "<!-- tables: begin -->"
END = "<!-- tables: end -->"
Row = dict[str, Any]


def insert(file: Path, tables: str) -> str:
    """The file's text with the tables between its marks.

    Raises:
      UserError: the file has no marks.
    """
    if not file.exists():
        return f"{BEGIN}\n{tables}{END}\n"
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"--output={file}: no lines {BEGIN} and {END} to put the tables between")
    return f"{before}{BEGIN}\n{tables}{END}{after}"


def all_tables(numbers: Row) -> str:
    """All tables."""
    known = []
    for key, value in numbers["machine"].items():
        if value is not None:
            known.append(f"{key} {value}")
    parts = [
        f"Written by `{numbers['command']}`, batch {numbers['batch_size']}; compiled numbers: "
        f"{', '.join(known)}.",
        *_flops(numbers),
        *_padding(numbers),
        *_memory(numbers),
        *_bytes(numbers),
    ]
    return "\n" + "\n\n".join(parts) + "\n\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    rule = [":--"]
    for _ in head[1:]:
        rule.append("--:")
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
    return "\n".join(lines)


def _flops(numbers: Row) -> list[str]:
    """The step's FLOPs, formula beside compiler, for each layer between first and last and alone.

    The first of the steps is full training, which the others are set against.
    """
    layers = {row["layer"]: row for row in numbers["layers"]}
    whole = {
        "params": _total(layers.values(), "params"),
        "forward_flops": _total(layers.values(), "forward_flops"),
    }
    steps = numbers["steps"]
    full = steps[0]
    head = ["layer", "parameters", "forward", "step", "compiled", "difference", "of the full step"]
    # One row for each layer as the middle one, and the full step below them.
    ends = [row for row in steps if row["kind"] == "ends"]
    rows = []
    for row in [*ends, full]:
        layer = layers.get(row["layer"], whole)
        params = f"{layer['params']:,}"
        forward = _mega(layer["forward_flops"])
        rows.append([row["layer"], params, forward, *_step_cells(row, full)])
    # The same with the layer alone.
    alone = []
    for row in steps:
        if row["kind"] == "alone":
            alone.append([row["layer"], *_step_cells(row, full)])
    worst = max(abs(_difference(row)) for row in steps)
    middle = ends[1:-1]
    return [
        "### FLOPs of a step",
        "In MFLOP. The step trains the first layer, this one and the last (in the rows of conv1 "
        "and fc11 these two alone). The compiler counts at most "
        f"{worst:.2f} % more than the formula, the elementwise work. "
        f"The mean over the {len(middle)} middle layers is {_mean_ratio(middle, full):.3f} "
        f"of the full step.",
        table(head, rows),
        "The same with this layer alone; the mean over the middle layers is "
        f"{_mean_ratio(_middle_alone(steps), full):.3f}.",
        table(["layer", *head[3:]], alone),
    ]


def _padding(numbers: Row) -> list[str]:
    """What XLA's own convolution is counted as, which leaves out what meets the zero padding."""
    steps = numbers["steps"]
    full = steps[0]
    native = full["xla"]["flops"]
    by_kind = {(row["kind"], row["layer"]): row for row in steps}

    # Each layer between first and last, and beside that the layer alone.
    rows = []
    for layer in numbers["layers"]:
        name = layer["layer"]
        cells = [name]
        for kind in ("ends", "alone"):
            row = by_kind[kind, name]
            flops = row["xla"]["flops"]
            share = f"{flops / native:.3f}"
            cells += [_mega(flops), _left_out(row), share]
        rows.append(cells)
    rows.append(["all", _mega(native), _left_out(full), "1.000", "", "", ""])
    head = [
        "layer",
        "first, this, last",
        "left out",
        "of the full step",
        "alone",
        "left out",
        "of the full step",
    ]
    return [
        "### What the compiler counts for its own convolution",
        "The same steps with `--conv=xla`, in MFLOP. The compiler leaves out the multiplications "
        "whose input pixel lies on the zero padding, in the full step "
        f"{_left_out(full)} of its count for the matrix products: little of conv1 with its 32x32 "
        "pixels, more than half of conv7 and conv8, where four of nine taps meet one of the 2x2 "
        "pixels. `train_flops` counts them all, in every lowering, so that runs compare.",
        table(head, rows),
    ]


def _memory(numbers: Row) -> list[str]:
    """What a node holds: four kinds of state from shapes, and what the compiler reserves."""
    # The first row is full training, the second trains the middle layer that all others train.
    middle = numbers["memory"][1]["trained"][1]
    native = {}
    for row in numbers["steps"]:
        if row["layer"] in ("all", middle):
            native[row["kind"]] = row["xla"]["temporary_bytes"]
    head = [
        "step",
        "trained",
        "optimizer",
        "frozen",
        "teacher",
        "arguments",
        "temporaries",
        "together",
    ]
    return [
        "### Memory of a step",
        "In MB. The four kinds of state follow from shapes; arguments (state and one batch) and "
        "temporaries (activations, patches, gradients) are the compiler's, with convolution as "
        "matrix products. With `--conv=xla` the temporaries of the first two rows are "
        f"{_megabytes(native['full'])} and {_megabytes(native['ends'])}.",
        table(head, map(_memory_cells, numbers["memory"])),
    ]


def _memory_cells(row: Row) -> list[str]:
    """A row of the memory table."""
    # A step that freezes nothing trains all, whatever frozen layers would be stored as.
    if row["frozen_bytes"] == 0:
        name = "all layers"
    else:
        name = f"{', '.join(row['trained'])}; frozen {row['frozen_dtype']}"
    if row["distilled"]:
        name += "; distilled"
    arguments = row["matmul"]["argument_bytes"]
    temporaries = row["matmul"]["temporary_bytes"]
    sizes = [
        row["trained_bytes"],
        row["optimizer_bytes"],
        row["frozen_bytes"],
        row["teacher_bytes"],
        arguments,
        temporaries,
        arguments + temporaries,
    ]
    return [name, *map(_megabytes, sizes)]


def _bytes(numbers: Row) -> list[str]:
    """What a visit sends, by the middle layer and as the mean of a cycle, beside FedAvg's."""
    whole = 4 * _total(numbers["layers"], "params")
    fedavg, *snake = numbers["traffic"]
    uncached = _variant(snake, mode="client_server", frozen_dtype="float32", cached=False)
    cached = _variant(snake, mode="client_server", frozen_dtype="float32", cached=True)
    peers = _variant(snake, mode="peer_to_peer", cached=True)
    # A row for each visit of the last cycle, in which receivers have all that they can have kept.
    last_cycles = [row["cycles"][-1] for row in (uncached, cached, peers)]
    per_layer = []
    for of_uncached, of_cached, of_peers in zip(*last_cycles, strict=True):
        layer, up, down = of_uncached
        _, _, down_cached = of_cached
        _, peers_up, peers_down = of_peers
        onward = peers_up + peers_down
        cells = [layer]
        for size in (up, down, down_cached, onward):
            cells.append(_megabytes(size))
        # FedAvg sends the whole model both ways.
        for sent in (up + down, up + down_cached, onward):
            cells.append(f"{100 * sent / (2 * whole):.1f} %")
        per_layer.append(cells)
    head = [
        "middle layer",
        "up",
        "down, first time or not cached",
        "down, cached",
        "node to node, cached",
        "of FedAvg: not cached",
        "cached",
        "node to node",
    ]
    cycles = []
    for row in numbers["traffic"]:
        name = _variant_name(row, fedavg["nodes"])
        cycles.append([name, *_cycle_cells(row, whole)])
    first = "first cycle, MB a visit"
    last = "third cycle, MB a visit"
    return [
        "### Bytes of a visit",
        f"In MB, weights in float32 (the model: {_megabytes(whole)}), {fedavg['nodes']} nodes, "
        "visits of the third cycle, from the ledger. FedAvg sends "
        f"{_megabytes(2 * whole)} for each node and round.",
        table(head, per_layer),
        "Mean over the visits of a cycle, by the same functions that fill `ledger.jsonl`:",
        table(["", first, "of FedAvg", last, "of FedAvg"], cycles),
    ]


def _variant(rows: Iterable[Row], **wanted: Any) -> Row:
    """The first row with these settings."""
    return next(row for row in rows if wanted.items() <= row.items())


def _variant_name(row: Row, nodes: int) -> str:
    if row["algorithm"] == "fedavg":
        return "FedAvg"
    way = "node to node" if row["mode"] == "peer_to_peer" else "client-server"
    cached = "cached" if row["cached"] else "not cached"
    name = f"Snake, {way}, {cached}"
    if row["frozen_dtype"] != "float32":
        name += f", frozen layers in {row['frozen_dtype']}"
    if row["nodes"] != nodes:
        name += f", {row['nodes']} nodes"
    return name


def _cycle_cells(row: Row, whole: int) -> list[str]:
    """Mean bytes of a visit in the first and the last cycle, and as a share of FedAvg's."""
    cells = []
    for cycle in (row["cycles"][0], row["cycles"][-1]):
        sent = sum(up + down for _, up, down in cycle)
        mean = sent / len(cycle)
        cells += [_megabytes(mean), f"{100 * mean / (2 * whole):.1f} %"]
    return cells


def _step_cells(row: Row, full: Row) -> list[str]:
    compiled = row["matmul"]["flops"]
    ratio = f"{row['flops'] / full['flops']:.3f}"
    return [_mega(row["flops"]), _mega(compiled), f"{_difference(row):+.2f} %", ratio]


def _difference(row: Row) -> float:
    """How much more the compiler counts than the formula, in percent."""
    return 100 * (row["matmul"]["flops"] / row["flops"] - 1)


def _left_out(row: Row) -> str:
    """What XLA's convolution is counted less than the matrix products."""
    return f"{100 * (1 - row['xla']['flops'] / row['matmul']['flops']):.1f} %"


def _middle_alone(steps: Iterable[Row]) -> list[Row]:
    """The steps of one layer alone, but for the first and the last layer."""
    alone = [row for row in steps if row["kind"] == "alone"]
    return alone[1:-1]


def _mean_ratio(rows: Sequence[Row], full: Row) -> float:
    return _total(rows, "flops") / len(rows) / full["flops"]


def _total(rows: Iterable[Row], key: str) -> int:
    return sum(row[key] for row in rows)


def _mega(value: float) -> str:
    return f"{value / 1e6:,.1f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f}"
