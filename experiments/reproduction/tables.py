"""The numbers of the classification study's figures: rows as JSON has them, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.reproduction.cases import Case
from experiments.reproduction.rows import (
    BYTES,
    FLOPS,
    SECONDS,
    Column,
    Row,
    by_case,
    case_key,
    markdown,
    mean,
    notes,
    of_case,
    several,
    total,
)
from experiments.reproduction.runs import Study
from experiments.reproduction.vision import CLASSES, IMAGE, METHODS, PARTITIONS
from snake_jax.algorithms.chain import ON_NODE, ON_SERVER, held, roles
from snake_jax.cli.accounting_tables import table
from snake_jax.costs.flops import step_flops
from snake_jax.costs.layers import layer_costs
from snake_jax.costs.traffic import transfer_sizes
from snake_jax.models import registry
from snake_jax.models.layered import resolve_layers
from snake_jax.nodes.ledger import optimizer_item
from snake_jax.report.runs import Run, cost_to_reach
from snake_jax.report.units import human, percent
from snake_jax.runs import loop
from snake_jax.runs.job import state_like
from snake_jax.runs.loop import Setup


def label(case: Case) -> str:
    """What tells a case from the others of its figure, partition and seed apart."""
    special = [f"{case.order} order"] * (case.order != "sequential") + [
        "interrupted"
    ] * case.interrupted
    return ", ".join([METHODS[case.method].label, f"E = {case.epochs}", *special])


def of_run(study: Study, case: Case, run: Run) -> Row:
    """What a run reached and took; sums are over its lines of metrics, `to_target` up to the first
    evaluation there.
    """
    config, last = (
        run.config,
        [record for record in run.metrics if record["accuracy"] is not None][-1],
    )
    nodes, cycles = config["nodes"], len({record["cycle"] for record in run.metrics})
    sums = {
        key: total(run, key)
        for key in ("iterations", "examples", "train_flops", "server_flops", "train_s")
    }
    sums |= {
        "bytes": total(run, "bytes_up") + total(run, "bytes_down"),
        "synchronisations": total(run, "synchronisations"),
    }
    reached = {
        axis: cost_to_reach(run, study.scale.target, axis)
        for axis in ("iterations", "examples", "bytes", "flops")
    }
    per_node = None if reached["iterations"] is None else reached.pop("iterations") / nodes
    return {
        "run": study.name(case),
        **of_case(case),
        "order": case.order,
        "interrupted": case.interrupted,
        "finished": run.summary is not None,
        "learning_rate": config["learning_rate"],
        "distilled": any(record.get("distilled") for record in run.metrics),
        "cycles": cycles,
        "final_accuracy": last["accuracy"],
        "best_accuracy": max(
            record["accuracy"] for record in run.metrics if record["accuracy"] is not None
        ),
        "final_loss": last["test_loss"],
        "iterations_per_node": sums["iterations"] / nodes,
        **sums,
        "node_flops": (sums["train_flops"] - sums["server_flops"]) / nodes,
        "bytes_per_cycle": sums["bytes"] / cycles,
        "bytes_per_visit": sums["bytes"] / _visits(run),
        "iterations_per_node_to_target": per_node,
        **{f"{axis}_to_target": reached[axis] for axis in ("examples", "bytes", "flops")},
        "simulated_s": total(run, "clock_s")
        if any("clock_s" in record for record in run.metrics)
        else None,
        "skipped_visits": sum(record.get("event") == "skipped" for record in run.metrics),
    }


def _visits(run: Run) -> int:
    return sum(len(r["node"]) if isinstance(r["node"], list) else 1 for r in run.metrics)


def node_memory(setup: Setup) -> Row:
    """Bytes of weights, gradients, optimizer states and teacher at the node that holds most in any
    visit of a cycle.
    """
    config = setup.config
    params, states, *_ = state_like(setup.job, setup.layer_names)
    sizes = transfer_sizes(params, config.frozen_dtype, states)
    auxiliary = tuple(layer.name for layer in setup.auxiliary)
    most: Row = {"together": -1}
    for visits in loop.planned(setup):
        for visit in visits:
            for role in roles(setup.chain):
                if role == ON_SERVER:
                    continue
                own = held(setup.chain, setup.model.layer_names, role) + (
                    auxiliary if role == ON_NODE else ()
                )
                trained = [name for name in own if name in visit.layers]
                weights = sum(sizes.full[name] for name in trained)
                parts = {
                    "weights": weights
                    + sum(sizes.frozen[name] for name in own if name not in trained),
                    "gradients": weights,
                    "optimizer": sum(sizes.full[optimizer_item(name)] for name in trained),
                    "teacher": weights if setup.distilled else 0,
                }
                most = max(
                    most, parts | {"together": sum(parts.values())}, key=lambda row: row["together"]
                )
    return most


def methods_row(study: Study, case: Case, run: Run) -> Row:
    """The row of figure 2. The compiler's peak is a node's only where the node holds the whole
    model.
    """
    setup = loop.prepare(study.config(case))
    peak = (run.summary or {}).get("peak_train_bytes") if len(setup.chain) == 1 else None
    return of_run(study, case, run) | {
        "node_memory": node_memory(setup),
        "compiled_peak_bytes": peak,
    }


def layers_table(batch_size: int = 32) -> list[Row]:
    """Figure 4: full-width VGG-11, a batch's FLOPs of each layer, and of a visit that trains it
    beside first and last.

    Shares are of training all layers; memory is weights, gradients and momentum.
    """
    model = registry.build("vgg11", CLASSES, IMAGE)
    costs = layer_costs(model, batch_size)
    sizes = transfer_sizes(jax.eval_shape(model.init, jax.random.key(0)), "float32").full
    always = resolve_layers("always_train", "first,last", model.layer_names)
    full, whole = step_flops(costs, model.layer_names), sum(sizes.values())
    rows = []
    for index, cost in enumerate(costs):
        trained = [name for name in model.layer_names if name == cost.name or name in always]
        sent = sum(sizes[name] for name in trained)
        rows.append(
            {
                "layer": cost.name,
                "parameters": cost.params,
                "forward_flops": cost.forward,
                "input_gradient_flops": cost.input_gradient if index else 0,
                "weight_gradient_flops": cost.weight_gradient,
                "visit_trains": trained,
                "visit_bytes_up": sent,
                "visit_bytes_share": sent / whole,
                "visit_flops": step_flops(costs, trained),
                "visit_flops_share": step_flops(costs, trained) / full,
                "visit_memory_bytes": whole + 2 * sent,
                "visit_memory_share": (whole + 2 * sent) / (3 * whole),
            }
        )
    return rows


def layers_markdown(rows: Sequence[Row]) -> str:
    """Figure 4 as a table."""
    head = [
        "layer",
        "parameters",
        "forward",
        "input gradient",
        "weight gradient",
        "visit sends",
        "visit's FLOPs",
    ]
    head += ["of full training", "visit's memory", "of full training"]
    body = [
        [
            row["layer"],
            f"{row['parameters']:,}",
            *(
                FLOPS(row[f"{kind}_flops"])
                for kind in ("forward", "input_gradient", "weight_gradient")
            ),
            BYTES(row["visit_bytes_up"]),
            FLOPS(row["visit_flops"]),
            percent(row["visit_flops_share"]),
            BYTES(row["visit_memory_bytes"]),
            percent(row["visit_memory_share"]),
        ]
        for row in rows
    ]
    return table(head, body)


def runs_markdown(rows: Sequence[Row], target: float) -> str:
    """Accuracy and cost, seeds of a case in one line: the mean, and least to greatest where there
    are several.
    """
    goal = percent(target)
    columns: list[Column] = [
        ("final accuracy", several("final_accuracy", percent)),
        ("best", several("best_accuracy", percent)),
        ("cycles", lambda rs: str(min(r["cycles"] for r in rs))),
        ("iterations per node", several("iterations_per_node", human)),
        (f"to {goal}: iterations per node", several("iterations_per_node_to_target", human)),
        ("bytes", several("bytes_to_target", BYTES)),
        ("FLOPs", several("flops_to_target", FLOPS)),
        ("bytes in all", several("bytes", BYTES)),
        ("FLOPs in all", several("train_flops", FLOPS)),
        ("learning rate", lambda rs: f"{rs[0]['learning_rate']:g}"),
    ]
    return markdown(rows, columns, lambda group: _row_name(group[0], len(group)))


def methods_markdown(rows: Sequence[Row], target: float) -> str:
    """Figure 2 as a table, a column for each quantity."""
    goal = percent(target)
    columns: list[Column] = [
        ("final accuracy", several("final_accuracy", percent)),
        ("bytes a cycle or round", several("bytes_per_cycle", BYTES)),
        ("a visit of a node", several("bytes_per_visit", BYTES)),
        (f"bytes to {goal}", several("bytes_to_target", BYTES)),
        ("node's state", lambda rs: BYTES(max(r["node_memory"]["together"] for r in rs))),
        ("compiled peak", several("compiled_peak_bytes", BYTES)),
        ("FLOPs of a node", several("node_flops", FLOPS)),
        ("FLOPs of the server", several("server_flops", FLOPS)),
        ("synchronisations", several("synchronisations", human)),
        ("simulated time", several("simulated_s", SECONDS)),
        ("learning rate", lambda rs: f"{rs[0]['learning_rate']:g}"),
    ]
    return markdown(rows, columns, lambda group: METHODS[group[0]["method"]].label)


def against(rows: Sequence[Row], base: Mapping[str, Any]) -> list[str]:
    """Sentences: the mean final accuracy of each finished case as a share of that of the base,
    alike otherwise.
    """
    lines = []
    for group in by_case(rows):
        others = [r for r in rows if all(r[k] == v for k, v in base.items()) and r["finished"]]
        alike = ("partition", "epochs")
        others = [r for r in others if all(r[key] == group[0][key] for key in alike)]
        if (
            not others
            or case_key(others[0]) == case_key(group[0])
            or not all(r["finished"] for r in group)
        ):
            continue
        share = mean(group, "final_accuracy") / mean(others, "final_accuracy")
        lines.append(
            f"{_row_name(group[0], 0)}: {percent(share)} of the accuracy of "
            f"{_row_name(others[0], 0)}."
        )
    return lines


def _row_name(row: Row, seeds: int) -> str:
    case = Case(row["method"], row["partition"], row["epochs"], 0, row["order"], row["interrupted"])
    said = notes(row, seeds, *["distilled"] * row["distilled"])
    return f"{PARTITIONS[row['partition']]}: {label(case)}{said}"
