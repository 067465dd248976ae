"""What the papers claim of figures 6 and 9, and what the runs of those figures say of it.

A run's merit is the logarithm of its perplexity, in nats and with the sign turned: a factor between
the perplexities of two runs is a difference of their merits.
"""

import math
from collections.abc import Mapping, Sequence

from experiments.reproduction import language, tested
from experiments.reproduction.cases import Scale
from experiments.reproduction.language import FL_OF, METHODS, UNDISTILLED
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.runs import Study
from experiments.reproduction.tested import Claim, Told

Finals = Mapping[tuple[str, int, int], float]
"""(method, E, seed) to the final perplexity of a finished run."""


def told(study: Study, figure: str, rows: Sequence[Numbers]) -> list[Told]:
    """What the runs say of a figure's claims.

    Args:
      study: whose runs.
      figure: 6 or 9.
      rows: from `language_tables.of_runs`.
    """
    # A side is a method with an E, by its label. What a label's runs trained with is asked where
    # tuning ended at an edge.
    sides = []
    trained_by: dict[str, tuple[str, ...]] = {}
    for row in rows:
        label = _label(row["method"], row["epochs"])
        trained_by[label] = (row["method"],)
        sides.append({**row, "method": label, "nats": -math.log(row["perplexity_after"])})
    for lead in _leads(rows):
        method, epochs = lead["method"], lead["epochs"]
        label = _lead(method, epochs)
        trained_by[label] = (method, FL_OF[method])
        sides.append({**lead, "method": label})
    tuned = tested.tuned_at_edge(study)

    def at_edge(label: str, partition: str) -> bool:
        return any(tuned(method, partition) for method in trained_by[label])

    return tested.told(_claims(study.scale, language.FIGURES[figure]), sides, at_edge)


def _claims(scale: Scale, partition: str) -> list[Claim]:
    """Magazine, on figures 6 and 9: Snake's perplexity declines faster than FL's, and the more so
    the more local epochs; distillation keeps what was learned.
    """
    claims = []
    few, many = min(scale.cycles), max(scale.cycles)
    for epochs in sorted(scale.cycles):
        for method, fl in FL_OF.items():
            text = "after as many passes Snake's perplexity is lower than FL's"
            claims.append(_nats(text, _label(method, epochs), _label(fl, epochs), partition))
        for distilled, plain in UNDISTILLED.items():
            text = "distillation lowers Snake's perplexity"
            sides = _label(distilled, epochs), _label(plain, epochs)
            claims.append(_nats(text, *sides, partition))
    if few < many:
        for method in FL_OF:
            text = "Snake gains on FL with more local epochs"
            claims.append(_nats(text, _lead(method, many), _lead(method, few), partition))
    return claims


def _nats(text: str, side: str, rival: str, partition: str) -> Claim:
    return Claim(text, (side,), (rival,), (partition,), merit="nats", unit="nats")


def _leads(rows: Sequence[Numbers]) -> list[Numbers]:
    """By how many nats each finished run is ahead of FL's run of the same E and seed."""
    fl: Finals = {
        (row["method"], row["epochs"], row["seed"]): row["perplexity_after"]
        for row in rows
        if row["finished"] and row["method"] in FL_OF.values()
    }
    leads = []
    for row in rows:
        rival = fl.get((FL_OF.get(row["method"], ""), row["epochs"], row["seed"]))
        if rival is not None:
            leads.append({**row, "nats": math.log(rival / row["perplexity_after"])})
    return leads


def _label(method: str, epochs: int) -> str:
    return f"{METHODS[method].label}, E = {epochs}"


def _lead(method: str, epochs: int) -> str:
    return f"lead of {_label(method, epochs)}"
