"""Claims of the papers that no figure tests: pairs of runs that differ in one thing.

Snake Learning on images (`claims`) and on text (`claims_text`), seed by seed; the verdict on a
claim is that of `verdict.py`. The magazine names them under "Local Training" and "Data
Heterogeneity Adaptation": a rate that is constant within a cycle, clipping, Adam and RMSprop,
quantized frozen layers, several nodes side by side, distillation on Non-IID data.
"""

from collections.abc import Sequence
from typing import Any

from experiments.reproduction import comparison, language
from experiments.reproduction.cases import Case, Method, Scale, Sources, Topic, every_seed
from experiments.reproduction.tested import Claim
from snake_jax.config import ImageConfig, TextConfig

IMAGES, TEXT = "claims", "claims_text"
FIGURES = (IMAGES, TEXT)
_EVALUATIONS = 6


# Of each optimizer four rates, since a claim about optimizers is one about their best, which is not
# to lie at an edge.
_SGD = ("sgd_0.01", "snake", "sgd_0.05", "sgd_0.1")
_ADAM = ("adam_0.0003", "adam_0.001", "adam_0.003", "adam_0.01")
_RMSPROP = ("rmsprop_0.0001", "rmsprop_0.0003", "rmsprop_0.001", "rmsprop_0.003")
_NO_ENDS = {"always_train": "none"}
IMAGE_METHODS = {
    "snake": Method("Snake"),
    "falling": Method("rate falls from visit to visit", {"lr_schedule": "cosine_visits"}),
    "unclipped": Method("no clipping", {"clip_norm": 0.0}),
    "int8": Method("frozen layers in int8", {"frozen_dtype": "int8"}),
    "two_nodes": Method("two nodes a visit", {"parallel": 2}),
    "one_snake": Method("one snake, no ends", _NO_ENDS),
    "three_snakes": Method("three snakes, no ends", {**_NO_ENDS, "snakes": 3}),
    "sgd_0.01": Method("SGD, 0.01"),
    "sgd_0.05": Method("SGD, 0.05"),
    "sgd_0.1": Method("SGD, 0.1"),
    "adam_0.0003": Method("Adam, 0.0003", {"optimizer": "adam"}),
    "adam_0.001": Method("Adam, 0.001", {"optimizer": "adam"}),
    "adam_0.003": Method("Adam, 0.003", {"optimizer": "adam"}),
    "adam_0.01": Method("Adam, 0.01", {"optimizer": "adam"}),
    "rmsprop_0.0001": Method("RMSprop, 0.0001", {"optimizer": "rmsprop"}),
    "rmsprop_0.0003": Method("RMSprop, 0.0003", {"optimizer": "rmsprop"}),
    "rmsprop_0.001": Method("RMSprop, 0.001", {"optimizer": "rmsprop"}),
    "rmsprop_0.003": Method("RMSprop, 0.003", {"optimizer": "rmsprop"}),
}
_IMAGE_RATES = {
    **dict.fromkeys(IMAGE_METHODS, 0.02),
    "sgd_0.01": 0.01,
    "sgd_0.05": 0.05,
    "sgd_0.1": 0.1,
    "adam_0.0003": 3e-4,
    "adam_0.001": 1e-3,
    "adam_0.003": 3e-3,
    "adam_0.01": 1e-2,
    "rmsprop_0.0001": 1e-4,
    "rmsprop_0.0003": 3e-4,
    "rmsprop_0.001": 1e-3,
    "rmsprop_0.003": 3e-3,
}
_BOTH = tuple(comparison.IMAGE_PARTITIONS)
_COSTS_POINTS = -1.0
"""What saves time, memory or bytes may cost so many points of accuracy."""
IMAGE_CLAIMS = (
    Claim(
        "a rate constant within a cycle beats one that falls from visit to visit",
        ("snake",),
        ("falling",),
        _BOTH,
    ),
    Claim("clipping the gradient at norm 1 helps", ("snake",), ("unclipped",), _BOTH),
    Claim("Adam beats SGD with momentum", _ADAM, _SGD, ("iid",)),
    Claim("RMSprop beats SGD with momentum", _RMSPROP, _SGD, ("iid",)),
    Claim(
        "frozen layers in int8 cost less than a point",
        ("int8",),
        ("snake",),
        _BOTH,
        _COSTS_POINTS,
    ),
    Claim(
        "two nodes a visit, which take half the visits, cost less than a point",
        ("two_nodes",),
        ("snake",),
        _BOTH,
        _COSTS_POINTS,
    ),
    Claim(
        "three snakes cost less than a point beside one",
        ("three_snakes",),
        ("one_snake",),
        _BOTH,
        _COSTS_POINTS,
    ),
)

TEXT_METHODS = {
    "blocks": Method("whole blocks", {"lora_rank": 0}),
    "blocks_distilled": Method("whole blocks, distilled", {"lora_rank": 0, "distill": "on"}),
    "lora": Method("LoRA"),
    "lora_distilled": Method("LoRA, distilled", {"distill": "on"}),
    # The ranks themselves follow from the scale's: see `ranks`.
    "unlike_ranks": Method("a rank for each node"),
}
_TEXT_RATES = {
    **dict.fromkeys(TEXT_METHODS, 3e-3),
    "blocks": 1e-3,
    "blocks_distilled": 1e-3,
}
_COSTS_NATS = -0.05
"""What saves memory and bytes may cost so much of a token's loss, 5 % of perplexity."""
TEXT_CLAIMS = (
    Claim(
        "distillation helps, whole blocks",
        ("blocks_distilled",),
        ("blocks",),
        ("by_category",),
        unit="nats",
    ),
    Claim(
        "distillation helps, LoRA",
        ("lora_distilled",),
        ("lora",),
        ("by_category",),
        unit="nats",
    ),
    Claim(
        "a quarter, half and all of the rank, in turn over the nodes, cost less than 5 %",
        ("unlike_ranks",),
        ("lora",),
        tuple(language.PARTITIONS),
        _COSTS_NATS,
        unit="nats",
    ),
)
CLAIMS = {IMAGES: IMAGE_CLAIMS, TEXT: TEXT_CLAIMS}

_COMMON: dict[str, Any] = {
    "algorithm": "snake",
    "optimizer": "sgd",
    "momentum": 0.9,
    "clip_norm": 1.0,
    "lr_schedule": "cosine",  # from cycle to cycle: constant within one
    "distill": "off",
    "on_divergence": "skip",
    "alpha": comparison.ALPHA,
}
IMAGE_SCALES = comparison.image_scales(_COMMON, _IMAGE_RATES)


def _text_scale(name: str, cycles: int, seeds: tuple[int, ...]) -> Scale:
    """That of figures 6 and 9, with other cycles and fixed rates."""
    scale = language.SCALES[name]._replace(cycles={1: cycles}, seeds=seeds)
    return scale._replace(rates=_TEXT_RATES, **comparison.NO_TUNING)


TEXT_SCALES = {
    "smoke": _text_scale("smoke", 1, (0,)),
    "cpu": _text_scale("cpu", 6, (0, 1, 2)),
}


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """Both sides of every claim, each run once, all seeds."""
    cases: dict[Case, None] = {}  # each once, in order
    for claim in CLAIMS[figure]:
        for partition in claim.partitions:
            for method in (*claim.rival, *claim.side):
                cases[Case(method, partition)] = None
    return every_seed(cases, scale)


def image_config(case: Case, scale: Scale, sources: Sources, rate: float) -> ImageConfig:
    """The configuration of a run on images: all runs pass all examples as often.

    Args:
      case: of the study.
      scale: that it is run at.
      sources: where the data is.
      rate: the learning rate.
    """
    flags = IMAGE_METHODS[case.method].flags
    given = comparison.image_settings(case, scale, flags, sources, rate)

    in_turn = comparison.image_layers_in_turn(scale, given)
    given |= comparison.duration(given, scale.cycles[1], in_turn, _EVALUATIONS)
    return ImageConfig(**given)


def text_config(case: Case, scale: Scale, sources: Sources, rate: float) -> TextConfig:
    """The configuration of a run on text.

    Args:
      case: of the study.
      scale: that it is run at.
      sources: where model and text are.
      rate: the learning rate.
    """
    nodes = language.blocks(sources["model"])
    given = {
        **scale.settings,
        "algorithm": "snake",
        "distill": "off",
        **TEXT_METHODS[case.method].flags,
        "model": sources["model"],
        "data": sources["data"],
        "nodes": nodes,
        "partition": case.partition,
        "cycles": scale.cycles[1],
        "learning_rate": rate,
        "eval_every": nodes,
        "seed": case.seed,
    }
    if case.method == "unlike_ranks":
        given["rank"] = ranks(given["lora_rank"], nodes)
    return TextConfig(**given)


def ranks(rank: int, nodes: int) -> str:
    """A quarter, half and all of a rank in turn over the nodes, as --rank takes them."""
    shares = (max(1, rank // 4), max(1, rank // 2), rank)
    return ",".join(str(shares[node % len(shares)]) for node in range(nodes))


IMAGE_TOPIC = comparison.topic(
    IMAGES,
    IMAGE_METHODS,
    comparison.IMAGE_PARTITIONS,
    IMAGE_SCALES,
    of_figure=of_figure,
    config=image_config,
)
TEXT_TOPIC = comparison.topic(
    TEXT,
    TEXT_METHODS,
    language.PARTITIONS,
    TEXT_SCALES,
    of_figure=of_figure,
    config=text_config,
    sources=language.sources,
    public=language.public,
    recorded=language.TOPIC.recorded,
)
TOPICS: Sequence[Topic] = (IMAGE_TOPIC, TEXT_TOPIC)
