"""Where accuracy no longer rises: FL, Accelerated FL and Snake, trained until all of them are flat.

The papers' Snake ends above 95 percent of FL's accuracy. All other figures stop long before any
method has converged; here every run passes all training examples as often, scored once a pass, for
as long as it takes. A run is *flat* by one rule, `flat`, and a claim is tested on flat runs alone.
"""

from collections.abc import Sequence
from typing import Any

from experiments.reproduction import comparison, vision
from experiments.reproduction.cases import Case, Method, Scale, Sources, cycles_of
from experiments.reproduction.tested import Claim
from snake_jax.config import ImageConfig

FIGURE = "convergence"
METHODS = {
    "fedavg": Method("FL"),
    "accelerated_fl": Method("Accelerated FL", {"cut": "2"}),
    "snake": Method("Snake"),
    "snake_distilled": Method("Snake, distilled", {"algorithm": "snake", "distill": "on"}),
}
PARTITIONS = {"iid": "IID", "dirichlet": "Dirichlet(2.0)"}
NOT_ON = {"snake_distilled": ("iid",)}
"""Distillation is for data that differ from node to node."""
WITHIN, MOST_RISE = 10, 0.0025
"""Of `flat`: how many evaluations are the last ones, and a quarter of a point."""

_OF_FL = 0.95
_BOTH = tuple(PARTITIONS)
CLAIMS = (
    Claim("Snake ends above 95 % of FL", ("snake",), ("fedavg",), _BOTH, share=_OF_FL),
    Claim("Snake ends higher than FL", ("snake",), ("fedavg",), _BOTH),
    Claim("Snake ends higher than Accelerated FL", ("snake",), ("accelerated_fl",), _BOTH),
    Claim(
        "with distillation Snake ends above 95 % of FL",
        ("snake_distilled",),
        ("fedavg",),
        ("dirichlet",),
        share=_OF_FL,
    ),
    Claim("with distillation Snake ends higher", ("snake_distilled",), ("snake",), ("dirichlet",)),
)

_COMMON: dict[str, Any] = {
    "lr_schedule": "factor",
    "lr_decay": 0.95,
    "alpha": 2.0,
    "on_divergence": "skip",
}
_VGG11: dict[str, Any] = {"model": "vgg11", "nodes": 9, "batch_size": 32, "augment": "flip"}
# As `--tune` chose them for Snake and FL on 10,000 images of the same network (figure 5).
_RATES = dict.fromkeys(METHODS, 0.03)
_ALL_IMAGES: dict[str, Any] = {
    "data": "cifar10",
    "train_examples": 0,
    "seeds": (0, 1, 2),
    "target": 0.0,
    "grid": (0.01, 0.03, 0.1),
    "tune_cycles": 5,
    "validation": 0.1,
    "rates": _RATES,
}
SCALES = {
    # Whether everything works; its numbers say nothing. As many nodes as layers that take turns, so
    # that a cycle of Snake is a pass of all data.
    "smoke": Scale(
        settings={**_COMMON, "model": "mlp", "width": 0.25, "nodes": 2, "batch_size": 16},
        data="digits",
        train_examples=96,
        cycles={1: 12},
        seeds=(0,),
        target=0.0,
        rates=_RATES,
        step_s=0.02,
        **comparison.NO_TUNING,
    ),
    # An evening of two CPU cores: so narrow a network costs no more than `cnn`, and has the eleven
    # layers and nine visits of the papers. The rate falls to a hundredth in 28 passes; the others
    # are what it takes until FL is flat too.
    "cpu": Scale(
        settings={**_COMMON, **_VGG11, "width": 0.125, "lr_decay": 0.85},
        cycles={1: 40},
        # FL's, on one core of an Intel Xeon: 0.22 ms an image.
        step_s=0.0071,
        **_ALL_IMAGES,
    ),
    # The papers' network, for an accelerator. The rate falls to a hundredth at the end.
    "full": Scale(
        settings={**_COMMON, **_VGG11, "width": 1.0},
        cycles={1: 90},
        step_s=vision.SCALES["full"].step_s,
        **_ALL_IMAGES,
    ),
}


def flat(values: Sequence[float], within: int = WITHIN, most_rise: float = MOST_RISE) -> bool:
    """Whether a curve no longer rises.

    The best of the last evaluations is then not more than so much above the best of those before.

    Args:
      values: of the evaluations, in order.
      within: how many are the last ones; fewer than one more can say nothing, and are not flat.
      most_rise: in the unit of the values.
    """
    if len(values) <= within:
        return False
    return max(values[-within:]) - max(values[:-within]) <= most_rise


def flat_since(
    values: Sequence[float], within: int = WITHIN, most_rise: float = MOST_RISE
) -> int | None:
    """After how many evaluations a curve was flat, and stayed so; None: it is not at its end."""
    since = None
    for count in range(len(values), 0, -1):
        if not flat(values[:count], within, most_rise):
            break
        since = count
    return since


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """Every method on both partitions, all seeds."""
    del figure
    found = []
    for case in comparison.every_method(METHODS, PARTITIONS, scale):
        if case.partition not in NOT_ON.get(case.method, ()):
            found.append(case)
    return found


def config_of(case: Case, scale: Scale, sources: Sources, rate: float) -> ImageConfig:
    """The configuration of a case's run, evaluated once a pass.

    Args:
      case: of the study.
      scale: that it is run at.
      sources: where the data is.
      rate: the learning rate.
    """
    flags = {"algorithm": case.method, **METHODS[case.method].flags}
    settings = comparison.image_settings(case, scale, flags, sources, rate)
    settings["validation"] = 0.0 if case.tried is None else scale.validation

    passes = cycles_of(case, scale)
    in_turn = comparison.image_layers_in_turn(scale, settings)
    settings |= comparison.duration(settings, passes, in_turn, evaluations=passes)
    return ImageConfig(**settings)


TOPIC = comparison.topic(FIGURE, METHODS, PARTITIONS, SCALES, of_figure=of_figure, config=config_of)
