"""What is run for each figure at each scale: a table of scales, and cases that become configurations."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from snake_jax import models
from snake_jax.algorithms import ALGORITHMS
from snake_jax.config import Config
from snake_jax.layers import resolve_layers
from snake_jax.schedule import Plan, serpentine


class Method(NamedTuple):
    """How a method is called in pictures and tables, and its own flags."""

    label: str
    flags: Mapping[str, Any] = {}


METHODS = {
    "fedavg": Method("FL"),
    "accelerated_fl": Method("Accelerated FL", {"cut": "2"}),
    "snake": Method("Snake Learning"),
    "sequential": Method("Sequential"),
    "split": Method("Split Learning", {"cut": "2"}),
    "splitfed": Method("SplitFed", {"cut": "2"}),
    "random_walking_snakes": Method("Random Walking Snakes", {"snake_length": 3}),
}
COMPARED = ("fedavg", "accelerated_fl", "snake")  # in figure 5
PARTITIONS = {"iid": "IID", "dirichlet": "Non-IID"}
ORDERS = ("sequential", "random", "reverse")
FIGURES = ("2", "4", "5", "7", "8")
IMAGE, CLASSES, _CIFAR10 = (32, 32, 3), 10, 50_000
INTERRUPTED_LAYER = 5  # the papers', counted from 1
INTERRUPTED_AT = 0.5  # share of its visit's steps after which the node is lost


class Scale(NamedTuple):
    """One size of the study.

    Attributes:
      settings: of every run.
      data: the data set where no `--data` is given.
      train_examples: over all nodes; 0: as many as there are.
      cycles: for each number of local epochs E; rounds of averaging methods.
      seeds: of every case.
      target: accuracy whose cost is reported.
      grid: learning rates that `--tune` tries.
      tune_cycles: of a tuning run, with E = 1.
      validation: share of the training examples that tuning evaluates on.
      rates: learning rate of methods that were not tuned.
      step_s: seconds of a step, for the first estimate; measured where said.
    """

    settings: Mapping[str, Any]
    data: str
    train_examples: int
    cycles: Mapping[int, int]
    seeds: tuple[int, ...]
    target: float
    grid: tuple[float, ...]
    tune_cycles: int
    validation: float
    rates: Mapping[str, float]
    step_s: float


_RATES = {
    "fedavg": 0.1,
    "accelerated_fl": 0.03,
    "snake": 0.03,
    "sequential": 0.03,
    "split": 0.03,
    "splitfed": 0.03,
    "random_walking_snakes": 0.03,
}
_COMMON = {"batch_size": 32, "lr_schedule": "factor", "lr_decay": 0.95, "alpha": 2.0, "on_divergence": "skip"}

SCALES = {
    # Whether everything works, in seconds: a small network on the bundled digits. Its numbers say nothing.
    "smoke": Scale(
        settings={**_COMMON, "model": "mlp", "width": 0.25, "nodes": 3, "batch_size": 16, "lr_decay": 0.9},
        data="digits",
        train_examples=96,
        cycles={1: 2, 2: 1},
        seeds=(0,),
        target=0.1,
        grid=(0.03, 0.1),
        tune_cycles=1,
        validation=0.25,
        rates=_RATES,
        step_s=0.01,
    ),
    # What two CPU cores do in three quarters of an hour. All E see about as many examples (10, 12, 10 passes), as the
    # papers' x axis is iterations. A step took 11.4 (FedAvg) to 17.1 ms (Snake with distillation) beside other work.
    "cpu": Scale(
        settings={**_COMMON, "model": "vgg11", "width": 0.25, "nodes": 9, "augment": "flip"},
        data="cifar10",
        train_examples=10_000,
        cycles={1: 10, 3: 4, 5: 2},
        seeds=(0,),
        target=0.35,
        grid=(0.01, 0.03, 0.1),
        tune_cycles=2,
        validation=0.2,
        rates=_RATES,
        step_s=0.014,
    ),
    # The papers' setting, for an accelerator. The papers do not say for how long they train.
    "full": Scale(
        settings={**_COMMON, "model": "vgg11", "width": 1.0, "nodes": 9, "augment": "crop_flip"},
        data="cifar10",
        train_examples=0,
        cycles={1: 90, 3: 30, 5: 18},
        seeds=(0, 1, 2),
        target=0.6,
        grid=(0.01, 0.03, 0.1),
        tune_cycles=5,
        validation=0.1,
        rates=_RATES,
        step_s=0.003,
    ),
}


class Case(NamedTuple):
    """One run.

    Attributes:
      method: its algorithm.
      partition: of the data.
      epochs: E, passes over a node's data in a visit.
      seed: of the run.
      order: of the middle layers.
      interrupted: whether the fifth layer's visit of every cycle is taken over by an idle node.
      tried: the learning rate that a tuning run tries; None: a run of the study.
    """

    method: str
    partition: str
    epochs: int = 1
    seed: int = 0
    order: str = "sequential"
    interrupted: bool = False
    tried: float | None = None


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """The cases that a figure draws, those of few local epochs first; figure 4 trains nothing."""
    few = min(scale.cycles)
    if figure == "5":
        plain = [Case(m, p, e) for e in sorted(scale.cycles) for m in COMPARED for p in PARTITIONS]
    elif figure == "7":
        plain = [Case("snake", p, few, interrupted=cut) for p in PARTITIONS for cut in (False, True)]
    elif figure == "8":
        plain = [Case("snake", p, few, order=order) for p in PARTITIONS for order in ORDERS]
    elif figure == "2":
        plain = [Case(method, "iid", few) for method in METHODS]
    else:
        plain = []
    return [case._replace(seed=seed) for case in plain for seed in scale.seeds]


def ordered(cases: Iterable[Case]) -> list[Case]:
    """Each case once, those of few local epochs first, so that what is there when time runs out can be used."""
    return sorted(dict.fromkeys(cases), key=lambda case: (case.epochs, case.seed))


def tuning(figures: Iterable[str], scale: Scale) -> list[Case]:
    """The tuning runs: every method and partition of the figures, each rate of the grid, one seed, least E."""
    pairs = dict.fromkeys((case.method, case.partition) for figure in figures for case in of_figure(figure, scale))
    return [
        Case(method, partition, min(scale.cycles), scale.seeds[0], tried=rate)
        for (method, partition), rate in itertools.product(pairs, scale.grid)
    ]


def name(case: Case, rate: float) -> str:
    """The folder of a case's run: what tells it from the others of its scale."""
    special = [case.order] * (case.order != "sequential") + ["interrupted"] * case.interrupted
    kind = ["tune"] * (case.tried is not None)
    return "_".join([*kind, case.method, case.partition, f"e{case.epochs}", *special, f"lr{rate:g}", f"s{case.seed}"])


def config_of(case: Case, scale: Scale, data: str, rate: float) -> Config:
    """The configuration of a case's run, evaluated once a cycle."""
    cycles = scale.cycles[case.epochs] if case.tried is None else scale.tune_cycles
    first, planned = _interrupted_turn(scale), rounds_planned(scale)
    cut = ",".join(f"{first + cycle * planned}@{INTERRUPTED_AT:g}" for cycle in range(cycles))
    return Config(
        **{
            **scale.settings,
            **METHODS[case.method].flags,
            "algorithm": case.method,
            "dataset": data,
            "partition": case.partition,
            "train_examples": scale.train_examples,
            "validation": 0.0 if case.tried is None else scale.validation,
            "local_epochs": case.epochs,
            "cycles": cycles,
            "order": case.order,
            "interrupt": cut if case.interrupted else "",
            "learning_rate": rate,
            "eval_every": _rounds_a_cycle(case, scale),
            "target_accuracy": scale.target,
            "seed": case.seed,
        }
    )


def steps_of(case: Case, scale: Scale) -> int:
    """About how many steps a case's run takes: a cycle passes all data E times."""
    tuned = case.tried is not None
    examples = (scale.train_examples or _CIFAR10) * (1 - scale.validation if tuned else 1)
    cycles = scale.tune_cycles if tuned else scale.cycles[case.epochs]
    return round(examples * case.epochs * cycles / scale.settings["batch_size"])


def layer_names(scale: Scale) -> tuple[str, ...]:
    """Of the scale's network."""
    return models.build(scale.settings["model"], CLASSES, IMAGE, width=scale.settings["width"]).layer_names


def interrupted_layer(scale: Scale) -> str:
    """The fifth layer, or the middle one of a network whose fifth layer trains at every visit."""
    names = layer_names(scale)
    middle = [name for name in names if name not in resolve_layers("always_train", "first,last", names)]
    fifth = names[INTERRUPTED_LAYER - 1] if len(names) >= INTERRUPTED_LAYER else ""
    return fifth if fifth in middle else middle[len(middle) // 2]


def rounds_planned(scale: Scale) -> int:
    """Snake's visits in a cycle."""
    return len(_assignments(scale))


def _interrupted_turn(scale: Scale) -> int:
    layer = interrupted_layer(scale)
    always = resolve_layers("always_train", "first,last", layer_names(scale))
    return next(i for i, layers in enumerate(_assignments(scale)) if layer in layers and layer not in always)


def _assignments(scale: Scale) -> tuple[tuple[str, ...], ...]:
    names = layer_names(scale)
    return serpentine(Plan(Config(), names, resolve_layers("always_train", "first,last", names)), 0)


def _rounds_a_cycle(case: Case, scale: Scale) -> int:
    """Lines of metrics that a cycle has; a visit that is taken over makes two."""
    if ALGORITHMS[case.method].traffic == "star":
        return 1
    if case.method == "snake":
        return rounds_planned(scale) + case.interrupted
    return scale.settings["nodes"]
