"""What the papers claim of figures 5, 7 and 8, and what the runs of those figures say of it."""

from collections.abc import Sequence

from experiments.reproduction import tables, tested
from experiments.reproduction.cases import Case, Scale
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.runs import Study
from experiments.reproduction.tested import Claim, Told
from experiments.reproduction.vision import PARTITIONS

OF_FL = 0.95
"""Magazine, on figure 5: Snake's accuracy exceeds "95 percent of that of FL"."""
INTERRUPTED_KEEPS = {"iid": 0.988, "dirichlet": 0.978}
"""Magazine, on figure 7."""
_COSTS = {
    "sooner": ("iterations_per_node_to_target", 1),
    "cheaper": ("bytes_to_target", 1e6),
}
"""Merit to the number of a run that it is less of, and its unit."""
_BOTH = tuple(PARTITIONS)
_COSTS_POINTS = -1.0
"""What is as good as another order may cost so many points."""


def told(study: Study, figure: str, rows: Sequence[Numbers]) -> list[Told]:
    """What the runs say of a figure's claims; nothing of a figure without claims.

    Args:
      study: whose runs.
      figure: of the study.
      rows: from `tables.of_run`.
    """
    if figure not in _CLAIMS:
        return []
    # A side is a case of any seed and partition, by its label.
    sides = []
    method_of = {}
    for row in rows:
        case = Case(row["method"], "", row["epochs"], 0, row["order"], row["interrupted"])
        label = tables.label(case)
        method_of[label] = row["method"]
        side = {**row, "method": label, "points": 100 * row["final_accuracy"]}
        for merit, (cost, unit) in _COSTS.items():
            paid = row[cost]
            side[merit] = None if paid is None else -paid / unit
        sides.append(side)
    tuned = tested.tuned_at_edge(study)

    def at_edge(label: str, partition: str) -> bool:
        return tuned(method_of[label], partition)

    return tested.told(_CLAIMS[figure](study.scale), sides, at_edge)


def _of_frameworks(scale: Scale) -> list[Claim]:
    """Figure 5's, for each number of local epochs."""
    claims = []
    for epochs in sorted(scale.cycles):
        snake = (_label("snake", epochs),)
        fl = (_label("fedavg", epochs),)
        accelerated = (_label("accelerated_fl", epochs),)
        reaches = f"Snake reaches {100 * scale.target:.0f} % after fewer"
        claims += [
            _points("Snake is above 95 % of FL", snake, fl)._replace(share=OF_FL),
            _points("Snake is above FL", snake, fl),
            _points("Snake is above Accelerated FL", snake, accelerated),
            Claim(
                f"{reaches} iterations of a node",
                snake,
                fl,
                _BOTH,
                merit="sooner",
                unit="iterations",
            ),
            Claim(f"{reaches} bytes", snake, fl, _BOTH, merit="cheaper", unit="MB"),
        ]
    return claims


def _of_interruption(scale: Scale) -> list[Claim]:
    """Figure 7's."""
    few = min(scale.cycles)
    normal = (_label("snake", few),)
    interrupted = (tables.label(Case("snake", "", few, interrupted=True)),)
    claims = []
    for partition, share in INTERRUPTED_KEEPS.items():
        text = f"interrupted, it is above {100 * share:.1f} % of what it is else"
        claim = _points(text, interrupted, normal)
        claims.append(claim._replace(partitions=(partition,), share=share))
    return claims


def _of_orders(scale: Scale) -> list[Claim]:
    """Figure 8's: IID reverse is worse and random is not; Non-IID sequential is the best."""
    few = min(scale.cycles)
    sequential, random, reverse = (
        (tables.label(Case("snake", "", few, order=order)),)
        for order in ("sequential", "random", "reverse")
    )
    alike = "random order costs less than a point"
    better = "sequential order is above random"
    return [
        _points("sequential order is above reverse", sequential, reverse),
        _points(alike, random, sequential)._replace(partitions=("iid",), margin=_COSTS_POINTS),
        _points(better, sequential, random)._replace(partitions=("dirichlet",)),
    ]


_CLAIMS = {"5": _of_frameworks, "7": _of_interruption, "8": _of_orders}


def _label(method: str, epochs: int) -> str:
    return tables.label(Case(method, "", epochs))


def _points(text: str, side: tuple[str, ...], rival: tuple[str, ...]) -> Claim:
    """On points of final accuracy, both partitions."""
    return Claim(text, side, rival, _BOTH, merit="points")
