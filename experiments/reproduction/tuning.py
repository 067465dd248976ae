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
    tried = cases.tuning(study.topic, figures, study.scale)
    study.topic.hold_out(study.scale, study.sources)
    carry_out(study, tried, timer, say, jobs)

    # The runs that one choice is made of: a method's on one partition.
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in tried:
        key = (case.method, case.partition)
        groups.setdefault(key, []).append(case)

    rates = dict(study.rates)
    for (method, partition), group in groups.items():
        if not all(study.finished(case) for case in group):
            say(f"{method}, {partition}: not tuned to the end")
            continue
        losses = {study.rate(case): _validation_loss(study, case) for case in group}
        choice = _choice(losses, study.scale.grid)
        if choice is None:
            stays = f"{study.scale.rates[method]:g}"
            say(f"{method}, {partition}: every learning rate diverged; the scale's {stays} stays")
            continue
        rates[f"{method}/{partition}"] = choice
        say(f"{method}, {partition}: learning rate {choice['chosen']:g}")
    _write_rates(study, rates)
    return study._replace(rates=rates)


def _choice(losses: Mapping[float, float | None], grid: Sequence[float]) -> dict[str, Any] | None:
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
        "at_the_edge_of_the_grid": chosen in (min(grid), max(grid)),
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
        f"each rate of {list(scale.grid)} for {scale.tune_cycles} cycles of E = "
        f"{min(scale.cycles)}, seed {scale.seeds[0]}, evaluated on {scale.validation:g} of the "
        f"training examples, which were held out; chosen by the loss there"
    )
    about = {"scale": study.scale_name, "how": how, "rates": rates}
    text = json.dumps(about, indent=2)
    study.results.mkdir(parents=True, exist_ok=True)
    file = study.results / rates_file(study.topic)
    file.write_text(text + "\n")
