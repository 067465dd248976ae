"""The numbers of a run: a line of metrics.jsonl a round, summary.json at the end.

docs/accounting.md says what each of them counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from snake_jax.algorithms.chain import ON_CLOUD, ON_SERVER, Role
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.engines.contract import Compilations, Scores
from snake_jax.nodes.clock import Elapsed
from snake_jax.nodes.ledger import Transfer, bytes_up_down

Record = dict[str, Any]

# Fields of a line that a summary adds up.
_SUMMED = (
    "iterations",
    "examples",
    "bytes_up",
    "bytes_down",
    "train_flops",
    "server_flops",
    "cloud_flops",
    "synchronisations",
    "train_s",
    "clock_s",
    "wait_s",
    "away_s",
    "drops",
    "node_joules",
    "server_joules",
    "cloud_joules",
)


def of_round(
    visits: Round,
    results: Sequence[Outcome],
    transfers: Sequence[Transfer],
    scores: Scores | tuple[None, None],
    learning_rate: float,
    flops: Sequence[Mapping[Role, int]],
    synchronisations: int,
) -> Record:
    """What this round alone took, and where the model stands after it.

    Args:
      visits: of the round.
      results: theirs.
      transfers: made for it.
      scores: test accuracy and loss after it, None where not evaluated.
      learning_rate: of its steps.
      flops: of its visits' steps by role (`chain.ON_SERVER`, ...), as the formula counts.
      synchronisations: how often a party waited for another.

    Returns:
      A line of metrics.jsonl, without what the clock and the task add.
    """
    first = visits[0]
    accuracy, test_loss, *_ = scores
    up, down = bytes_up_down(transfers)

    # Visits of a round train the same layers, or each its own.
    layers: dict[str, None] = {}
    for visit in visits:
        layers |= dict.fromkeys(visit.layers)

    # JSON has no NaN and no infinity: null stands for them.
    if test_loss is not None and not math.isfinite(test_loss):
        test_loss = None
    return {
        "visit": first.turn,
        "cycle": first.cycle,
        "node": first.node if len(visits) == 1 else [visit.node for visit in visits],
        "layers": list(layers),
        "iterations": sum(result.iterations for result in results),
        "examples": sum(result.examples for result in results),
        "bytes_up": up,
        "bytes_down": down,
        "train_flops": sum(sum(by_role.values()) for by_role in flops),
        "server_flops": sum(by_role.get(ON_SERVER, 0) for by_role in flops),
        "cloud_flops": sum(by_role.get(ON_CLOUD, 0) for by_role in flops),
        "synchronisations": synchronisations,
        "train_s": sum(result.train_s for result in results),
        "loss": _mean_loss(results),
        "accuracy": accuracy,
        "test_loss": test_loss,
        "learning_rate": learning_rate,
    }


def _mean_loss(results: Sequence[Outcome]) -> float | None:
    """Over the examples; None of none. A visit that was lost, or diverged, has no finite loss."""
    loss_sum, examples = 0.0, 0
    for result in results:
        if math.isfinite(result.loss):
            loss_sum += result.loss * result.examples
            examples += result.examples
    return loss_sum / examples if examples else None


def of_clock(elapsed: Elapsed) -> Record:
    """What the round took by the simulated clock; nothing of it is measured."""
    record = elapsed._asdict()
    seconds = record.pop("seconds")
    return {"clock_s": seconds, **record}


def of_serialized(results: Sequence[Outcome]) -> Record:
    """Bytes that really went between processes for a round; nothing where nodes are none.

    The ledger's bytes are the formula's; these were counted where they were serialized. Beside what
    the ledger knows they hold what frozen layers weigh in full precision and, from node to node,
    the controller's mirror of what was trained.
    """
    sent = [result.serialized for result in results if result.serialized is not None]
    if not sent:
        return {}
    return {
        "serialized_to_nodes_bytes": sum(one.to_node for one in sent),
        "serialized_to_controller_bytes": sum(one.to_controller for one in sent),
    }


def of_nodes(scores: Scores | None, merit: str, value: Callable[[Scores], float | None]) -> Record:
    """A model on what each node has held out itself: mean, worst tenth and spread over the nodes.

    The worst tenth is the mean of the worst ceil(nodes / 10); the spread is the standard deviation.

    Args:
      scores: after the round; None where not evaluated.
      merit: accuracy or perplexity.
      value: that of one node's scores; None where it is beyond printing.
    """
    if scores is None or not scores.nodes:
        return {}
    of_node = [None if one is None else value(one) for one in scores.nodes]
    known = [one for one in of_node if one is not None]
    found: Record = {f"node_{merit}": of_node}
    if not known:
        return found
    # The best come first: high accuracies, low perplexities.
    ordered = sorted(known, reverse=merit == "accuracy")
    worst = ordered[-math.ceil(len(known) / 10) :]
    return found | {
        f"node_{merit}_mean": float(np.mean(known)),
        f"node_{merit}_worst_tenth": float(np.mean(worst)),
        f"node_{merit}_spread": float(np.std(known)),
    }


def _last_of_nodes(lines: Sequence[Record]) -> Record:
    """`of_nodes` of the last line that has it."""
    found: Record = {}
    for line in lines:
        own = {name: value for name, value in line.items() if name.startswith("node_")}
        own.pop("node_joules", None)
        found = own or found
    return found


def total_serialized(lines: Sequence[Record]) -> Record:
    """Totals of `of_serialized`; nothing where no line has it."""
    totals: Record = {}
    for name in ("serialized_to_nodes_bytes", "serialized_to_controller_bytes"):
        found = [line[name] for line in lines if name in line]
        if found:
            totals[name] = sum(found)
    return totals


def summary(lines: Sequence[Record], compiled: Compilations) -> Record:
    """Totals over all lines of a run.

    Args:
      lines: from `of_round` and `of_clock`.
      compiled: in all processes of the run.
    """
    totals = {}
    for name in _SUMMED:
        # A line that was written before there was a cloud says nothing of it.
        known = lines
        if name.startswith("cloud_"):
            known = [line for line in lines if name in line]
        totals[name] = sum(line[name] for line in known)
    return {
        **totals,
        "peak_train_bytes": compiled.peak_bytes,
        "compile_s": compiled.seconds,
        "num_compilations": compiled.programs,
        **_last_of_nodes(lines),
    }


def of_accuracy(lines: Sequence[Record], target: float) -> Record:
    """Final and best accuracy, and what it took until it was first at least `target`.

    Args:
      lines: of a run, at least one of them evaluated.
      target: in [0, 1].

    Returns:
      For summary.json; the costs are None where the target was never reached.
    """
    known = [line["accuracy"] for line in lines if line["accuracy"] is not None]
    reached = first_reached(lines, "accuracy", target)
    return {
        "final_accuracy": known[-1],
        "best_accuracy": max(known),
        "target_accuracy": target,
        **_to_target(lines, reached),
    }


def of_perplexity(lines: Sequence[Record], target: float) -> Record:
    """Final and best perplexity, and what it took until it was first at most `target`.

    Args:
      lines: of a run, at least one of them evaluated.
      target: 0 where there is none; then nothing is said about one.

    Returns:
      For summary.json; the costs are None where the target was never reached.
    """
    known = [line["perplexity"] for line in lines if line["perplexity"] is not None]
    found = {"perplexity_after": known[-1], "best_perplexity": min(known)}
    if not target:
        return found
    reached = first_reached(lines, "perplexity", target, lower_is_better=True)
    return {**found, "target_perplexity": target, **_to_target(lines, reached)}


def first_reached(
    lines: Sequence[Record], field: str, target: float, lower_is_better: bool = False
) -> int | None:
    """Index of the first line whose field is at least as good as `target`; None without one.

    Args:
      lines: of a run; the field is None in those of rounds that were not evaluated.
      field: a figure of merit.
      target: for it.
      lower_is_better: of this figure.
    """
    for index, line in enumerate(lines):
        value = line[field]
        if value is None:
            continue
        reached = value <= target if lower_is_better else value >= target
        if reached:
            return index
    return None


def _to_target(lines: Sequence[Record], reached: int | None) -> Record:
    """What all visits up to that line took together."""
    costs: Record = {}
    for name in _SUMMED:
        if reached is None:
            costs[f"{name}_to_target"] = None
        else:
            costs[f"{name}_to_target"] = sum(line[name] for line in lines[: reached + 1])
    return costs
