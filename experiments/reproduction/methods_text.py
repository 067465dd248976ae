"""Every method that fine-tunes on the same text: what each reaches, and what that takes.

All runs of a scale pass all nodes' training text equally often, with a node for each block, AdamW
and rates that were not tuned (SCAFFOLD and FedNova: plain SGD, which they ask for). Each node holds
out a part of its own texts, on which the model is scored beside the held-out text of all.
"""

from typing import Any

from experiments.reproduction import comparison
from experiments.reproduction.cases import Case, Method, Scale, Sources
from experiments.reproduction.language import blocks, public, sources
from snake_jax.config import TextConfig

FIGURE = "methods_text"
_WHOLE = {"lora_rank": 0}
_PLAIN = {**_WHOLE, "optimizer": "sgd", "clip_norm": 0.0, "weight_decay": 0.0}
_SERVER = {"algorithm": "fedavg", "server_learning_rate": 0.01}
METHODS = {
    "centralised": Method("centralised, LoRA"),
    "sequential": Method("sequential, LoRA"),
    "fedavg_full": Method("FedAvg, whole model", {"algorithm": "fedavg", **_WHOLE}),
    "fedavg_lora": Method("FedAvg, LoRA", {"algorithm": "fedavg"}),
    "fedprox": Method("FedProx, LoRA", {"proximal": 0.01}),
    "fedadam": Method("FedAdam, LoRA", {**_SERVER, "server_optimizer": "adam"}),
    "fedyogi": Method("FedYogi, LoRA", {**_SERVER, "server_optimizer": "yogi"}),
    "scaffold": Method("SCAFFOLD, whole model, SGD", _PLAIN),
    "fednova": Method("FedNova, whole model, SGD", _PLAIN),
    "fedpart": Method("FedPart, LoRA", {"rounds_per_layer": 1}),
    "progressive": Method("progressive, LoRA", {"rounds_per_layer": 1}),
    "snake_full": Method("Snake, whole blocks", {"algorithm": "snake", **_WHOLE}),
    "snake_lora": Method("Snake, LoRA", {"algorithm": "snake"}),
    "snake_distilled": Method("Snake, LoRA, distilled", {"algorithm": "snake", "distill": "on"}),
    "snake_three": Method("three snakes, LoRA", {"algorithm": "snake", "snakes": 3}),
    "badam": Method("BAdam, whole blocks", _WHOLE),
    "lisa": Method("LISA, whole blocks and ends", {**_WHOLE, "always_train": "first,last"}),
    "hift": Method("HiFT, whole blocks", {**_WHOLE, "carry_optimizer_state": True}),
    "split": Method("split, LoRA", {"cut": "2"}),
    "splitfed": Method("SplitFed, LoRA", {"cut": "2"}),
    "random_walking_snakes": Method("Random Walking Snakes, LoRA", {"snake_length": 3}),
}
PARTITIONS = {"iid": "IID", "by_category": "by data set"}
# Of AdamW 0.001, of plain SGD 0.1; the server's of FedAdam and FedYogi stands above.
_RATES = dict.fromkeys(METHODS, 1e-3) | {"scaffold": 0.1, "fednova": 0.1}
_COMMON: dict[str, Any] = {
    "lr_schedule": "constant",
    "on_divergence": "skip",
    "frozen_dtype": "int8",
    "recompute": "none",
    "evaluate_nodes": 0.2,
}

SCALES = {
    # Whether everything works, on an untrained network; its numbers say nothing.
    "smoke": Scale(
        settings={
            **_COMMON,
            "model": "tiny-llama",
            "limit": 24,
            "test_share": 0.2,
            "max_length": 64,
            "batch_size": 4,
            "lora_rank": 4,
        },
        data="pydoc",
        train_examples=40,
        cycles={1: 6},
        seeds=(0,),
        target=0.0,
        rates=_RATES,
        step_s=0.05,
        **comparison.NO_TUNING,
    ),
    # A pretrained model of a few hundred thousand weights and four data sets, which --text_model
    # and --text_data say the places of. About 40 minutes of one core of a busy machine.
    "cpu": Scale(
        settings={
            **_COMMON,
            "model": "",
            "limit": 40,
            "test_share": 0.3,
            "max_length": 128,
            "batch_size": 8,
            "lora_rank": 16,
        },
        data="",
        train_examples=125,
        cycles={1: 6},
        seeds=(0, 1, 2),
        target=0.0,
        rates=_RATES,
        step_s=0.1,
        **comparison.NO_TUNING,
    ),
}
_EVALUATIONS = 3


def of_figure(figure: str, scale: Scale) -> list[Case]:
    """Every method on both partitions, all seeds."""
    del figure
    return comparison.every_method(METHODS, PARTITIONS, scale)


def config_of(case: Case, scale: Scale, given: Sources, rate: float) -> TextConfig:
    """The configuration of a case's run, evaluated three times.

    Args:
      case: of the study.
      scale: that it is run at.
      given: where model and text are.
      rate: the learning rate.
    """
    # A node for each block: a cycle of Snake and a round of FedAvg both pass all text once.
    nodes = blocks(given["model"])
    config = {
        **scale.settings,
        "algorithm": case.method,
        **METHODS[case.method].flags,
        "model": given["model"],
        "data": given["data"],
        "nodes": nodes,
        "partition": case.partition,
        "learning_rate": rate,
        "seed": case.seed,
    }
    config = comparison.without_distillation(config)
    config |= comparison.duration(config, scale.cycles[1], nodes, _EVALUATIONS)
    return TextConfig(**config)


TOPIC = comparison.topic(
    FIGURE,
    METHODS,
    PARTITIONS,
    SCALES,
    of_figure=of_figure,
    config=config_of,
    sources=sources,
    public=public,
    recorded=("model", "data"),
)
