"""FedAvg, FedProx and FedNova where others have published them: LeNet on CIFAR-10, ten nodes.

The setting is that of Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study",
ICDE 2022 (NIID-Bench), as Flower's baseline `niid_bench` runs it: 50 rounds of ten local epochs,
batch 64, SGD 0.01 with momentum 0.9 and weight decay 1e-5, reflected crops and flips, pixels from 0
to 1. What it publishes is the best accuracy of all rounds. Its SCAFFOLD has momentum, which
SCAFFOLD's correction does not allow for; ours refuses it, and is not among these.
"""

from typing import Any, NamedTuple

from experiments.reproduction import comparison
from experiments.reproduction.cases import Case, Method, Scale, Sources, every_seed
from snake_jax.config import ImageConfig

FIGURE = "published"
METHODS = {
    "fedavg": Method("FedAvg"),
    "fedprox": Method("FedProx", {"proximal": 0.01}),
    "fednova": Method("FedNova"),
}
PARTITIONS = {"iid": "IID", "dirichlet_capped": "Dirichlet(0.5)"}


class Published(NamedTuple):
    """Best accuracy of all rounds, in percent.

    Attributes:
      mean: over their runs.
      deviation: of their runs.
      paper: the mean that NIID-Bench's own leader board has; None: it has none.
    """

    mean: float
    deviation: float
    paper: float | None = None


PUBLISHED = {
    ("fedavg", "iid"): Published(71.32, 0.33),
    ("fedprox", "iid"): Published(71.26, 1.18),
    ("fednova", "iid"): Published(70.69, 1.14),
    ("fedavg", "dirichlet_capped"): Published(62.47, 0.43, 68.2),
    ("fedprox", "dirichlet_capped"): Published(65.63, 0.08, 67.9),
    ("fednova", "dirichlet_capped"): Published(63.89, 1.40, 66.8),
}
"""Flower's baselines/niid_bench/README.md, Expected Results, CIFAR10; README.md of NIID-Bench,
Leader Board, Cifar-10 with 10 parties. FedProx's factor is the best of four there, here 0.01."""

_COMMON: dict[str, Any] = {
    "lr_schedule": "constant",
    "optimizer": "sgd",
    "momentum": 0.9,
    "clip_norm": 0.0,
    "weight_decay": 1e-5,
    "alpha": 0.5,
    "on_divergence": "skip",
}
_RATES = dict.fromkeys(METHODS, 0.01)
SCALES = {
    # Whether everything works; its numbers say nothing.
    "smoke": Scale(
        settings={**_COMMON, "model": "mlp", "width": 0.25, "nodes": 2, "batch_size": 16},
        data="digits",
        train_examples=96,
        cycles={2: 3},
        seeds=(0,),
        target=0.0,
        rates=_RATES,
        step_s=0.02,
        **comparison.NO_TUNING,
    ),
    "cpu": Scale(
        settings={
            **_COMMON,
            "model": "lenet",
            "width": 1.0,
            "init": "torch",
            "nodes": 10,
            "batch_size": 64,
            "augment": "crop_flip_reflect",
            "pixel_mean": "0,0,0",
            "pixel_std": "1,1,1",
        },
        data="cifar10",
        train_examples=0,
        cycles={10: 50},
        seeds=(0, 1, 2),
        target=0.0,
        rates=_RATES,
        # On one core of an AMD EPYC: 0.26 ms an image.
        step_s=0.017,
        **comparison.NO_TUNING,
    ),
}


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """Every method on both partitions, all seeds; FedAvg first."""
    del figure
    (epochs,) = scale.cycles
    found = []
    for method in METHODS:
        found += [Case(method, partition, epochs) for partition in PARTITIONS]
    return every_seed(found, scale)


def config_of(case: Case, scale: Scale, sources: Sources, rate: float) -> ImageConfig:
    """The configuration of a case's run, evaluated once a round.

    Args:
      case: of the study.
      scale: that it is run at.
      sources: where the data is.
      rate: the learning rate.
    """
    flags = {"algorithm": case.method, **METHODS[case.method].flags}
    settings = comparison.image_settings(case, scale, flags, sources, rate)
    settings["local_epochs"] = case.epochs
    settings["cycles"] = scale.cycles[case.epochs]
    return ImageConfig(**settings)


TOPIC = comparison.topic(FIGURE, METHODS, PARTITIONS, SCALES, of_figure=of_figure, config=config_of)
