"""What the comparisons beside the papers' figures have in common.

Their rates are fixed rather than tuned, and all runs of a scale pass the training examples equally
often, whatever a method calls a cycle.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from experiments.reproduction import vision
from experiments.reproduction.cases import (
    Case,
    Method,
    Scale,
    Sources,
    SourcesOf,
    Topic,
    every_seed,
)
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.config import RunConfig

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


def topic(
    name: str,
    methods: Mapping[str, Method],
    partitions: Mapping[str, str],
    scales: Mapping[str, Scale],
    *,
    of_figure: Callable[[str, Scale], list[Case]],
    config: Callable[[Case, Scale, Sources, float], RunConfig],
    sources: SourcesOf = vision.sources,
    public: Callable[[str], str] = vision.public,
    recorded: tuple[str, ...] = (),
) -> Topic:
    """A topic with one figure, called as it is; of images where nothing else is said.

    The arguments are the attributes of `Topic`.
    """
    return Topic(
        name=name,
        suffix=f"_{name}",
        figures=(name,),
        methods=methods,
        partitions=partitions,
        scales=scales,
        of_figure=of_figure,
        config=config,
        sources=sources,
        recorded=recorded,
        hold_out=vision.hold_out,
        public=public,
    )


def every_method(
    methods: Mapping[str, Method], partitions: Iterable[str], scale: Scale
) -> list[Case]:
    """Every method on every partition, all seeds."""
    cases = []
    for partition in partitions:
        cases += [Case(method, partition) for method in methods]
    return every_seed(cases, scale)


_AVERAGING = ("fedavg", "fedprox", "scaffold", "fednova", "fedpart", "progressive")
_ONE_LINE_A_PASS = ("centralised", *_AVERAGING, "splitfed", "accelerated_fl")
_IN_ONE_PLACE = ("badam", "lisa", "hift")


def duration(
    settings: Mapping[str, Any], passes: int, in_turn: int, evaluations: int
) -> dict[str, int]:
    """How long a run lasts that passes all training examples so often, whatever its method.

    A cycle is one pass, but where layers set its length. Between evaluations are lines of metrics:
    rounds of methods that average, else visits.

    Args:
      settings: of the run, algorithm and nodes among them.
      passes: over the examples of all nodes.
      in_turn: layers that take turns to be trained.
      evaluations: evenly spaced, the last one at the end.

    Returns:
      `cycles`, `eval_every`, and what the method itself has to be told.
    """
    algorithm, nodes = settings["algorithm"], settings["nodes"]
    cycles, lines = passes, passes * nodes
    own = {}
    if algorithm in _ONE_LINE_A_PASS:
        lines = passes
    if algorithm == "fedpart":
        # A cycle is some rounds of all layers, and then one for each layer; a round is a pass.
        full = _full_rounds(passes, in_turn)
        own = {"full_rounds": full}
        cycles = passes // (full + in_turn)
    elif algorithm in _IN_ONE_PLACE:
        own = {"periods": in_turn}
        lines = passes * in_turn
    elif algorithm == "snake":
        # A visit passes the examples of one node, or of several side by side; a cycle is as many
        # visits as there are layers in turn. Of several snakes a round is one visit of each.
        cycles = passes * nodes // (in_turn * settings.get("parallel", 1))
        lines = cycles * -(-in_turn // settings.get("snakes", 1))
    return {**own, "cycles": cycles, "eval_every": lines // evaluations}


def _full_rounds(passes: int, layers: int) -> int:
    """The least rounds of all layers in a cycle of FedPart with which its cycles come out even."""
    return next(full for full in itertools.count(1) if passes % (full + layers) == 0)


def image_layers_in_turn(scale: Scale, settings: Mapping[str, Any]) -> int:
    """All layers of the scale's network, but for the first and the last where they always train.

    Args:
      scale: of the study.
      settings: of the run.
    """
    every = len(vision.layer_names(scale))
    return every if settings.get("always_train") == "none" else every - 2


def image_settings(
    case: Case, scale: Scale, flags: Mapping[str, Any], sources: Sources, rate: float
) -> dict[str, Any]:
    """Of a run on images, all but for how long it trains.

    Distillation is off where nothing is said of it.

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
    return without_distillation(given)


def without_distillation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, with distillation off where they do not say it and the method has it."""
    has_it = "distill" in ALGORITHMS[settings["algorithm"]].flags
    return {"distill": "off", **settings} if has_it else dict(settings)
