"""The numbers of a figure: rows as JSON has them, and as Markdown."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.accounting_tables import table
from experiments.reproduction.cases import CLASSES, IMAGE, METHODS, PARTITIONS, Case
from experiments.reproduction.runs import Study
from snake_jax import accounting, models, runner
from snake_jax.chain import ON_NODE, ON_SERVER, held, roles
from snake_jax.layers import resolve_layers
from snake_jax.network import optimizer_item
from snake_jax.report.runs import Run, cost_to_reach
from snake_jax.report.units import human, percent
from snake_jax.runner import Setup

Row = dict[str, Any]
UNKNOWN = "-"
_BYTES, _FLOPS, _SECONDS = (lambda v, u=unit: human(v, u) for unit in ("B", "FLOP", "s"))


def label(case: Case) -> str:
    """What tells a case from the others of its figure, partition and seed apart."""
    special = [f"{case.order} order"] * (case.order != "sequential") + ["interrupted"] * case.interrupted
    return ", ".join([METHODS[case.method].label, f"E = {case.epochs}", *special])


def of_run(study: Study, case: Case, run: Run) -> Row:
    """What a run reached and took; sums are over its lines of metrics, `to_target` up to the first evaluation there."""
    config, last = run.config, [record for record in run.metrics if record["accuracy"] is not None][-1]
    nodes, cycles = config["nodes"], len({record["cycle"] for record in run.metrics})
    total = {key: _sum(run, key) for key in ("iterations", "examples", "train_flops", "server_flops", "train_s")}
    total |= {
        "bytes": _sum(run, "bytes_up") + _sum(run, "bytes_down"),
        "synchronisations": _sum(run, "synchronisations"),
    }
    reached = {
        axis: cost_to_reach(run, study.scale.target, axis) for axis in ("iterations", "examples", "bytes", "flops")
    }
    per_node = None if reached["iterations"] is None else reached.pop("iterations") / nodes
    return {
        "run": study.name(case),
        "method": case.method,
        "partition": case.partition,
        "epochs": case.epochs,
        "order": case.order,
        "interrupted": case.interrupted,
        "seed": case.seed,
        "finished": run.summary is not None,
        "learning_rate": config["learning_rate"],
        "distilled": any(record.get("distilled") for record in run.metrics),
        "cycles": cycles,
        "final_accuracy": last["accuracy"],
        "best_accuracy": max(record["accuracy"] for record in run.metrics if record["accuracy"] is not None),
        "final_loss": last["test_loss"],
        "iterations_per_node": total["iterations"] / nodes,
        **total,
        "node_flops": (total["train_flops"] - total["server_flops"]) / nodes,
        "bytes_per_cycle": total["bytes"] / cycles,
        "bytes_per_visit": total["bytes"] / _visits(run),
        "iterations_per_node_to_target": per_node,
        **{f"{axis}_to_target": reached[axis] for axis in ("examples", "bytes", "flops")},
        "simulated_s": _sum(run, "clock_s") if any("clock_s" in record for record in run.metrics) else None,
        "skipped_visits": sum(record.get("event") == "skipped" for record in run.metrics),
    }


def _sum(run: Run, key: str) -> float:
    return sum(record.get(key) or 0 for record in run.metrics)


def _visits(run: Run) -> int:
    return sum(len(r["node"]) if isinstance(r["node"], list) else 1 for r in run.metrics)


def node_memory(setup: Setup) -> Row:
    """Bytes of weights, gradients, optimizer states and teacher at the node that holds most in any visit of a cycle."""
    config = setup.config
    params, states, _ = runner.state_like(setup, setup.layer_names)
    sizes = accounting.transfer_sizes(params, config.frozen_dtype, states)
    auxiliary = tuple(layer.name for layer in setup.auxiliary)
    most: Row = {"together": -1}
    for visits in setup.algorithm.rounds(setup.plan, 0):
        for visit in visits:
            for role in roles(setup.chain):
                if role == ON_SERVER:
                    continue
                own = held(setup.chain, setup.model.layer_names, role) + (auxiliary if role == ON_NODE else ())
                trained = [name for name in own if name in visit.layers]
                weights = sum(sizes.full[name] for name in trained)
                parts = {
                    "weights": weights + sum(sizes.frozen[name] for name in own if name not in trained),
                    "gradients": weights,
                    "optimizer": sum(sizes.full[optimizer_item(name)] for name in trained),
                    "teacher": weights if setup.distilled else 0,
                }
                most = max(most, parts | {"together": sum(parts.values())}, key=lambda row: row["together"])
    return most


def methods_row(study: Study, case: Case, run: Run) -> Row:
    """The row of figure 2. The compiler's peak is a node's only where the node holds the whole model."""
    setup = runner.prepare(study.config(case))
    peak = (run.summary or {}).get("peak_train_bytes") if len(setup.chain) == 1 else None
    return of_run(study, case, run) | {"node_memory": node_memory(setup), "compiled_peak_bytes": peak}


def layers_table(batch_size: int = 32) -> list[Row]:
    """Figure 4: full-width VGG-11, a batch's FLOPs of each layer, and of a visit that trains it beside first and last.

    Shares are of training all layers; memory is weights, gradients and momentum.
    """
    model = models.build("vgg11", CLASSES, IMAGE)
    costs = accounting.layer_costs(model, batch_size)
    sizes = accounting.transfer_sizes(jax.eval_shape(model.init, jax.random.key(0)), "float32").full
    always = resolve_layers("always_train", "first,last", model.layer_names)
    full, whole = accounting.step_flops(costs, model.layer_names), sum(sizes.values())
    rows = []
    for index, cost in enumerate(costs):
        trained = [name for name in model.layer_names if name == cost.name or name in always]
        sent = sum(sizes[name] for name in trained)
        rows.append(
            {
                "layer": cost.name,
                "parameters": cost.params,
                "forward_flops": cost.forward_flops,
                "input_gradient_flops": cost.input_gradient_flops if index else 0,
                "weight_gradient_flops": cost.weight_gradient_flops,
                "visit_trains": trained,
                "visit_bytes_up": sent,
                "visit_bytes_share": sent / whole,
                "visit_flops": accounting.step_flops(costs, trained),
                "visit_flops_share": accounting.step_flops(costs, trained) / full,
                "visit_memory_bytes": whole + 2 * sent,
                "visit_memory_share": (whole + 2 * sent) / (3 * whole),
            }
        )
    return rows


def layers_markdown(rows: Sequence[Row]) -> str:
    """Figure 4 as a table."""
    head = ["layer", "parameters", "forward", "input gradient", "weight gradient", "visit sends", "visit's FLOPs"]
    head += ["of full training", "visit's memory", "of full training"]
    body = [
        [
            row["layer"],
            f"{row['parameters']:,}",
            *(_FLOPS(row[f"{kind}_flops"]) for kind in ("forward", "input_gradient", "weight_gradient")),
            _BYTES(row["visit_bytes_up"]),
            _FLOPS(row["visit_flops"]),
            percent(row["visit_flops_share"]),
            _BYTES(row["visit_memory_bytes"]),
            percent(row["visit_memory_share"]),
        ]
        for row in rows
    ]
    return table(head, body)


def runs_markdown(rows: Sequence[Row], target: float) -> str:
    """Accuracy and cost, seeds of a case in one line: the mean, and least to greatest where there are several."""
    goal = percent(target)
    columns: list[tuple[str, Callable[[list[Row]], str]]] = [
        ("final accuracy", lambda rs: _several(rs, "final_accuracy", percent)),
        ("best", lambda rs: _several(rs, "best_accuracy", percent)),
        ("cycles", lambda rs: str(min(r["cycles"] for r in rs))),
        ("iterations per node", lambda rs: _several(rs, "iterations_per_node", human)),
        (f"to {goal}: iterations per node", lambda rs: _several(rs, "iterations_per_node_to_target", human)),
        ("bytes", lambda rs: _several(rs, "bytes_to_target", _BYTES)),
        ("FLOPs", lambda rs: _several(rs, "flops_to_target", _FLOPS)),
        ("bytes in all", lambda rs: _several(rs, "bytes", _BYTES)),
        ("FLOPs in all", lambda rs: _several(rs, "train_flops", _FLOPS)),
        ("learning rate", lambda rs: f"{rs[0]['learning_rate']:g}"),
    ]
    body = [[_row_name(group[0], len(group)), *(show(group) for _, show in columns)] for group in _by_case(rows)]
    return table(["", *(name for name, _ in columns)], body)


def methods_markdown(rows: Sequence[Row], target: float) -> str:
    """Figure 2 as a table, a column for each quantity."""
    goal = percent(target)
    columns: list[tuple[str, Callable[[list[Row]], str]]] = [
        ("final accuracy", lambda rs: _several(rs, "final_accuracy", percent)),
        ("bytes a cycle or round", lambda rs: _several(rs, "bytes_per_cycle", _BYTES)),
        ("a visit of a node", lambda rs: _several(rs, "bytes_per_visit", _BYTES)),
        (f"bytes to {goal}", lambda rs: _several(rs, "bytes_to_target", _BYTES)),
        ("node's state", lambda rs: _BYTES(max(r["node_memory"]["together"] for r in rs))),
        ("compiled peak", lambda rs: _several(rs, "compiled_peak_bytes", _BYTES)),
        ("FLOPs of a node", lambda rs: _several(rs, "node_flops", _FLOPS)),
        ("FLOPs of the server", lambda rs: _several(rs, "server_flops", _FLOPS)),
        ("synchronisations", lambda rs: _several(rs, "synchronisations", human)),
        ("simulated time", lambda rs: _several(rs, "simulated_s", _SECONDS)),
        ("learning rate", lambda rs: f"{rs[0]['learning_rate']:g}"),
    ]
    body = [[METHODS[group[0]["method"]].label, *(show(group) for _, show in columns)] for group in _by_case(rows)]
    return table(["", *(name for name, _ in columns)], body)


def against(rows: Sequence[Row], base: Mapping[str, Any]) -> list[str]:
    """Sentences: the mean final accuracy of each finished case as a share of that of the base, alike otherwise."""
    lines = []
    for group in _by_case(rows):
        others = [r for r in rows if all(r[k] == v for k, v in base.items()) and r["finished"]]
        alike = ("partition", "epochs")
        others = [r for r in others if all(r[key] == group[0][key] for key in alike)]
        if not others or _case_key(others[0]) == _case_key(group[0]) or not all(r["finished"] for r in group):
            continue
        share = _mean(group, "final_accuracy") / _mean(others, "final_accuracy")
        lines.append(f"{_row_name(group[0], 0)}: {percent(share)} of the accuracy of {_row_name(others[0], 0)}.")
    return lines


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def _case_key(row: Row) -> tuple:
    return tuple(row[key] for key in ("method", "partition", "epochs", "order", "interrupted"))


def _by_case(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(_case_key(row), []).append(row)
    return list(groups.values())


def _row_name(row: Row, seeds: int) -> str:
    case = Case(row["method"], row["partition"], row["epochs"], 0, row["order"], row["interrupted"])
    notes = ["distilled"] * row["distilled"] + [f"{seeds} seeds"] * (seeds > 1)
    notes += [f"{row['skipped_visits']} visits diverged"] * bool(row["skipped_visits"])
    notes += ["not finished"] * (not row["finished"])
    return f"{PARTITIONS[row['partition']]}: {label(case)}" + (f" ({', '.join(notes)})" if notes else "")


def _several(rows: Sequence[Row], key: str, show: Callable[[float], str]) -> str:
    values = [row[key] for row in rows]
    if None in values:
        known = [value for value in values if value is not None]
        return f"{UNKNOWN} ({len(known)} of {len(values)}: {show(statistics.fmean(known))})" if known else UNKNOWN
    mean = show(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({show(min(values))} to {show(max(values))})"
