"""The numbers of the classification study's figures: rows as JSON has them, and as Markdown."""

from collections.abc import Mapping, Sequence

import jax

from experiments.reproduction import verdict
from experiments.reproduction.cases import Case
from experiments.reproduction.run_numbers import (
    BYTES,
    FLOPS,
    SECONDS,
    Column,
    Numbers,
    by_case,
    learning_rate,
    least_cycles,
    markdown,
    mean,
    notes,
    of_case,
    several,
    total,
)
from experiments.reproduction.runs import Rates, Study
from experiments.reproduction.vision import CLASSES, IMAGE, METHODS, PARTITIONS
from snake_jax.algorithms.chain import ON_NODE, ON_SERVER, held, roles
from snake_jax.cli.accounting_tables import table
from snake_jax.costs.flops import step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.models import registry
from snake_jax.models.layered import resolve_layers
from snake_jax.nodes.ledger import optimizer_item
from snake_jax.report.runs import Run, cost_to_reach, from_summary
from snake_jax.report.units import human, percent
from snake_jax.runs import loop
from snake_jax.runs.job import state_like
from snake_jax.runs.loop import Setup


def label(case: Case) -> str:
    """What tells a case from the others of its figure, partition and seed apart."""
    parts = [METHODS[case.method].label, f"E = {case.epochs}"]
    if case.order != "sequential":
        parts.append(f"{case.order} order")
    if case.interrupted:
        parts.append("interrupted")
    return ", ".join(parts)


def of_run(study: Study, case: Case, run: Run) -> Numbers:
    """What a run reached and took.

    Sums are over its lines of metrics, `..._to_target` up to the first evaluation there.
    """
    nodes = run.config["nodes"]
    cycles = len({record["cycle"] for record in run.metrics})
    evaluated = [record for record in run.metrics if record["accuracy"] is not None]
    numbers: Numbers = {
        "run": study.name(case),
        **of_case(case),
        "order": case.order,
        "interrupted": case.interrupted,
        "finished": run.summary is not None,
        "learning_rate": run.config["learning_rate"],
        "distilled": any(record.get("distilled") for record in run.metrics),
        "cycles": cycles,
        "final_accuracy": evaluated[-1]["accuracy"],
        "best_accuracy": max(record["accuracy"] for record in evaluated),
        "final_loss": evaluated[-1]["test_loss"],
    }

    # What it took in all, of all nodes together where nothing else is said.
    numbers["iterations_per_node"] = total(run, "iterations") / nodes
    for key in ("iterations", "examples", "train_flops", "server_flops", "train_s"):
        numbers[key] = total(run, key)
    sent = total(run, "bytes_up") + total(run, "bytes_down")
    numbers["bytes"] = sent
    numbers["synchronisations"] = total(run, "synchronisations")
    numbers["node_flops"] = (numbers["train_flops"] - numbers["server_flops"]) / nodes
    numbers["bytes_per_cycle"] = sent / cycles
    numbers["bytes_per_visit"] = sent / _visits(run)

    # What it took until the target was reached; None of one that never was there.
    iterations = cost_to_reach(run, study.scale.target, "iterations")
    per_node = None if iterations is None else iterations / nodes
    numbers["iterations_per_node_to_target"] = per_node
    for axis in ("examples", "bytes", "flops"):
        numbers[f"{axis}_to_target"] = cost_to_reach(run, study.scale.target, axis)

    timed = any("clock_s" in record for record in run.metrics)
    numbers["simulated_s"] = total(run, "clock_s") if timed else None
    numbers["skipped_visits"] = sum(record.get("event") == "skipped" for record in run.metrics)
    return numbers


def _visits(run: Run) -> int:
    """Visits of nodes: a line of a round names several."""
    visits = 0
    for record in run.metrics:
        visits += len(record["node"]) if isinstance(record["node"], list) else 1
    return visits


def node_memory(setup: Setup) -> Numbers:
    """Bytes at the node that holds most in any visit of a cycle, by what they are.

    Weights, gradients, optimizer states and teacher.
    """
    params, states, *_ = state_like(setup.job, setup.layer_names)
    sizes = transfer_sizes(params, setup.config.frozen_dtype, states)

    # What each node of a visit holds of the model.
    held_by: list[list[str]] = []
    for role in roles(setup.chain):
        if role == ON_SERVER:
            continue
        names = list(held(setup.chain, setup.model.layer_names, role))
        # A node that makes its own gradients, as accelerated FL's, has a head for that.
        if role == ON_NODE:
            names += [layer.name for layer in setup.auxiliary]
        held_by.append(names)

    most: Numbers = {"together": -1}
    for visits in loop.planned(setup):
        for visit in visits:
            for names in held_by:
                parts = _parts_bytes(sizes.full, sizes.frozen, names, visit.layers, setup.distilled)
                if parts["together"] > most["together"]:
                    most = parts
    return most


def _parts_bytes(
    full: Mapping[str, int],
    stored: Mapping[str, int],
    names: Sequence[str],
    trains: Sequence[str],
    distilled: bool,
) -> Numbers:
    """What a holder of the named layers has in memory while some of them train.

    Args:
      full: bytes of a layer, and of its optimizer's state, in full precision.
      stored: bytes of a layer that does not train.
      names: the layers that are held.
      trains: those of the visit.
      distilled: whether a copy of what trains is the teacher.
    """
    trained = [name for name in names if name in trains]
    gradients = sum(full[name] for name in trained)
    frozen = sum(stored[name] for name in names if name not in trained)
    optimizer = sum(full[optimizer_item(name)] for name in trained)
    parts = {
        "weights": gradients + frozen,
        "gradients": gradients,
        "optimizer": optimizer,
        "teacher": gradients if distilled else 0,
    }
    return {**parts, "together": sum(parts.values())}


def methods_row(study: Study, case: Case, run: Run) -> Numbers:
    """The row of figure 2."""
    setup = loop.prepare(study.config(case))
    # The compiler's peak is a node's only where the node holds the whole model.
    peak = None
    if len(setup.chain) == 1:
        peak = from_summary(run, "peak_train_bytes")
    numbers = of_run(study, case, run)
    numbers["node_memory"] = node_memory(setup)
    numbers["compiled_peak_bytes"] = peak
    return numbers


def layers_table(batch_size: int = 32) -> list[Numbers]:
    """Figure 4: a batch's FLOPs of each layer of full-width VGG-11, and what a visit of it takes.

    A visit trains the layer beside first and last. Shares are of training all layers; memory is
    weights, gradients and momentum.
    """
    model = registry.build("vgg11", CLASSES, IMAGE)
    costs = layer_costs(model, batch_size)
    params = jax.eval_shape(model.init, jax.random.key(0))
    sizes = transfer_sizes(params, "float32").full
    always = resolve_layers("always_train", "first,last", model.layer_names)
    full_flops = step_flops(costs, model.layer_names)
    whole_bytes = sum(sizes.values())
    rows = []
    for index, cost in enumerate(costs):
        trained = [name for name in model.layer_names if name == cost.name or name in always]
        sent = sum(sizes[name] for name in trained)
        flops = step_flops(costs, trained)
        # All weights; of what trains a gradient and a momentum, each as large, besides.
        memory = whole_bytes + 2 * sent
        rows.append(
            {
                "layer": cost.name,
                "parameters": cost.params,
                "forward_flops": cost.forward,
                "input_gradient_flops": cost.input_gradient if index else 0,
                "weight_gradient_flops": cost.weight_gradient,
                "visit_trains": trained,
                "visit_bytes_up": sent,
                "visit_bytes_share": sent / whole_bytes,
                "visit_flops": flops,
                "visit_flops_share": flops / full_flops,
                "visit_memory_bytes": memory,
                "visit_memory_share": memory / (3 * whole_bytes),
            }
        )
    return rows


def layers_markdown(rows: Sequence[Numbers]) -> str:
    """Figure 4 as a table."""
    head = [
        "layer",
        "parameters",
        "forward",
        "input gradient",
        "weight gradient",
        "visit sends",
        "visit's FLOPs",
        "of full training",
        "visit's memory",
        "of full training",
    ]
    body = []
    for row in rows:
        body.append(
            [
                row["layer"],
                f"{row['parameters']:,}",
                FLOPS(row["forward_flops"]),
                FLOPS(row["input_gradient_flops"]),
                FLOPS(row["weight_gradient_flops"]),
                BYTES(row["visit_bytes_up"]),
                FLOPS(row["visit_flops"]),
                percent(row["visit_flops_share"]),
                BYTES(row["visit_memory_bytes"]),
                percent(row["visit_memory_share"]),
            ]
        )
    return table(head, body)


def runs_markdown(rows: Sequence[Numbers], target: float) -> str:
    """Accuracy and cost, the seeds of a case in one line: see `several`."""
    goal = percent(target)
    columns: list[Column] = [
        ("final accuracy", several("final_accuracy", percent)),
        ("best", several("best_accuracy", percent)),
        ("cycles", least_cycles),
        ("iterations per node", several("iterations_per_node", human)),
        (f"to {goal}: iterations per node", several("iterations_per_node_to_target", human)),
        ("bytes", several("bytes_to_target", BYTES)),
        ("FLOPs", several("flops_to_target", FLOPS)),
        ("bytes in all", several("bytes", BYTES)),
        ("FLOPs in all", several("train_flops", FLOPS)),
        ("learning rate", learning_rate),
    ]
    return markdown(rows, columns, _line_name)


def _line_name(group: Sequence[Numbers]) -> str:
    return _row_name(group[0], len(group))


def methods_markdown(rows: Sequence[Numbers], target: float) -> str:
    """Figure 2 as a table, a column for each quantity."""
    goal = percent(target)
    columns: list[Column] = [
        ("final accuracy", several("final_accuracy", percent)),
        ("bytes a cycle or round", several("bytes_per_cycle", BYTES)),
        ("a visit of a node", several("bytes_per_visit", BYTES)),
        (f"bytes to {goal}", several("bytes_to_target", BYTES)),
        ("node's state", _most_memory),
        ("compiled peak", several("compiled_peak_bytes", BYTES)),
        ("FLOPs of a node", several("node_flops", FLOPS)),
        ("FLOPs of the server", several("server_flops", FLOPS)),
        ("synchronisations", several("synchronisations", human)),
        ("simulated time", several("simulated_s", SECONDS)),
        ("learning rate", learning_rate),
    ]
    return markdown(rows, columns, _method_name)


def _most_memory(group: Sequence[Numbers]) -> str:
    return BYTES(max(numbers["node_memory"]["together"] for numbers in group))


def _method_name(group: Sequence[Numbers]) -> str:
    return METHODS[group[0]["method"]].label


def against_fl(rows: Sequence[Numbers], rates: Rates) -> list[str]:
    """Sentences: each finished case's mean final accuracy as a share of FL's on the same data.

    Whether it is higher follows from the seeds, by `verdict`.

    Args:
      rows: of a figure of methods.
      rates: as tuned, which say whose lie at the edge of their grid.
    """
    finished = [group for group in by_case(rows) if all(row["finished"] for row in group)]
    lines = []
    for group in finished:
        first = group[0]
        for others in finished:
            other_data = others[0]["partition"] != first["partition"]
            if others is group or others[0]["method"] != "fedavg" or other_data:
                continue
            share = mean(group, "final_accuracy") / mean(others, "final_accuracy")
            name = _row_name(first, 0)
            other = _row_name(others[0], 0)
            points = []
            for difference in verdict.differences(group, others, "final_accuracy"):
                points.append(100 * difference)
            tuned = rates.get(f"{others[0]['method']}/{others[0]['partition']}", {})
            at_edge = tuned.get("at_the_edge_of_the_grid", False)
            said = verdict.sentence(verdict.paired(points), "higher", "points", at_edge)
            lines.append(f"{name}: {percent(share)} of the accuracy of {other}; {said}.")
    return lines


def _row_name(row: Numbers, seeds: int) -> str:
    case = Case(row["method"], row["partition"], row["epochs"], 0, row["order"], row["interrupted"])
    special = ["distilled"] if row["distilled"] else []
    return f"{PARTITIONS[row['partition']]}: {label(case)}{notes(row, seeds, *special)}"
