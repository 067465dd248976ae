"""The numbers of a run: a line of metrics.jsonl a round, summary.json at the end. See
docs/accounting.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from snake_jax.algorithms.chain import ON_SERVER
from snake_jax.algorithms.visits import Outcome, Round
from snake_jax.engines.contract import Compilations
from snake_jax.nodes.clock import Elapsed
from snake_jax.nodes.ledger import Transfer, bytes_up_down

Record = dict[str, Any]

_SUMMED = (
    "iterations",
    "examples",
    "bytes_up",
    "bytes_down",
    "train_flops",
    "server_flops",
    "synchronisations",
    "train_s",
    "clock_s",
    "wait_s",
    "away_s",
    "drops",
    "node_joules",
    "server_joules",
)


def of_round(
    visits: Round,
    results: Sequence[Outcome],
    transfers: Sequence[Transfer],
    scores: tuple[float | None, float | None],
    learning_rate: float,
    flops: Sequence[Mapping[int, int]],
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
    """
    first = visits[0]
    losses = [(r.loss, r.examples) for r in results if math.isfinite(r.loss)]
    examples = sum(n for _, n in losses)
    up, down = bytes_up_down(transfers)
    return {
        "visit": first.turn,
        "cycle": first.cycle,
        "node": first.node if len(visits) == 1 else [visit.node for visit in visits],
        "layers": list(first.layers),
        "iterations": sum(r.iterations for r in results),
        "examples": sum(r.examples for r in results),
        "bytes_up": up,
        "bytes_down": down,
        "train_flops": sum(sum(by_role.values()) for by_role in flops),
        "server_flops": sum(by_role.get(ON_SERVER, 0) for by_role in flops),
        "synchronisations": synchronisations,
        "train_s": sum(r.train_s for r in results),
        "loss": sum(loss * n for loss, n in losses) / examples if examples else None,
        "accuracy": scores[0],
        "test_loss": scores[1] if scores[1] is None or math.isfinite(scores[1]) else None,
        "learning_rate": learning_rate,
    }


def of_clock(elapsed: Elapsed) -> Record:
    """What the round took by the simulated clock; nothing of it is measured."""
    return {
        ("clock_s" if name == "seconds" else name): value
        for name, value in elapsed._asdict().items()
    }


def summary(lines: Sequence[Record], compiled: Compilations) -> Record:
    """Totals over all lines of a run.

    Args:
      lines: from `of_round`.
      compiled: in all processes of the run.
    """
    return {
        **{name: sum(line[name] for line in lines) for name in _SUMMED},
        "peak_train_bytes": compiled.peak_bytes,
        "compile_s": compiled.seconds,
        "num_compilations": compiled.programs,
    }


def of_accuracy(lines: Sequence[Record], target: float) -> Record:
    """Final and best accuracy, and what it took until it was first at least `target`; None where it
    never was.

    Args:
      lines: from `of_round`, at least one of them evaluated.
      target: in [0, 1].
    """
    accuracies = [line["accuracy"] for line in lines if line["accuracy"] is not None]
    reached = next((i for i, line in enumerate(lines) if (line["accuracy"] or 0.0) >= target), None)
    best = {"final_accuracy": accuracies[-1], "best_accuracy": max(accuracies)}
    return best | {"target_accuracy": target, **_to_target(lines, reached)}


def of_perplexity(lines: Sequence[Record], target: float) -> Record:
    """The same of perplexity, which falls; a target of 0 is none."""
    values = [line["perplexity"] for line in lines if line["perplexity"] is not None]
    reached = next(
        (i for i, line in enumerate(lines) if (line["perplexity"] or math.inf) <= target), None
    )
    best = {"perplexity_after": values[-1], "best_perplexity": min(values)}
    return best | ({"target_perplexity": target, **_to_target(lines, reached)} if target else {})


def _to_target(lines: Sequence[Record], reached: int | None) -> Record:
    upto = () if reached is None else lines[: reached + 1]
    return {
        f"{name}_to_target": sum(line[name] for line in upto) if upto else None for name in _SUMMED
    }
