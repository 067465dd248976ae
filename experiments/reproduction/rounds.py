"""FedAvg where its authors measured it: rounds of communication to an accuracy on MNIST.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017: 100 clients, of whom a share C trains in a round for E epochs with batches of B; SGD without
momentum; for each row the learning rate that is best. A row's number is the round in which the
best test accuracy so far crosses the target, interpolated between rounds. Here are rows of the 2NN
(table 1) with B = 10: IID those of up to 20 clients a round, and Non-IID, where clients hold two
digits each, that of ten. The CNN (table 2) is too dear for a CPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.reproduction import comparison
from experiments.reproduction.cases import Case, Given, Method, Scale, Sources, every_seed
from experiments.reproduction.run_numbers import Numbers
from experiments.reproduction.tested import Claim
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError

FIGURE = "rounds"
PARTITIONS = {"iid": "IID", "pathological": "Non-IID"}
MNIST = "tfds:mnist"
MOST_TIMES = 1.5
"""A run that has not come so far in so many times the published rounds ends."""
MOST_ROUNDS_MORE = 0.1
"""Of the published rounds: what still counts as no slower."""


class Row(NamedTuple):
    """A row of the paper's tables, with E = 1 and B = 10.

    Attributes:
      label: how it is called here.
      model: the network.
      clients: of 100, in a round.
      target: test accuracy.
      rates: learning rates that are run, from the least, a factor of 10^(1/3) apart.
      published: rounds to the target on each partition that is run.
    """

    label: str
    model: str
    clients: int
    target: float
    rates: tuple[float, ...]
    published: dict[str, int]


_RATES = (0.0464, 0.1, 0.215, 0.464)
ROWS = {
    "2nn_1": Row("2NN, 1 client", "2nn", 1, 0.97, _RATES, {"iid": 316}),
    "2nn_10": Row("2NN, 10 clients", "2nn", 10, 0.97, _RATES, {"iid": 87, "pathological": 664}),
    "2nn_20": Row("2NN, 20 clients", "2nn", 20, 0.97, _RATES, {"iid": 77}),
}
"""Table 1, E = 1 and B = 10 of the 2NN; C = 0, 0.1 and 0.2."""


def _method(row: str, rate: float) -> str:
    return f"{row}_{rate:g}"


METHODS = {
    _method(name, rate): Method(f"{row.label}, rate {rate:g}")
    for name, row in ROWS.items()
    for rate in row.rates
}
_NAME_OF = {_method(name, rate): name for name, row in ROWS.items() for rate in row.rates}
ROW_OF = {method: ROWS[name] for method, name in _NAME_OF.items()}
"""Of a method."""
_RATE_OF = {_method(name, rate): rate for name, row in ROWS.items() for rate in row.rates}

SCALES = {
    # Whether everything works; its numbers say nothing.
    "smoke": Scale(
        settings={"nodes": 10, "width": 0.1, "batch_size": 10},
        data="digits",
        train_examples=100,
        cycles={1: 3},
        seeds=(0,),
        target=0.0,
        rates=_RATE_OF,
        step_s=0.02,
        **comparison.NO_TUNING,
    ),
    # The rounds are the paper's, and so are width and batch; the cycles are for estimates, passes
    # over all 60,000 images of the most frequent row.
    "cpu": Scale(
        # Pixels from 0 to 1, as they come.
        settings={
            "nodes": 100,
            "width": 1.0,
            "batch_size": 10,
            "pixel_mean": "0",
            "pixel_std": "1",
        },
        data=MNIST,
        train_examples=0,
        cycles={1: 9},
        seeds=(0, 1, 2),
        target=0.0,
        rates=_RATE_OF,
        # The 2NN's, on one core of an Intel Xeon.
        step_s=0.0004,
        **comparison.NO_TUNING,
    ),
}


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """Every rate of every row, on the partitions that the row is run on."""
    del figure
    found = []
    for row, one in ROWS.items():
        for partition in one.published:
            found += [Case(_method(row, rate), partition) for rate in one.rates]
    return every_seed(found, scale)


def config_of(case: Case, scale: Scale, sources: Sources, rate: float) -> ImageConfig:
    """The configuration of a case's run, evaluated every round, and over at the target.

    Args:
      case: of the study.
      scale: that it is run at.
      sources: where the data is.
      rate: the learning rate.
    """
    row = ROW_OF[case.method]
    nodes = scale.settings["nodes"]
    return ImageConfig(
        **scale.settings,
        algorithm="fedavg",
        model=row.model,
        dataset=sources["data"],
        train_examples=scale.train_examples,
        partition=case.partition,
        nodes_per_round=max(1, round(row.clients / 100 * nodes)),
        cycles=most_rounds(case, scale),
        optimizer="sgd",
        learning_rate=rate,
        lr_schedule="constant",
        momentum=0.0,
        clip_norm=0.0,
        executor="scan",
        stop_accuracy=row.target,
        on_divergence="skip",
        seed=case.seed,
    )


def most_rounds(case: Case, scale: Scale) -> int:
    """After how many rounds a run ends without the target."""
    if scale.train_examples:
        return scale.cycles[1]
    published = ROW_OF[case.method].published[case.partition]
    return round(MOST_TIMES * published)


def rounds_to(target: float, accuracies: Sequence[float] | np.ndarray) -> float | None:
    """When the best accuracy so far crosses the target, as the paper counts it.

    Args:
      target: accuracy.
      accuracies: after each round, from the first.

    Returns:
      Rounds, interpolated between two; None where it is not crossed.
    """
    best = np.maximum.accumulate(np.asarray(accuracies))
    (reached,) = np.nonzero(best >= target)
    if not reached.size:
        return None
    last = int(reached[0])
    if last == 0:
        return 1.0
    before, after = best[last - 1], best[last]
    # Round `last` (counted from 1) has the accuracy `before`, the one after it `after`.
    return last + float((target - before) / (after - before))


def claims() -> list[Claim]:
    """A row is reached in no more rounds than published, a tenth allowed."""
    found = []
    for name, row in ROWS.items():
        side = tuple(_method(name, rate) for rate in row.rates)
        for partition, published in row.published.items():
            text = f"{row.label}: at most a tenth more rounds than published"
            margin = -MOST_ROUNDS_MORE * published
            found.append(Claim(text, side, (name,), (partition,), margin, unit="rounds"))
    return found


def with_published(rows: Sequence[Numbers]) -> list[Numbers]:
    """Runs, and beside them the published rounds as runs with the same seeds.

    Merit is rounds with the sign turned, so that more is better; a run that ended without the
    target has its last round, which is too few.

    Args:
      rows: of the runs.
    """
    found = []
    published: dict[tuple[str, str, int], Numbers] = {}
    for row in rows:
        found.append({**row, "merit": -row["rounds"]})
        name, partition, seed = _NAME_OF[row["method"]], row["partition"], row["seed"]
        published[name, partition, seed] = {
            "method": name,
            "partition": partition,
            "seed": seed,
            "finished": True,
            "merit": -float(ROWS[name].published[partition]),
        }
    return [*found, *published.values()]


def sources(name: str, scale: Scale, given: Given) -> Sources:
    """Where MNIST is.

    Raises:
      UserError: it is of no kind that the study takes.
    """
    del name
    source = given.data or scale.data
    if not source.startswith("npz:") and source != scale.data:
        raise UserError(
            f"--data={source}: --figure={FIGURE} wants MNIST, {MNIST} (downloads it) or npz:FILE "
            "with train_x, train_y, test_x, test_y"
        )
    return {"data": source}


def public(source: str) -> str:
    """The data set's name without a path of this machine."""
    return MNIST if source.startswith("npz:") else source


TOPIC = comparison.topic(
    FIGURE,
    METHODS,
    PARTITIONS,
    SCALES,
    of_figure=of_figure,
    config=config_of,
    sources=sources,
    public=public,
)
