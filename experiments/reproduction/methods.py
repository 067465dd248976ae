"""Every method on the same examples: what each reaches, and what that takes.

All runs of a scale pass all nodes' training examples equally often, in plain SGD without momentum,
as SCAFFOLD wants it (BAdam, LISA and HiFT are Adam's by their papers). Each node holds out a part
of its own examples, on which the model is scored beside the test set.
"""

from typing import Any

from experiments.reproduction import comparison
from experiments.reproduction.cases import Case, Method, Scale, Sources
from snake_jax.config import ImageConfig

FIGURE = "methods"
ALL_LAYERS = {"always_train": "none"}
_ADAM = {"optimizer": "adam"}
METHODS = {
    "centralised": Method("centralised"),
    "sequential": Method("sequential"),
    "fedavg": Method("FedAvg"),
    "fedprox": Method("FedProx", {"proximal": 0.01}),
    "fedadam": Method(
        "FedAdam", {"algorithm": "fedavg", "server_optimizer": "adam", "server_learning_rate": 0.01}
    ),
    "fedyogi": Method(
        "FedYogi", {"algorithm": "fedavg", "server_optimizer": "yogi", "server_learning_rate": 0.01}
    ),
    "scaffold": Method("SCAFFOLD"),
    "fednova": Method("FedNova"),
    "fedpart": Method("FedPart", {**ALL_LAYERS, "rounds_per_layer": 1}),
    "progressive": Method("progressive", {"rounds_per_layer": 3}),
    "snake": Method("Snake"),
    "snake_distilled": Method("Snake, distilled", {"algorithm": "snake", "distill": "on"}),
    "snake_one": Method("one snake, no ends", {"algorithm": "snake", **ALL_LAYERS}),
    "snake_three": Method(
        "three snakes, no ends",
        {"algorithm": "snake", "snakes": 3, **ALL_LAYERS},
    ),
    "badam": Method("BAdam", _ADAM),
    "lisa": Method("LISA", _ADAM),
    "hift": Method("HiFT", {**_ADAM, "carry_optimizer_state": True}),
    "split": Method("split", {"cut": "2"}),
    "splitfed": Method("SplitFed", {"cut": "2"}),
    "accelerated_fl": Method("Accelerated FL", {"cut": "2"}),
    "random_walking_snakes": Method("Random Walking Snakes", {"snake_length": 3}),
}
# Of Adam, at BAdam, LISA and HiFT, the rate that it is known by.
_RATES = dict.fromkeys(METHODS, 0.05) | {"badam": 1e-3, "lisa": 1e-3, "hift": 1e-3}
_COMMON: dict[str, Any] = {
    "lr_schedule": "constant",
    "optimizer": "sgd",
    "momentum": 0.0,
    "clip_norm": 0.0,
    "alpha": comparison.ALPHA,
    "on_divergence": "skip",
    "evaluate_nodes": 0.2,
}
SCALES = comparison.image_scales(_COMMON, _RATES)
_EVALUATIONS = 6


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """Every method on both partitions, all seeds."""
    del figure
    return comparison.every_method(METHODS, comparison.IMAGE_PARTITIONS, scale)


def config_of(case: Case, scale: Scale, given: Sources, rate: float) -> ImageConfig:
    """The configuration of a case's run, evaluated six times.

    Args:
      case: of the study.
      scale: that it is run at.
      given: where the data is.
      rate: the learning rate.
    """
    flags = {"algorithm": case.method, **METHODS[case.method].flags}
    settings = comparison.image_settings(case, scale, flags, given, rate)
    in_turn = comparison.image_layers_in_turn(scale, settings)
    settings |= comparison.duration(settings, scale.cycles[1], in_turn, _EVALUATIONS)
    return ImageConfig(**settings)


TOPIC = comparison.topic(
    FIGURE,
    METHODS,
    comparison.IMAGE_PARTITIONS,
    SCALES,
    of_figure=of_figure,
    config=config_of,
)
