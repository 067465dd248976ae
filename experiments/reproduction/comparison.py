"""What the comparisons beside the papers' figures have in common.

Their rates are fixed rather than tuned, and all runs of a scale pass the training examples equally
often, whatever a method calls a cycle.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.reproduction.cases import Case, Method, Scale, Sources, every_seed

NO_TUNING: dict[str, Any] = {"grid": (), "tune_cycles": 0, "validation": 0.0}
"""Of a scale whose rates are fixed."""
IMAGE_PARTITIONS = {"iid": "IID", "dirichlet": "Dirichlet(0.3)"}
ALPHA = 0.3


def image_scales(common: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Scale]:
    """The sizes of the comparisons on images: all have the network, the data and the passes alike.

    Args:
      common: settings of every run beside network, nodes and batch.
      rates: learning rate of each method.
    """
    smoke = {"model": "mlp", "width": 0.25, "nodes": 4, "batch_size": 16}
    cpu = {"model": "cnn", "width": 1.0, "nodes": 10, "batch_size": 16}
    return {
        # Whether everything works; its numbers say nothing.
        "smoke": Scale(
            settings={**common, **smoke},
            data="digits",
            train_examples=96,
            cycles={1: 6},
            seeds=(0,),
            target=0.0,
            rates=rates,
            step_s=0.02,
            **NO_TUNING,
        ),
        # A run of FedAvg takes 22 s of CPU time.
        "cpu": Scale(
            settings={**common, **cpu},
            data="cifar10",
            train_examples=4_000,
            cycles={1: 12},
            seeds=(0, 1, 2),
            target=0.0,
            rates=rates,
            step_s=0.008,
            **NO_TUNING,
        ),
    }


def every_method(
    methods: Mapping[str, Method], partitions: Iterable[str], scale: Scale
) -> list[Case]:
    """Every method on every partition, all seeds."""
    cases = []
    for partition in partitions:
        cases += [Case(method, partition) for method in methods]
    return every_seed(cases, scale)


def full_rounds(passes: int, layers: int) -> int:
    """Of FedPart, the least rounds of all layers in a cycle that make its cycles come out even.

    A cycle is so many rounds, and then one for each layer; a round is a pass.
    """
    return next(full for full in itertools.count(1) if passes % (full + layers) == 0)


def image_settings(
    case: Case, scale: Scale, flags: Mapping[str, Any], sources: Sources, rate: float
) -> dict[str, Any]:
    """Of a run on images, all but for how long it trains.

    Args:
      case: of the study.
      scale: that it is run at.
      flags: of its method; the scale's settings may name an algorithm, these overrule it.
      sources: where the data is.
      rate: the learning rate.
    """
    given = {
        **scale.settings,
        **flags,
        "dataset": sources["data"],
        "partition": case.partition,
        "train_examples": scale.train_examples,
        "learning_rate": rate,
        "seed": case.seed,
    }
    if case.partition == "iid":
        del given["alpha"]
    return given
