"""The papers' classification study: the configurations that each figure takes at each scale."""

from experiments.reproduction.cases import (
    Case,
    Given,
    Method,
    Scale,
    Sources,
    Topic,
    cycles_of,
    every_seed,
)
from snake_jax.algorithms.schedule import Plan, serpentine
from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.models import registry
from snake_jax.models.layered import resolve_layers

METHODS = {
    "fedavg": Method("FL"),
    "accelerated_fl": Method("Accelerated FL", {"cut": "2"}),
    "snake": Method("Snake Learning"),
    "sequential": Method("Sequential"),
    "split": Method("Split Learning", {"cut": "2"}),
    "splitfed": Method("SplitFed", {"cut": "2"}),
    "random_walking_snakes": Method("Random Walking Snakes", {"snake_length": 3}),
}
AVERAGING = ("fedavg", "accelerated_fl", "splitfed")  # all nodes of a round side by side
COMPARED = ("fedavg", "accelerated_fl", "snake")  # in figure 5
PARTITIONS = {"iid": "IID", "dirichlet": "Non-IID"}
ORDERS = ("sequential", "random", "reverse")
FIGURES = ("2", "4", "5", "7", "8")
IMAGE, CLASSES = (32, 32, 3), 10
INTERRUPTED_LAYER = 5  # the papers', counted from 1
INTERRUPTED_AT = 0.5  # share of its visit's steps after which the node is lost


_RATES = {
    "fedavg": 0.1,
    "accelerated_fl": 0.03,
    "snake": 0.03,
    "sequential": 0.03,
    "split": 0.03,
    "splitfed": 0.03,
    "random_walking_snakes": 0.03,
}
_COMMON = {
    "batch_size": 32,
    "lr_schedule": "factor",
    "lr_decay": 0.95,
    "alpha": 2.0,
    "on_divergence": "skip",
}

SCALES = {
    # Whether everything works, in seconds: a small network on the bundled digits. Its numbers say
    # nothing.
    "smoke": Scale(
        settings={
            **_COMMON,
            "model": "mlp",
            "width": 0.25,
            "nodes": 3,
            "batch_size": 16,
            "lr_decay": 0.9,
        },
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
    # What two CPU cores do in three quarters of an hour. All E see about as many examples (10, 12,
    # 10 passes), as the papers' x axis is iterations. A step took 11.4 (FedAvg) to 17.1 ms (Snake
    # with distillation) beside other work.
    "cpu": Scale(
        settings={**_COMMON, "model": "vgg11", "width": 0.25, "nodes": 9, "augment": "flip"},
        data="cifar10",
        train_examples=10_000,
        cycles={1: 10, 3: 4, 5: 2},
        seeds=(0,),
        target=0.35,
        grid=(0.01, 0.03, 0.1),
        tune_cycles=5,
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


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """The cases that a figure draws, those of few local epochs first; figure 4 trains nothing."""
    few = min(scale.cycles)
    of_one_seed = []
    if figure == "2":
        of_one_seed = [Case(method, "iid", few) for method in METHODS]
    if figure == "5":
        for epochs in sorted(scale.cycles):
            for method in COMPARED:
                for partition in PARTITIONS:
                    of_one_seed.append(Case(method, partition, epochs))
    for partition in PARTITIONS:
        snake = Case("snake", partition, few)
        if figure == "7":
            of_one_seed += [snake, snake._replace(interrupted=True)]
        if figure == "8":
            of_one_seed += [snake._replace(order=order) for order in ORDERS]
    return every_seed(of_one_seed, scale)


def config_of(case: Case, scale: Scale, sources: Sources, rate: float) -> ImageConfig:
    """The configuration of a case's run, evaluated once a cycle.

    Args:
      case: of the study.
      scale: that it is run at.
      sources: where the data is.
      rate: the learning rate.
    """
    cycles = cycles_of(case, scale)
    given = {
        **scale.settings,
        **METHODS[case.method].flags,
        "algorithm": case.method,
        "dataset": sources["data"],
        "partition": case.partition,
        "train_examples": scale.train_examples,
        "validation": 0.0 if case.tried is None else scale.validation,
        "local_epochs": case.epochs,
        "cycles": cycles,
        "order": case.order,
        "learning_rate": rate,
        "eval_every": _lines_a_cycle(case, scale),
        "target_accuracy": scale.target,
        "seed": case.seed,
    }
    if case.interrupted:
        # The same visit of every cycle, counted from the first of the run.
        first = _interrupted_turn(scale)
        visits = visits_planned(scale)
        turns = [first + cycle * visits for cycle in range(cycles)]
        given["interrupt"] = ",".join(f"{turn}@{INTERRUPTED_AT:g}" for turn in turns)
    return ImageConfig(**given)


def layer_names(scale: Scale) -> tuple[str, ...]:
    """Of the scale's network."""
    settings = scale.settings
    model = registry.build(settings["model"], CLASSES, IMAGE, width=settings["width"])
    return model.layer_names


def interrupted_layer(scale: Scale) -> str:
    """The fifth layer, or the middle one of a network whose fifth layer trains at every visit."""
    names = layer_names(scale)
    always = resolve_layers("always_train", "first,last", names)
    middle = [name for name in names if name not in always]
    if len(names) >= INTERRUPTED_LAYER:
        fifth = names[INTERRUPTED_LAYER - 1]
        if fifth in middle:
            return fifth
    return middle[len(middle) // 2]


def visits_planned(scale: Scale) -> int:
    """Snake's visits in a cycle."""
    return len(_assignments(scale))


def _interrupted_turn(scale: Scale) -> int:
    """The first visit of a cycle that trains the layer which is interrupted."""
    layer = interrupted_layer(scale)
    trains = [layer in layers for layers in _assignments(scale)]
    return trains.index(True)


def _assignments(scale: Scale) -> tuple[tuple[str, ...], ...]:
    names = layer_names(scale)
    plan = Plan(ImageConfig(), names, resolve_layers("always_train", "first,last", names))
    return serpentine(plan, 0)


def _lines_a_cycle(case: Case, scale: Scale) -> int:
    """Lines of metrics that a cycle has: one of methods that average a round, else one a visit.

    A visit that is taken over makes two.
    """
    if case.method in AVERAGING:
        return 1
    if case.method == "snake":
        planned = visits_planned(scale)
        return planned + 1 if case.interrupted else planned
    return scale.settings["nodes"]


def sources(name: str, scale: Scale, given: Given) -> Sources:
    """Where the images are.

    Raises:
      UserError: they are of no kind that the studies take.
    """
    del name
    source = given.data or scale.data
    if source != "cifar10" and not source.startswith("npz:") and source != scale.data:
        raise UserError(
            f"--data={source}: want cifar10, or npz:DIR with train_*.npz and test_*.npz"
        )
    return {"data": source}


def public(source: str) -> str:
    """A data set's name without a path of this machine."""
    return "cifar10" if source.startswith("npz:") else source


def hold_out(scale: Scale, sources: Sources) -> None:
    """Nothing to write: runs that tune hold out a part of their training examples themselves."""


TOPIC = Topic(
    name="vision",
    suffix="",
    figures=FIGURES,
    methods=METHODS,
    partitions=PARTITIONS,
    scales=SCALES,
    of_figure=of_figure,
    config=config_of,
    sources=sources,
    recorded=(),
    hold_out=hold_out,
    public=public,
)
