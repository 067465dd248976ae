"""Learning rates: chosen on a held-out part of the training examples, recorded, read again."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reproduction import cases
from experiments.reproduction.cases import Case, Topic
from experiments.reproduction.runs import Clock, Rates, Study, carry_out
from snake_jax.errors import UserError
from snake_jax.report.runs import read_run

MOST_WIDENED = 6
"""Rates beyond the scale's grid: three decades, after which something else is wrong."""


def rates_file(topic: Topic) -> str:
    """The name of the file of a topic's learning rates."""
    return f"learning_rates{topic.suffix}.json"


def read_rates(results: Path, topic: Topic) -> Rates:
    """What earlier tuning recorded; `{}` of none.

    Raises:
      UserError: the file is damaged.
    """
    file = results / rates_file(topic)
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())["rates"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged; remove it and tune again with --tune") from error


def tune(
    study: Study, figures: Sequence[str], timer: Clock, say: Callable[[str], None], jobs: int = 1
) -> Study:
    """The study with the rate of least validation loss for every method and partition.

    Only where all tuning runs are finished. Also records them (`rates_file`). The validation part
    comes from the training examples: no test example is seen.

    Args:
      study: to tune.
      figures: for whose runs.
      timer: asked after every round.
      say: is told of progress, line by line.
      jobs: runs at a time, each in a thread.
    """
    study.topic.hold_out(study.scale, study.sources)
    wanted = tried(study, figures)

    # A best rate at an edge says that the grid was too narrow: it is widened there, a rate at a
    # time, until a rate on either side of the best one is worse.
    while wanted:
        carry_out(study, wanted, timer, say, jobs)
        rates = _rates(study, wanted, say)
        study = study._replace(rates=rates)
        more = _wider(study, wanted)
        for case in more:
            say(f"{case.method}, {case.partition}: the best lies at the edge; {case.tried:g} too")
        if not more or not timer.going_on():
            break
        wanted += more
    _write_rates(study, study.rates)
    return study


def tried(study: Study, figures: Sequence[str]) -> list[Case]:
    """The tuning runs of the scale's grid, and those by which it was widened before."""
    found = cases.tuning(study.topic, figures, study.scale)
    for method, partition in _groups(found):
        recorded = study.rates.get(f"{method}/{partition}")
        if recorded is None:
            continue
        for rate in map(float, recorded["validation_loss"]):
            case = _at(study, method, partition, rate)
            if case not in found:
                found.append(case)
    return found


def _at(study: Study, method: str, partition: str, rate: float) -> Case:
    """The tuning run of a rate, of one seed and the least E."""
    scale = study.scale
    return Case(method, partition, min(scale.cycles), scale.seeds[0], tried=rate)


def _groups(wanted: Sequence[Case]) -> dict[tuple[str, str], list[Case]]:
    """The runs that one choice is made of: a method's on one partition."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in wanted:
        key = (case.method, case.partition)
        groups.setdefault(key, []).append(case)
    return groups


def _losses(study: Study, group: Sequence[Case]) -> dict[float, float | None]:
    """Of a choice: each rate's, from the lowest."""
    found = {study.rate(case): _validation_loss(study, case) for case in group}
    return {rate: found[rate] for rate in sorted(found)}


def _rates(study: Study, wanted: Sequence[Case], say: Callable[[str], None]) -> Rates:
    """Those that there were, and every choice whose runs are finished."""
    rates = dict(study.rates)
    for (method, partition), group in _groups(wanted).items():
        if not all(study.finished(case) for case in group):
            say(f"{method}, {partition}: not tuned to the end")
            continue
        choice = _choice(_losses(study, group))
        if choice is None:
            stays = f"{study.scale.rates[method]:g}"
            say(f"{method}, {partition}: every learning rate diverged; the scale's {stays} stays")
            continue
        rates[f"{method}/{partition}"] = choice
        say(f"{method}, {partition}: learning rate {choice['chosen']:g}")
    return rates


def _wider(study: Study, wanted: Sequence[Case]) -> list[Case]:
    """The runs that are still needed for no best rate to lie at an edge."""
    more = []
    for (method, partition), group in _groups(wanted).items():
        if len(group) >= len(study.scale.grid) + MOST_WIDENED:
            continue
        if not all(study.finished(case) for case in group):
            continue
        rate = beyond(_losses(study, group))
        if rate is not None:
            more.append(_at(study, method, partition, rate))
    return more


def beyond(losses: Mapping[float, float | None]) -> float | None:
    """The next rate where the best is the lowest or the highest that was tried; else None.

    Rates go 1, 3, 10, 30. Where all diverged, and at a tie, the lower side is the better one.

    Args:
      losses: of each rate; None where it diverged.
    """
    choice = _choice(losses)
    lowest, highest = min(losses), max(losses)
    if choice is None or choice["chosen"] == lowest:
        return _step(lowest, -1)
    return _step(highest, 1) if choice["chosen"] == highest else None


def _step(rate: float, direction: int) -> float:
    """The next of 1, 3, 10, 30, ..., up or down."""
    # Their logarithms are about half apart.
    half_decades = round(2 * math.log10(rate)) + direction
    decade, upper = divmod(half_decades, 2)
    return float(f"{3 if upper else 1}e{decade}")


def _choice(losses: Mapping[float, float | None]) -> dict[str, Any] | None:
    """The learning rate of least loss, as it is recorded; None where all diverged."""
    chosen, least = None, math.inf
    for rate, loss in losses.items():
        if loss is not None and (chosen is None or loss < least):
            chosen, least = rate, loss
    if chosen is None:
        return None
    return {
        "chosen": chosen,
        "validation_loss": {f"{rate:g}": loss for rate, loss in losses.items()},
        "at_the_edge_of_the_grid": chosen in (min(losses), max(losses)),
    }


def _validation_loss(study: Study, case: Case) -> float | None:
    """At the end of a tuning run; None of one that diverged on its way.

    Of language it is the logarithm of perplexity.
    """
    metrics = read_run(study.folder(case)).metrics
    if any(record["event"] == "skipped" for record in metrics):
        return None
    return metrics[-1]["test_loss"]


def _write_rates(study: Study, rates: Rates) -> None:
    scale = study.scale
    how = (
        f"each rate of {list(scale.grid)}, and beyond until no best one lies at an edge, for "
        f"{scale.tune_cycles} cycles of E = "
        f"{min(scale.cycles)}, seed {scale.seeds[0]}, evaluated on {scale.validation:g} of the "
        f"training examples, which were held out; chosen by the loss there"
    )
    about = {"scale": study.scale_name, "how": how, "rates": rates}
    text = json.dumps(about, indent=2)
    study.results.mkdir(parents=True, exist_ok=True)
    file = study.results / rates_file(study.topic)
    file.write_text(text + "\n")
