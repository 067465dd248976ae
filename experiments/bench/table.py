"""The benchmark's result as text."""

from typing import Any


def report(result: dict[str, Any]) -> str:
    """The table of one result, as text."""
    task = result["work"]
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    lines += [
        "",
        f"FedAvg, {task['nodes']} nodes with {task['examples_per_node']} examples, {task['model']} of "
        f"{task['parameters']:,} parameters, batch {task['batch_size']}: {task['steps']} steps and "
        f"{task['examples']:,} examples a round",
        f"Seconds a round, median [quartiles] of {task['repeats']} in turn; others' time over ours in the same turn; "
        "seconds until the first round was over; how far parameters are from ours",
        "",
        f"{'':34}{'seconds a round':>25}{'to ours':>10}{'start s':>10}{'off':>10}",
    ]
    lines += [_row(row) for row in result["contestants"]]
    return "\n".join([*lines, "", *map(_goal, result["goals"])])


def _row(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"{row['name']:34}  {row['missing']}"
    time = row["round_s"]
    spread = f"{time['median']:.3f} [{time['q1']:.3f}–{time['q3']:.3f}]"
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    off = "-" if row["difference"] is None else f"{row['difference']:.0e}"
    return f"{row['name']:34}{spread:>25}{ratio:>10}{row['start_s']:10.1f}{off:>10}  {row['variant']}".rstrip()


def _goal(goal: dict[str, Any]) -> str:
    value = "-" if goal["value"] is None else f"{goal['value']:.2f}"
    verdict = {True: "met", False: "NOT met", None: "not measured"}[goal["met"]]
    return f"{goal['goal']}: {value}, at least {goal['limit']:g}: {verdict}"
