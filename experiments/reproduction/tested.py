"""Claims, and what runs with the same seeds say of them: the tables and the rule of `verdict`."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from experiments.reproduction import verdict
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.runs import Study
from experiments.reproduction.verdict import CANNOT_TELL, DOES_NOT_HOLD, Paired
from snake_jax.cli.accounting_tables import table


class Claim(NamedTuple):
    """That one side is better than another.

    Attributes:
      text: what it says.
      side: methods that differ in their learning rate alone, from the lowest: the best speaks for
        all.
      rival: the other side's, likewise.
      partitions: on which it is tested.
      margin: of merit (points of accuracy, or nats) above which it holds; below zero for what
        saves something and may cost as much.
      share: of the rival's merit, which the margin is counted from.
      merit: of a run's numbers, the one that it is about; more is better.
      unit: of merit.
    """

    text: str
    side: tuple[str, ...]
    rival: tuple[str, ...]
    partitions: tuple[str, ...]
    margin: float = 0.0
    share: float = 1.0
    merit: str = "merit"
    unit: str = "points"


AtEdge = Callable[[str, str], bool]
"""(method, partition): whether tuning ended at an edge of its grid of learning rates."""


def never(method: str, partition: str) -> bool:
    """Of methods whose rates were not tuned."""
    del method, partition
    return False


def tuned_at_edge(study: Study) -> AtEdge:
    """What a study's tuning recorded."""

    def at_edge(method: str, partition: str) -> bool:
        tuned = study.rates.get(f"{method}/{partition}", {})
        return bool(tuned.get("at_the_edge_of_the_grid", False))

    return at_edge


class Told(NamedTuple):
    """What the runs say of a claim on one partition.

    Attributes:
      claim: which.
      partition: on which.
      side: the method that spoke for it, and the rival's.
      rival: likewise.
      found: differences of merit, in the direction of the claim.
      verdict: by the rule, with the margin of the claim.
      at_edge: the sides whose best learning rate lies at an edge of those that were run.
    """

    claim: Claim
    partition: str
    side: str
    rival: str
    found: Paired
    verdict: str
    at_edge: tuple[str, ...]


def told(claims: Sequence[Claim], rows: Sequence[Numbers], at_edge: AtEdge = never) -> list[Told]:
    """What finished runs say of each claim, on each of its partitions, where both sides ran.

    Args:
      claims: each about a number of the rows.
      rows: of the runs.
      at_edge: of rates that were tuned.
    """
    lines = []
    for claim in claims:
        finished: dict[tuple[str, str], list[Numbers]] = {}
        for row in rows:
            if row["finished"] and row[claim.merit] is not None:
                key = row["method"], row["partition"]
                finished.setdefault(key, []).append(row)
        for partition in claim.partitions:
            line = _told(claim, partition, finished, at_edge)
            if line is not None:
                lines.append(line)
    return lines


def _told(
    claim: Claim,
    partition: str,
    finished: Mapping[tuple[str, str], list[Numbers]],
    at_edge: AtEdge,
) -> Told | None:
    side, side_at_edge = _best(claim, claim.side, partition, finished, at_edge)
    rival, rival_at_edge = _best(claim, claim.rival, partition, finished, at_edge)
    if not side or not rival:
        return None
    rivals = []
    for row in finished[rival, partition]:
        rivals.append({**row, claim.merit: claim.share * row[claim.merit]})
    differences = verdict.differences(finished[side, partition], rivals, claim.merit)
    if not differences:
        return None
    found = verdict.paired(differences, claim.margin)
    said = verdict.verdict(found, claim.margin, rival_at_edge)
    # As a rival whose rate lies at an edge may be better than it looks, so may the side itself.
    if said == DOES_NOT_HOLD and side_at_edge:
        said = CANNOT_TELL
    edges = []
    if side_at_edge:
        edges.append(side)
    if rival_at_edge:
        edges.append(rival)
    return Told(claim, partition, side, rival, found, said, tuple(edges))


def _best(
    claim: Claim,
    methods: Sequence[str],
    partition: str,
    finished: Mapping[tuple[str, str], list[Numbers]],
    at_edge: AtEdge,
) -> tuple[str, bool]:
    """The method of the greatest mean merit, empty of none; whether its rate lies at an edge.

    So it does of several rates that were run where it is the first or the last.
    """
    merits = {}
    for method in methods:
        runs = finished.get((method, partition))
        if runs:
            merits[method] = fmean(row[claim.merit] for row in runs)
    if not merits:
        return "", False
    best = max(merits, key=merits.__getitem__)
    is_outermost = len(methods) > 1 and best in (methods[0], methods[-1])
    return best, is_outermost or at_edge(best, partition)


def as_json(lines: Sequence[Told]) -> dict[str, Any]:
    """Claims for a figure's JSON."""
    content = []
    for line in lines:
        content.append(
            {
                "claim": line.claim.text,
                "partition": line.partition,
                "side": line.side,
                "rival": line.rival,
                "margin": line.claim.margin,
                "share": line.claim.share,
                "unit": line.claim.unit,
                "verdict": line.verdict,
                "at_edge": list(line.at_edge),
                **line.found._asdict(),
            }
        )
    return {"claims": content}


def claims_table(
    lines: Sequence[Told], partitions: Mapping[str, str], methods: Mapping[str, str] | None = None
) -> str:
    """A line for each claim and partition.

    Args:
      lines: from `told`.
      partitions: how they are called.
      methods: how the sides are called; None: the sides are labels already.
    """

    def called(side: str) -> str:
        return side if methods is None else methods[side]

    body = []
    for line in lines:
        found = line.found
        pair = f"{called(line.side)} against {called(line.rival)}"
        if line.at_edge:
            edges = ", ".join(called(side) for side in line.at_edge)
            pair += f" (at the edge of the rates: {edges})"
        body.append(
            [
                line.claim.text,
                partitions[line.partition],
                pair,
                f"{found.mean:+.3g} {line.claim.unit}",
                f"{found.deviation:.2g}" if found.seeds > 1 else "",
                str(found.seeds),
                "" if found.p is None else f"{found.p:.2g}",
                line.verdict,
            ]
        )
    heads = ["claim", "data", "runs", "difference", "deviation", "seeds"]
    return table([*heads, "p", "verdict"], body)


def labels(study: Study) -> dict[str, str]:
    """How a topic's methods are called, as `claims_table` takes it."""
    return {name: method.label for name, method in study.topic.methods.items()}
